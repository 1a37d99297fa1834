"""What the tests of studies share: pictures that need not be looked at."""

from __future__ import annotations

import pytest
from PIL import Image

from emotrace.report import saved, style

saved.FORMATS = ("png", "svg")  # PDF takes longest, and is drawn in tests/report


@pytest.fixture
def undrawn(monkeypatch):
    """One white pixel for every picture of a run whose study another test draws in full: figures are made, and not rendered."""

    def savefig(figure, file, **options):
        assert figure.get_suptitle()
        if options["format"] == "png":
            Image.new("L", (1, 1), 255).save(file, "png")

    monkeypatch.setattr(style.Picture, "savefig", savefig)
    monkeypatch.setattr(style.Picture, "draw_without_rendering", lambda self: None)
