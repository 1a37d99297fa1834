"""Page: one HTML file that shows a run; everything that comes from a model or a file is escaped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import xarray as xr

from emotrace.labels import EmotraceError
from emotrace.report import figures, style, tables
from emotrace.report.figures import Shown
from emotrace.report.replies import CONTROLLED, CONTROLS, chance_of
from emotrace.report.samples import samples

TEACHING: Final = (
    "This is the teaching and test model shipped with emotrace: small, and trained on synthetic text written for the project. "
    "Its numbers show that the method works from end to end; they say nothing about language models at large."
)
BELOW: Final = 0.70
_ENV: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("emotrace.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write(
    out_dir: str | Path,
    report: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]] = (),
    directions: xr.DataArray | None = None,
    agnosticism: xr.Dataset | None = None,
    manifest: Mapping[str, Any] | None = None,
    command: str = "",
    *,
    groups: int = 6,
    seed: int = 0,
) -> Path:
    """Write ``figures/*.png``, ``tables/*.csv`` and ``report.html`` of a run; absent parts are left out.

    Args:
        out_dir: folder of the run.
        report: content of report.json.
        rows: of generations.jsonl, for the replies side by side.
        directions: of `directions.centered_mean`.
        agnosticism: of `directions.context_agnosticism`.
        manifest: content of manifest.json.
        command: what repeats the run; by default the manifest's.
        groups: how many scenarios are shown side by side.
        seed: which ones: drawn without looking at the replies.

    Returns:
        The path of report.html.

    Raises:
        EmotraceError: if ``out_dir`` is a file.
    """
    out = Path(out_dir)
    if out.exists() and not out.is_dir():
        raise EmotraceError(f"report.write(out_dir={str(out)!r}): that is a file; give a folder.")
    out.mkdir(parents=True, exist_ok=True)
    shown = figures.draw(report, directions, agnosticism)
    for one in shown:
        figures.save(one.figure, out / "figures" / f"{one.name}.png")
    files = tables.write(out / "tables", report, agnosticism)
    html = render(report, rows, shown, [f.name for f in files], manifest, command, groups=groups, seed=seed)
    part = out / "report.html.tmp"
    part.write_text(html, encoding="utf-8")
    os.replace(part, out / "report.html")
    return out / "report.html"


def render(
    report: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]] = (),
    shown: Sequence[Shown] = (),
    files: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
    command: str = "",
    *,
    groups: int = 6,
    seed: int = 0,
) -> str:
    """The page as text; figures and tables are named by relative path. Arguments as `write`."""
    manifest = manifest or {}
    return _ENV.get_template("page.html").render(
        model=_model(report, manifest),
        when=manifest.get("finished") or manifest.get("started") or "",
        notices=notices(report),
        headlines=headlines(report),
        scores=scores(report),
        setting=setting(report),
        lifts=_lifts(report),
        fluency=tables.fluency(report).to_dict("records"),
        figures=[
            {
                "src": f"figures/{s.name}.png",
                "heading": s.heading,
                "caption": s.caption,
                "alt": f"{s.heading}: {style.claim(s.figure)}.",
                "pixels": [round(i * style.DPI) for i in s.figure.get_size_inches()],
            }
            for s in shown
        ],
        samples=samples(rows, groups, seed),
        seed=seed,
        files=files,
        manifest=flat({k: v for k, v in manifest.items() if k != "command"}),
        command=command or str(manifest.get("command", "")),
        percent=style.percent,
    )


def notices(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know first.

    The report's ``warnings``, before them that of the teaching model where ``model.teaching`` is set, after them that
    of a weak judge where ``judge.accuracy`` (a share) is below 70 %.
    """
    out = [str(w) for w in report.get("warnings") or []]
    if (report.get("model") or {}).get("teaching") and TEACHING not in out:
        out.insert(0, TEACHING)
    judge = report.get("judge") or {}
    measured = style.number(judge.get("accuracy"))
    if measured < BELOW:
        out.append(
            f"The judge {judge.get('name', '')} read {style.percent(measured)} of published replies as published: below "
            f"{style.percent(BELOW)}. Read every accuracy on this page with that in mind."
        )
    return out


def headlines(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers that come first: the methods, the best control, the lift."""
    accuracy, fluent = report.get("accuracy") or {}, report.get("accuracy_fluent") or {}
    out = []
    for method in ("prompt", "steer", "circuit"):
        if method in accuracy:
            leaf = accuracy[method].get("overall")
            second = style.number((fluent.get(method) or {}).get("overall"))
            note = f"{style.percent(second)} and fluent" if second == second else ""
            out.append({"name": method, "value": style.percent(leaf, 1), "interval": bounds(leaf), "note": note})
    controls = {m: accuracy[m].get("overall") for m in CONTROLS if m in accuracy}
    if controls:
        best = max(controls, key=lambda m: style.number(controls[m]))
        note = f"{best}; chance {style.percent(chance_of(report))}"
        out.append(
            {
                "name": "best control",
                "value": style.percent(controls[best], 1),
                "interval": bounds(controls[best]),
                "note": note,
            }
        )
    lifts = {m: found["overall"] for m, found in style.lifts_of(report).items() if "overall" in found}
    for method in [m for m in CONTROLLED if m in lifts][:1]:
        lift = lifts[method]
        note = f"p = {_p(lift.get('p'))}"
        out.append({"name": f"{method} over none", "value": _points(lift), "interval": bounds(lift), "note": note})
    return out


def scores(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method for the table under the headline numbers."""
    out = []
    for method in style.methods_of(report.get("accuracy") or {}):
        leaf = report["accuracy"][method].get("overall") or {}
        others = {s: ((report.get(s) or {}).get(method) or {}).get("overall") for s in tables.SCORES[1:]}
        out.append(
            {
                "method": method,
                "draws": len(leaf.get("draws") or []),
                **{k: (leaf.get(k) if leaf.get(k) is not None else "–") for k in ("n", "n_unjudged")},
                "worst": style.percent(leaf.get("worst_case"), 1),
                "accuracy": cell(leaf),
                "fluent": cell(others["accuracy_fluent"]),
                "target": cell(others["accuracy_target"]),
            }
        )
    return out


def setting(report: Mapping[str, Any]) -> str:
    """One sentence on test set, judge and chosen point."""
    parts = []
    n_test = report.get("n_test_skeletons", report.get("n_test"))
    if n_test is not None:
        parts.append(f"{n_test:,} test scenarios")
    judge = report.get("judge") or {}
    if judge.get("name"):
        parts.append(f"judge {judge['name']}")
    chosen = report.get("chosen") or {}
    if "layers" in chosen and "dose" in chosen:
        place = f" of {chosen['site']}" if "site" in chosen else ""
        parts.append(f"steered at layers {style.layer_range(chosen['layers'])}{place}, dose {chosen['dose']:g}")
    return "; ".join(parts)


def cell(leaf: Any) -> str:
    """``93.1 % [91.9, 94.2]``; a dash where there is nothing."""
    return f"{style.percent(leaf, 1)} {bounds(leaf)}".strip() if leaf else "–"


def bounds(leaf: Any) -> str:
    """``[91.9, 94.2]``, in percent."""
    low, high = style.interval(leaf)
    return f"[{100 * low:.1f}, {100 * high:.1f}]".replace("-", "−") if low == low and high == high else ""


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested manifest as (dotted name, text) pairs."""
    out: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            out += flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            out.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            out.append((f"{prefix}{name}", "–" if value is None else str(value)))
    return out


def _model(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    for found in (report.get("model"), manifest.get("model"), manifest.get("model_id")):
        if isinstance(found, Mapping):
            found = found.get("name") or found.get("id") or found.get("model_id")
        if found:
            return str(found)
    return "an unnamed model"


def _lifts(report: Mapping[str, Any]) -> list[dict[str, str]]:
    found = style.lifts_of(report)
    return [
        {
            "method": m,
            "name": n,
            "value": _points(leaf),
            "interval": bounds(leaf),
            "p": _p(leaf.get("p")),
            "n": str(leaf.get("n", "–")),
        }
        for m in found
        for n, leaf in found[m].items()
    ]


def _points(leaf: Any) -> str:
    value = style.number(leaf)
    return f"{100 * value:+.1f} points".replace("-", "−") if value == value else "–"


def _p(p: Any) -> str:
    value = style.number(p)
    return "–" if value != value else f"{value:.2g}"
