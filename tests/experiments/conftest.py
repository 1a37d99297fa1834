"""What the tests of studies share: pictures that need not be looked at."""

from __future__ import annotations

import pytest
from PIL import Image

from emotrace.report import style


@pytest.fixture
def undrawn(monkeypatch):
    """One white pixel for every picture of a run whose study another test draws in full: figures are made, and not rendered."""

    def savefig(figure, file, **options):
        assert figure.get_suptitle()
        Image.new("L", (1, 1), 255).save(file, options["format"])

    monkeypatch.setattr(style.Picture, "savefig", savefig)
