"""Run log: rows committed by identity, resumed after a kill; progress bars; presets for published numbers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tqdm import tqdm

from emotrace.labels import EmotraceError, unknown

IDENTITY = ("key", "method", "draw")
_DEFAULTS: Final = {"draw": 0}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Log:
    """An append-only JSONL file whose rows are known by identity, so that a run continues where it was killed.

    A last line without its newline is what a kill leaves: it is not a row, and is cut off before the next append.

    Args:
        path: the file; it need not exist.
        identity: the fields that tell rows apart (``draw`` is 0 where a row has none).

    Raises:
        EmotraceError: for a damaged line (with its number), a row without a field of the identity, or two of one identity.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Sequence[str] = IDENTITY) -> None:
        self.path = Path(path)
        self.identity = tuple(identity)
        self._file: int | None = None
        self.done: set[tuple[Any, ...]] = set()
        self._load(self.done)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.done)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return self.identity_of(row) in self.done

    def identity_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The identity of a row.

        Raises:
            EmotraceError: if a field is missing.
        """
        try:
            return tuple(row[f] if f in row else _DEFAULTS[f] for f in self.identity)
        except KeyError as error:
            raise EmotraceError(
                f"{self.path}: a row has no field {error}, which its identity {self.identity} needs."
            ) from None

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order they were appended."""
        return [row for _, row in self._read()]

    def append(self, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Write rows and wait until they are on disk.

        Raises:
            EmotraceError: for a row that is there already, if another process appends to the file, or if the disk is
                full (what was committed before stays, the run can be continued).
        """
        batch: list[Any] = [rows] if isinstance(rows, Mapping) else list(rows)
        names = [self.identity_of(row) for row in batch]
        fd = self._open()
        for i, name in enumerate(names):
            if name in self.done or name in names[:i]:
                raise EmotraceError(f"{self.path} has a row {dict(zip(self.identity, name, strict=True))} already.")
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch).encode()
        before = os.fstat(fd).st_size
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        except OSError as error:
            os.ftruncate(fd, before)
            if error.errno not in _FULL:
                raise
            raise EmotraceError(
                f"the disk is full ({error.strerror}) while writing {self.path}. The rows before are kept: make room and "
                "repeat the same command to continue."
            ) from error
        self.done.update(names)

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _open(self) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise EmotraceError(
                    f"another run is appending to {self.path}; wait for it, or choose another path."
                ) from None
            self._file = fd
            self.done.clear()
            os.ftruncate(fd, self._load(self.done))
        return self._file

    def _load(self, done: set[tuple[Any, ...]]) -> int:
        """Collect identities; returns the number of bytes that are whole lines."""
        whole = 0
        for end, row in self._read():
            name = self.identity_of(row)
            if name in done:
                raise EmotraceError(f"{self.path} has two rows {dict(zip(self.identity, name, strict=True))}.")
            done.add(name)
            whole = end
        return whole

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            return
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise EmotraceError(f"{self.path}:{number} is damaged: {error}.") from None
                if not isinstance(row, dict):
                    raise EmotraceError(f"{self.path}:{number} is not a row: {row!r}.")
                yield end, row


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write JSON so that the file is at any moment either the old one or the new one; NaN is refused."""
    _replace(Path(path), json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file as a whole, as `write_json` does."""
    _replace(Path(path), "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _replace(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, target)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    desc: str = "",
    unit: str = "it",
    enabled: bool = True,
) -> tqdm[Any]:
    """A bar on stderr with rate and time left; iterate over it, or call its ``update(n)`` and ``close()``."""
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=not enabled, dynamic_ncols=True)


def preset(name: str) -> Mapping[str, Any]:
    """The settings that make a run comparable with one published line of work; copied into the run's manifest.

    Raises:
        EmotraceError: for an unknown name.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS, "preset")
    return PRESETS[name]


def _frozen(value: Any) -> Any:
    return MappingProxyType({k: _frozen(v) for k, v in value.items()}) if isinstance(value, dict) else value


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = _frozen(
    {
        "emotion_circuits": {  # arXiv 2510.11328
            "model": "meta-llama/Llama-3.2-3B-Instruct",
            "dtype": "float32",
            "attn_implementation": {"generate": "eager", "capture": "sdpa"},
            "double_bos": True,
            "template_date": "day of the run",
            "system": "Always reply in {emotion}.\nKeep the reply to at most two sentences.",
            "system_steered": "Keep the reply to at most two sentences.",
            "user": "{scenario}\n{event}",
            "seed": 1234,
            "batch_size": 1,
            "decoding": {"do_sample": False, "max_new_tokens": 100},
            "decoding_steered": {
                "do_sample": False,
                "max_new_tokens": 100,
                "min_new_tokens": 10,
                "repetition_penalty": 1.05,
                "no_repeat_ngram_size": 3,
            },
            "capture": {
                "sites": ("resid_mid", "resid_post"),
                "positions": "last",
                "dtype": "float16",
                "accepted_only": True,
                "complete_groups_only": True,
            },
            "final_norm_last_row": True,
            "within": ("skeleton_id", "valence"),
            "keep_norms": False,
            "steering": {
                "site": "resid_post",
                "layers": tuple(range(11, 21)),
                "scale": "rms",
                "strength": 8.0,
                "positions": "steer",
            },
            "neuron_ranking": {"score": "mean contribution", "signed": True, "contrasted": False, "position": "last"},
            "head_readout": {"space": "normed MLP input", "direction": "resid_mid"},
            "judge": {"model": "gpt-4o-mini", "target_aware": True, "on_failure": "no match"},
        },
        "emotion_vectors": {  # arXiv 2502.04075
            "emotions": ("anger", "disgust", "fear", "joy", "sadness"),
            "dtype": "bfloat16",
            "capture": {"site": "o_proj_out", "positions": "generated", "mean_over": "steps"},
            "contrast": "emotional minus neutral answer to the same query, mean over queries",
            "base": "mean over emotions",
            "vector_dtype": "float32",
            "normalised": False,
            "steering": {
                "site": "o_proj_out",
                "layers": "all",
                "scale": "raw",
                "strengths": (-1, 0, 1, 2, 4),
                "positions": "steer",
            },
            "decoding": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 512, "seed": None},
            "held_out_queries": False,
        },
        "goemotions": {
            "model": "meta-llama/Llama-3.2-3B-Instruct",
            "data": {"set": "go_emotions", "split": "train", "single_label": True, "against": "neutral"},
            "chat_template": False,
            "capture": {"site": "resid_post", "positions": "last"},
            "final_norm_last_row": True,
            "vector": {"type": "top_k", "k": 50, "rank_by": "absolute mean difference", "normalised": False},
            "test": {"name": "Welch t", "two_sided": True, "correction": None},
            "steering": {"site": "resid_post", "layers": "all", "scale": "raw", "strength": 1.0, "positions": "steer"},
            "decoding": {"do_sample": False, "max_length": 60, "temperature": 0.7, "top_p": 0.9, "seed": 42},
            "classifier": "j-hartmann/emotion-english-distilroberta-base",
            "score_includes_prompt": True,
            "truthfulqa": {"rows": 817, "score": "any correct answer is a substring of prompt and answer"},
        },
        "model_emotion": {  # arXiv 2302.09582
            "model": "roberta-base",
            "seeds": (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 42, 100),
            "prompt_length": 100,
            "prompt_init": "normal(0, 0.02)",
            "verbalizer": {"negative": 33407, "positive": 22173},
            "negatives": {"with_replacement": True, "from": "all rows, positives included", "ratio": 1},
            "optimizer": {
                "name": "AdamW",
                "correct_bias": False,
                "lr": 2e-3,
                "weight_decay": 0.01,
                "schedule": "constant",
            },
            "training": {"epochs": 50, "batch_size": 8, "max_length": 256, "select": "best dev accuracy"},
            "accuracy": {"split": "dev", "mean": "of batches", "batch_size": 256},
            "activations": {"site": "neuron", "position": 0, "input": "<mask>, prompt, <s>"},
            "rsa": {
                "pattern_distance": "cosine",
                "neuron_distance": "absolute difference",
                "correlation": "kendall tau-b",
                "alternative": "greater",
                "correction": "p * n / rank",
                "significant_below": 0.01,
            },
            "masking": {
                "k": (500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000),
                "ablation": "zero",
                "positions": "all",
                "layers": "all",
                "random_draws": 1,
                "batch_size": 100,
            },
        },
    }
)
