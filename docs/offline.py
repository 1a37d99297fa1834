"""Does a page of a built site load anything from elsewhere? ``python docs/offline.py build/site`` names it, with status 1."""

from __future__ import annotations

import re
import sys
from pathlib import Path

LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["'](?:https?:)?//[^"']+"""
    r"""|<link\b(?=[^>]*\brel=["'](?:stylesheet|preload|icon|preconnect|modulepreload))[^>]*\bhref=["'](?:https?:)?//[^"']+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')]+|url\(["']?(?:https?:)?//[^"')]+|\bimport\(["']https?://[^"']+""",
    re.I,
)


def loads(site: Path) -> list[str]:
    """``file: what it loads``, of every page, style sheet and script."""
    found = []
    for path in sorted(p for p in site.rglob("*") if p.suffix in (".html", ".css", ".js")):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(site)}: {match[0][:160]}" for match in LOADS.finditer(text)]
    return found


if __name__ == "__main__":
    elsewhere = loads(Path(sys.argv[1]))
    print("\n".join(elsewhere) or "no page loads anything from elsewhere")
    sys.exit(bool(elsewhere))
