"""Page: one HTML file that shows a run, pictures and replies inside; everything that comes from a model or a file is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd
import xarray as xr
from markupsafe import Markup

from emotrace import disk
from emotrace.labels import EmotraceError, filenames
from emotrace.replies import Row
from emotrace.report import components, explorer, figures, numbers, saved, style, tables
from emotrace.report.figures import Shown
from emotrace.report.numbers import Grid
from emotrace.report.parts import CircuitParts
from emotrace.signatures import typed
from emotrace.texts import as_bytes

TEACHING: Final = (
    "This is the teaching and test model shipped with emotrace: small, and trained on synthetic text written for the project. "
    "Its numbers show that the method works from end to end; they say nothing about language models at large."
)
SPELT: Final = {"kl": "KL", "rsa": "RSA", "truthfulqa": "TruthfulQA"}
"""Words of tables' names that are not written as they are read."""
BELOW: Final = 0.70
_ENV: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("emotrace.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def pieces(cell: str) -> Markup:
    """A cell of numbers that may be broken before its interval and before its n, nowhere else."""
    parts = re.split(r" (?=\[)|(?<=\],) ", cell)
    return (
        Markup("<span>")
        + Markup(" ").join(Markup('<span class="whole">{}</span>').format(p) for p in parts)
        + Markup("</span>")
    )


_ENV.filters["pieces"] = pieces
Table = pd.DataFrame | tuple[pd.DataFrame, str]
"""Of the folder; with a caption, of the page too."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says beside the figures and tables of a run.

    Attributes:
        title: of the page; by default it names the model.
        facts: sentences at the top.
        replies: rows of generations.jsonl: all of them are on the page, to be filtered and compared.
        projections: of `explorer.data`: what is shown at the tokens of replies.
        circuits: whose tokens and prompts are shown.
        seed: of the order of the replies' prompts, drawn without looking at any reply.
    """

    title: str = ""
    facts: Sequence[str] = ()
    replies: Iterable[Row] = ()
    projections: Mapping[str, xr.DataArray] = field(default_factory=dict)
    circuits: CircuitParts = field(default_factory=CircuitParts)
    seed: int = 0


@typed
def write(
    out_dir: str | Path,
    report: Mapping[str, Any],
    rows: Iterable[Row] = (),
    directions: xr.DataArray | None = None,
    agnosticism: xr.Dataset | None = None,
    manifest: Mapping[str, Any] | None = None,
    *,
    circuits: Mapping[str, Any] | CircuitParts | None = None,
    projections: Mapping[str, xr.DataArray] | None = None,
    seed: int = 0,
) -> Path:
    """Write ``report.html`` of a run, whole by itself, ``figures/`` and ``tables/*.csv``; absent parts are left out.

    Args:
        out_dir: folder of the run.
        report: content of report.json.
        rows: of generations.jsonl; the page holds all replies.
        directions: of `directions.centered_mean`.
        agnosticism: of `directions.context_agnosticism`.
        manifest: content of manifest.json.
        circuits: `CircuitParts`, or a mapping of its fields: circuit, contributions, curves, influence and what else there is.
        projections: method → ``[token]`` of `directions.project` at the tokens of its replies, shown there.
        seed: of the order of the replies' prompts, drawn without looking at any reply.

    Returns:
        The path of report.html.

    Raises:
        EmotraceError: if ``out_dir`` is a file; for a part of ``circuits`` that is unknown or lacks what its figure needs.
    """
    parts, out = CircuitParts.of(circuits), Path(out_dir)
    if out.exists() and not out.is_dir():
        raise EmotraceError(f"report.write(out_dir={str(out)!r}): that is a file; give a folder.")
    shown = figures.draw(report, directions, agnosticism, parts)
    frames = tables.frames(report, agnosticism, parts)
    page = Page(circuits=parts, replies=rows, projections=projections or {}, seed=seed)
    return publish(out, report, shown, frames, manifest or {}, page)


@typed
def publish(
    out: Path, result: Mapping[str, Any], shown: Sequence[Shown], tables: Mapping[str, Table], manifest: Mapping[str, Any],
    page: Page | None = None,
) -> Path:  # fmt: skip
    """Figures as PNG, SVG and PDF, tables as CSV, and the page that holds them; what a model or a file said is escaped.

    Args:
        out: folder of the run.
        result: content of report.json; its ``warnings`` and ``model`` head the page, and what `numbers` knows of it follows.
        shown: figures with their names.
        tables: name → table, or (table, caption) of one that the page shows.
        manifest: of the run.
        page: what else it says.

    Returns:
        The path of report.html.

    Raises:
        EmotraceError: for names of figures or tables that are no file names, or that are one.
    """
    for names in ([one.name for one in shown], list(tables)):
        filenames(names, str(out))
    files = {one.name: saved.every(one.figure) for one in shown}
    pictures = [_picture(one, files[one.name]["svg"]) for one in shown]
    text = _text(result, pictures, tables, manifest, page or Page())
    for name, endings in files.items():
        for ending, content in endings.items():
            disk.replace_file(out / "figures" / f"{name}.{ending}", content)
    for name, table in tables.items():
        frame = table[0] if isinstance(table, tuple) else table
        written = frame.to_csv(index=False, lineterminator="\n")
        disk.replace_file(out / "tables" / f"{name}.csv", as_bytes(written))
    disk.replace_file(out / "report.html", as_bytes(text))
    return out / "report.html"


@typed
def render(
    report: Mapping[str, Any],
    shown: Sequence[Shown] = (),
    tables: Mapping[str, Table] | None = None,
    manifest: Mapping[str, Any] | None = None,
    page: Page | None = None,
) -> str:
    """The page as text, its figures and replies inside.

    Args:
        report: content of report.json.
        shown: figures with their names.
        tables: name → table, or (table, caption) of one that the page shows.
        manifest: of the run; its ``command`` repeats it.
        page: what else it says.
    """
    pictures = [_picture(one, saved.drawn(one.figure, "svg")) for one in shown]
    return _text(report, pictures, tables or {}, manifest or {}, page or Page())


def _text(
    report: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]], tables: Mapping[str, Table], manifest: Mapping[str, Any],
    page: Page,
) -> str:  # fmt: skip
    model = _model(report, manifest)
    return _ENV.get_template("page.html").render(
        title=page.title or f"Emotion in {model}",
        name=page.title or model,
        when=manifest.get("finished") or manifest.get("started") or "",
        setting=setting(report),
        facts=page.facts,
        notices=notices(report),
        headlines=numbers.headlines(report),
        published=numbers.published(report),
        claims=numbers.claims(report, [one["name"] for one in pictures]),
        grids=numbers.grids(report),
        figures=pictures,
        tokens=components.token_rows(page.circuits.tokens),
        prompts=components.prompt_rows(page.circuits.top_prompts),
        reply_tokens=components.token_lines(page.circuits.reply_tokens),
        replies_read=(report.get("reply_tokens") or {}).get("of", "replies"),
        replies=explorer.data(page.replies, page.seed, page.projections),
        shown=[*_tables(tables), *numbers.fluency(report)],
        files=[f"{name}.csv" for name in tables],
        manifest=flat({k: v for k, v in manifest.items() if k != "command"}),
        command=str(manifest.get("command", "")),
        look=_beside("page.css"),
        script=_beside("page.js"),
    )


