"""Oracles: the one loader of published artefacts, which live outside the repository in ``$EMOTRACE_ORACLES``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest


@dataclass(frozen=True)
class Oracles:
    """Files of one folder, by their name in its README; a test that asks for an absent one is skipped."""

    root: Path | None

    @classmethod
    def find(cls) -> Oracles:
        folder = os.environ.get("EMOTRACE_ORACLES")
        return cls(Path(folder) if folder else None)

    def path(self, name: str) -> Path:
        if self.root is None:
            pytest.skip("published artefacts: $EMOTRACE_ORACLES is not set")
        if not self.root.is_dir():
            pytest.skip(f"published artefacts: $EMOTRACE_ORACLES={self.root} is no folder")
        path = self.root / name
        if not path.exists():
            pytest.skip(f"published artefacts: {name} is not in $EMOTRACE_ORACLES={self.root}")
        return path

    def npy(self, name: str) -> np.ndarray:
        return np.load(self.path(name), allow_pickle=False)

    def npz(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.path(name), allow_pickle=False) as file:
            return dict(file)

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def jsonl(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path(name).read_text(encoding="utf-8").splitlines() if line.strip()]

    def csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.path(name))
