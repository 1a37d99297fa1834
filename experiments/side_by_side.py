"""Finished runs of ``emotion_circuits.py`` on several models, one column each: what holds beyond one of them, and what does not.

Rows: how the models take being asked; whether directions found on some themes tell emotions apart on others; where directions
are largest beside the stream (‖mean of an emotion − mean of all‖ / (RMS of the stream · √d), a share of the depth); every arm's
share of replies that express the emotion fluently; paired differences with Holm's p; areas under frontiers. Shares are of the
judge that tests, where there are two. Nothing is tested between models, which answer prompts of their own.

    python experiments/side_by_side.py runs/real-study/smollm2 runs/other --name "135 M" --name "0.5 B"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer

import emotrace as et
from emotrace import cli
from emotrace.files import read_json
from emotrace.labels import EmotraceError
from emotrace.stats.permutation import p_said

PAIRS = (
    ("circuit", "steer"),
    ("circuit", "prompt"),
    ("circuit", "random_tuned"),
    ("circuit", "random_circuit"),
    ("circuit", "shared_set"),
)


class Finished(NamedTuple):
    """One run.

    Attributes:
        name: of its column.
        report: ``report.json``.
        agnosticism: its table.
        depth: share of the depth at which directions are largest beside the stream, and how large.
    """

    name: str
    report: dict[str, Any]
    agnosticism: pd.DataFrame
    depth: tuple[float, float]

    @classmethod
    def read(cls, folder: Path, name: str | None) -> Finished:
        """A run's folder.

        Raises:
            EmotraceError: for a folder without a finished run.
        """
        needed = [
            folder / "report.json",
            folder / "tables" / "agnosticism.csv",
            folder / "tables" / "layer_profile.csv",
        ]
        for path in needed:
            if not path.exists():
                raise EmotraceError(
                    f"{folder}: {path.name} is not there, so no finished run of emotion_circuits.py is."
                )
        report = dict(read_json(needed[0]))
        if lacking := {"model", "elicitation", "chosen", "chosen_circuit", "frontiers", "paired"} - set(report):
            raise EmotraceError(
                f"{needed[0]}: no report of emotion_circuits.py as it writes them now: nothing of {', '.join(sorted(lacking))}."
            )
        return cls(name or report["model"]["model_id"], report, pd.read_csv(needed[1]), _depth(folder, needed[2]))


def main(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs of emotion_circuits.py")],
    name: Annotated[
        list[str] | None, typer.Option(help="of each column, in the same order; default the models'")
    ] = None,
) -> None:
    """Print the table, in Markdown."""
    if not runs:
        raise EmotraceError(
            "side_by_side.py FOLDER …: name at least one folder of a finished run of emotion_circuits.py."
        )
    if name and len(name) != len(runs):
        raise EmotraceError(f"--name was given {len(name)} times for {len(runs)} runs; once for each, or not at all.")
    found = [Finished.read(run, one) for run, one in zip(runs, name or [None] * len(runs), strict=True)]
    columns = [_lines(one) for one in found]
    print(f"| | {' | '.join(one.name for one in found)} |\n|---|{'---|' * len(found)}")
    for line in dict.fromkeys(line for column in columns for line in column):
        print(f"| {line} | {' | '.join(column.get(line, '–') for column in columns)} |")


def _lines(one: Finished) -> dict[str, str]:
    report = one.report
    chosen, circuit, asked = report["chosen"], report["chosen_circuit"], report["accepted_train"]
    lines = {
        "test skeletons; replies an arm": f"{report['n_test_skeletons']}; {report['accuracy']['prompt']['overall']['n']}",
        "judges": " / ".join(
            str(report["judge"][k]).removeprefix("fitted:") for k in ("name", "second") if k in report["judge"]
        ),
        f"asked by {report['elicitation']['chosen']}, accepted": _share(asked),
        "… by emotion": ", ".join(f"{e} {100 * leaf['value']:.0f}" for e, leaf in asked["by_emotion"].items()),
    }
    for factor in ("theme", "valence"):
        of = one.agnosticism.query("factor == @factor and level == 'all' and sublayer == 'resid_post'")
        if len(of):
            lines[f"emotions told apart on another {factor}: first, median, last layer"] = " ".join(
                f"{of.sort_values('layer')['accuracy'].iloc[i]:.2f}" for i in (0, len(of) // 2, -1)
            )
    lines["directions largest beside the stream at depth"] = f"{one.depth[0]:.0%} ({one.depth[1]:.2f})"
    lines["steering: layers, dose"] = f"{chosen['layers'][0]}–{chosen['layers'][-1]}, {chosen['dose']:g}"
    lines["circuit: λ"] = f"{circuit['lambda']:g}"
    tested = "accuracy_second_fluent" if "second" in report["judge"] else "accuracy_fluent"
    lines |= {f"`{arm}`": _share(leaf["overall"]) for arm, leaf in report[tested].items()}
    if "payload" in report.get("wrong_payload", {}):
        lines["`wrong_payload`, read as the payload's"] = _share(report["wrong_payload"]["payload"])
    tests = {(t["a"], t["b"], t["score"], "kl" in t): t for t in report["paired"]}
    for a, b in PAIRS:
        for at_kl in (False, True):
            if test := tests.get((a, b, "accuracy_fluent", at_kl)):
                lines[f"{a} − {b}{' at equal KL' if at_kl else ''}"] = _difference(test)
    area = report.get("frontiers_second", report["frontiers"])["area"]
    lines["area against KL"] = ", ".join(f"{arm} {of['kl']['value']:.2f}" for arm, of in area.items())
    return lines


def _share(leaf: Mapping[str, Any]) -> str:
    lo, hi = leaf["ci95"]
    return f"{100 * leaf['value']:.1f} [{100 * lo:.1f}, {100 * hi:.1f}]"


def _difference(test: Mapping[str, Any]) -> str:
    lo, hi = test["ci95"]
    said = p_said(test["p_holm"], test["p_holm"] if test["p"] <= test["p_floor"] else 0.0)
    return f"{100 * test['difference']:+.1f} [{100 * lo:+.1f}, {100 * hi:+.1f}], p {said}"


def _depth(folder: Path, profile: Path) -> tuple[float, float]:
    """Share of the depth at which the directions, as long as they were found, are largest beside the stream, and that ratio."""
    norm = et.directions.load(folder / "directions")["norm"].sel(sublayer="resid_post")
    mean = norm.mean([str(d) for d in norm.dims if d != "layer"])
    rms = pd.read_csv(profile).query("sublayer == 'resid_post'").set_index("layer")["rms"]
    width = et.directions.load(folder / "directions").sizes["dim"]
    ratio = mean.values / (np.asarray(rms.reindex(mean["layer"].values)) * np.sqrt(width))
    at = int(np.argmax(ratio))
    return (at + 1) / len(ratio), float(ratio[at])


if __name__ == "__main__":
    cli.experiment(main)