def _beside(name: str) -> Markup:
    """A file of this room that stands in the page as it is."""
    return Markup(Path(__file__).with_name(name).read_text("utf-8"))


def _picture(one: Shown, svg: bytes) -> dict[str, Any]:
    claim = style.claim(one.figure)
    return {
        "name": one.name,
        "src": saved.inside(svg),
        "heading": one.heading or claim,
        "caption": one.figure.caption,
        "alt": f"{one.heading}: {claim}." if one.heading else claim,
        "pixels": [round(i * style.DPI) for i in one.figure.get_size_inches()],
    }


def _tables(tables: Mapping[str, Table]) -> list[Grid]:
    """Those that have a caption."""
    return [
        Grid(
            table[1],
            list(map(str, table[0].columns)),
            [[_cell(v) for v in row] for row in table[0].itertuples(index=False)],
            _heading(name),
        )
        for name, table in tables.items()
        if isinstance(table, tuple)
    ]


def _heading(name: str) -> str:
    """Of the table with this name."""
    words = " ".join(SPELT.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if not math.isfinite(value) else f"{value:.3g}"
    return str(value)


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
        parts.append(f"{n_test:,} test skeletons")
    judge = report.get("judge") or {}
    if judge.get("name"):
        parts.append(f"judge {judge['name']}" + (f", tested by {judge['second']}" if judge.get("second") else ""))
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
