"""Page: one HTML file that shows a run; everything that comes from a model or a file is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd
import xarray as xr

from emotrace.bundles import replace_file
from emotrace.labels import EmotraceError
from emotrace.replies import Row
from emotrace.report import components, figures, style, tables
from emotrace.report.figures import Shown
from emotrace.report.numbers import headlines, lifts, paired, published, scores
from emotrace.report.parts import CircuitParts
from emotrace.report.samples import samples
from emotrace.signatures import typed
from emotrace.texts import as_bytes

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


@typed
def write(
    out_dir: str | Path,
    report: Mapping[str, Any],
    rows: Iterable[Row] = (),
    directions: xr.DataArray | None = None,
    agnosticism: xr.Dataset | None = None,
    manifest: Mapping[str, Any] | None = None,
    command: str = "",
    *,
    circuits: Mapping[str, Any] | CircuitParts | None = None,
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
        circuits: `CircuitParts`, or a mapping of its fields: circuit, contributions, curves, influence and what else there is.
        groups: how many scenarios are shown side by side.
        seed: which ones: drawn without looking at the replies.

    Returns:
        The path of report.html.

    Raises:
        EmotraceError: if ``out_dir`` is a file; for a part of ``circuits`` that is unknown or lacks what its figure needs.
    """
    parts = CircuitParts.of(circuits)
    out = Path(out_dir)
    if out.exists() and not out.is_dir():
        raise EmotraceError(f"report.write(out_dir={str(out)!r}): that is a file; give a folder.")
    out.mkdir(parents=True, exist_ok=True)
    shown = figures.draw(report, directions, agnosticism, parts)
    for one in shown:
        figures.save(one.figure, out / "figures" / f"{one.name}.png")
    files = tables.write(out / "tables", report, agnosticism, parts)
    names = [f.name for f in files]
    html = render(report, rows, shown, names, manifest, command, circuits=parts, groups=groups, seed=seed)
    replace_file(out / "report.html", as_bytes(html))
    return out / "report.html"


@typed
def publish(
    out: Path, result: Mapping[str, Any], shown: Sequence[Shown], tables: Mapping[str, pd.DataFrame],
    manifest: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Figures as PNG, tables as CSV, and the page that shows them.

    Args:
        out: folder of the run.
        result: content of report.json; its ``warnings`` and ``model`` head the page.
        shown: figures with names and captions.
        tables: name → table.
        manifest: of the run.

    Returns:
        The path of report.html.
    """
    for one in shown:
        style.save(one.figure, out / "figures" / f"{one.name}.png")
    for name, table in tables.items():
        replace_file(out / "tables" / f"{name}.csv", as_bytes(table.to_csv(index=False)))
    page = render(result, (), shown, [f"{name}.csv" for name in tables], manifest)
    replace_file(out / "report.html", as_bytes(page))
    return out / "report.html"


@typed
def render(
    report: Mapping[str, Any],
    rows: Iterable[Row] = (),
    shown: Sequence[Shown] = (),
    files: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
    command: str = "",
    *,
    circuits: Mapping[str, Any] | CircuitParts | None = None,
    groups: int = 6,
    seed: int = 0,
) -> str:
    """The page as text; figures and tables are named by relative path. Arguments as `write`."""
    manifest, parts = manifest or {}, CircuitParts.of(circuits)
    return _ENV.get_template("page.html").render(
        model=_model(report, manifest),
        when=manifest.get("finished") or manifest.get("started") or "",
        notices=notices(report),
        headlines=headlines(report),
        published=published(report),
        scores=scores(report),
        setting=setting(report),
        lifts=lifts(report),
        paired=paired(report),
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
        tokens=components.token_rows(parts.tokens),
        prompts=components.prompt_rows(parts.top_prompts),
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
        where = f", positions {chosen['positions']!r}" if "positions" in chosen else ""
        parts.append(
            f"steered at layers {style.layer_range(chosen['layers'])}{place}{where}, dose {chosen['dose']:.3g}"
        )
    circuit = report.get("chosen_circuit") or {}
    if "lambda" in circuit:
        both = dict.fromkeys(str(circuit[k]) for k in ("neuron_positions", "head_positions") if k in circuit)
        parts.append(f"circuit with λ = {circuit['lambda']:.3g}, positions {' and '.join(map(repr, both))}")
    return "; ".join(parts)


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
