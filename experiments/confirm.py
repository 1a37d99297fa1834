"""Confirm: what a finished study fitted and chose, answered once on scenarios that nothing was chosen on.

Directions, circuit, settings, openings and judges are those of the study (``emotion_circuits.py``), which is only read. The
replies and their claims go into a record of a few lines, to be committed: which model (its weights), which data (their digest),
which commit, when. A model whose record is there is not asked again, and uncommitted changes are refused, so that
neither code nor data can be fitted to what came out.

    python experiments/confirm.py --study runs/study --model data/tiny_model
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import circuit_arms
import circuit_protocol
import typer
from circuit_chosen import Chosen, answered
from circuit_study import Study

import emotrace as et
from emotrace import attribution, datasets, disk, provenance, replies
from emotrace import directions as directions_
from emotrace.cli.groups import Judging, LoadingAnywhere, grouped
from emotrace.cli.options import CausalModel
from emotrace.files import read_json
from emotrace.judges import measured
from emotrace.labels import COMPONENTS, KINDS, EmotraceError
from emotrace.sites import LanguageModel

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "experiments" / "confirmed"
SHOWN = ("accuracy", "accuracy_fluent", "accuracy_from_third")
"""Parts of a report of which a record has what all replies of an arm come to."""


@grouped
def main(
    *,
    study: Annotated[Path, typer.Option(help="folder of a finished run of emotion_circuits")] = Path("runs/study"),
    model: CausalModel = "data/tiny_model",
    data: Annotated[Path, typer.Option(help="SEV file that nothing was chosen on")] = Path("data/confirm_set.jsonl"),
    judging: Judging,
    second_judge: Annotated[str | None, typer.Option(help="as the study had it")] = None,
    loading: LoadingAnywhere,
) -> None:
    """The frozen choice of a study, confirmed once; writes experiments/confirmed/MODEL-WEIGHTS.json, to be committed."""
    manifest, report = _finished(study)
    record = refuse_again(manifest["model"])
    commit = committed(ROOT)
    skeletons = et.datasets.read_sev(data)
    for name in ("generations.jsonl", "parts/train_prompt.jsonl"):
        rows = [row for _, row in datasets.read_jsonl(study / name)]
        known = {
            i: datasets.Skeleton(i, row["theme"], row["scenario"], {}) for row in rows for i in [row["skeleton_id"]]
        }
        datasets.refuse_shared(skeletons, known.values(), f"--data {data}", f"the study in {study}")
    judge = judging.make()
    tester = et.judges.make(second_judge) if second_judge else judge
    _same("--judge", judge.name, manifest["judge"])
    _same("--second-judge", tester.name if second_judge else None, manifest["second_judge"])
    preset = manifest["preset"]
    lm = loading.load(model, **circuit_protocol.encoding(preset))
    if not provenance.same(manifest["model"], lm.sites.identity):
        raise EmotraceError(f"--model {model}: the study in {study} was made with other weights.")
    protocol = (
        circuit_protocol.published(preset, lm) if preset else circuit_protocol.ours(lm, manifest["max_new_tokens"])
    )
    way = _way(report["elicitation"], manifest["elicit"])
    again = Study(
        lm, judge, study / "confirm", batch_size=manifest["batch_size"], target=manifest["target_aware"],
        protocol=circuit_protocol.ended(protocol, way.stop), bounds=report["fluency"]["bounds"],
    )  # fmt: skip
    asked, plain = (et.datasets.sev(data, instruction=i, elicit=way) for i in (True, False))
    print(f"{len(asked):,} prompts of {len(skeletons)} skeletons, {3 + len(manifest['arms'])} arms")
    chosen = frozen(study, lm, manifest, report)
    rows = answered(again, manifest["arms"], asked, plain, chosen, manifest["draws"], manifest["seed"], tester)
    verdict = "verdict_second" if second_judge else "verdict"
    doubt = measured.doubt(tester, lm.sites.identity)
    claims, _ = replies.claims(rows, doubt=doubt, verdict=verdict, seed=manifest["seed"])
    summary = replies.summary(rows)
    disk.write_rows(study / "confirm" / "generations.jsonl", rows)
    found = {
        "model": {key: manifest["model"].get(key) for key in ("model_id", "revision", "config_hash", "weights_hash")},
        "data": {"file": data.name, "digest": asked.digest, "sha256": _sha256(data), "skeletons": len(skeletons)},
        "commit": commit, "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "study": {
            "report": _sha256(study / "report.json"), "circuit": chosen.circuit.digest, "steering": report["chosen"],
            "modulation": report["chosen_circuit"], "elicitation": way.record,
        },
        "judge": judge.name, "second_judge": tester.name if second_judge else None,
        **{score: {arm: table["overall"] for arm, table in summary[score].items()} for score in SHOWN},
        "claims": [{key: one[key] for key in ("name", "holds", "sentence", "tests")} for one in claims],
    }  # fmt: skip
    disk.write_json(record, found)
    for arm, leaf in found["accuracy_fluent"].items():
        lo, hi = leaf["ci95"]
        blind = found["accuracy"][arm]["value"]
        print(f"{arm:>14}: {blind:6.1%} express the emotion, {leaf['value']:6.1%} fluently [{lo:.1%}, {hi:.1%}]")
    for claim in claims:
        print(claim["sentence"])
    print(f"record, to be committed: {record}")


def _finished(study: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and report of a study that has ended."""
    try:
        manifest, report = (dict(read_json(study / name)) for name in ("manifest.json", "report.json"))
    except (EmotraceError, OSError) as error:
        raise EmotraceError(f"--study {study}: no finished run of emotion_circuits is there ({error}).") from error
    if manifest.get("experiment") != "emotion_circuits" or "finished" not in manifest or "trial" not in report:
        raise EmotraceError(
            f"--study {study}: not a run of emotion_circuits, or not finished, or of an earlier version."
        )
    return manifest, report


def refuse_again(model: dict[str, Any]) -> Path:
    """The record that a model will have.

    Raises:
        EmotraceError: for a model that has one, under whatever name.
    """
    for path in sorted(RECORDS.glob("*.json")):
        before = read_json(path)
        if before["model"]["weights_hash"] == model["weights_hash"]:
            raise EmotraceError(
                f"{model['model_id']}: confirmed before, on {before['date']} at {before['commit'][:9]} ({path}). A confirmatory "
                "file answers once a model; other choices want other data."
            )
    return RECORDS / f"{Path(model['model_id']).name}-{model['weights_hash']}.json"


def committed(root: Path) -> str:
    """The commit that a checkout stands at, nothing in it being changed or new.

    Raises:
        EmotraceError: outside a git checkout, and for changes that are not committed.
    """

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise EmotraceError(
                f"confirm: {root} is no git checkout, so that no commit can stand in the record."
            ) from error
        return done.stdout

    changed = git("status", "--porcelain").splitlines()
    if changed:
        some = ", ".join(line[3:] for line in changed[:3])
        raise EmotraceError(f"confirm: {len(changed)} files here are changed and not committed ({some}). Commit first.")
    return git("rev-parse", "HEAD").strip()


def frozen(study: Path, lm: LanguageModel, manifest: dict[str, Any], report: dict[str, Any]) -> Chosen:
    """What the study fitted and chose, read from its folder."""
    circuit = et.Circuit.load(study / "circuit")
    scores = {
        f"{kind}s": attribution.load_scores(study / "circuit" / kind, f"{kind}s")
        for kind in KINDS
        if lm.sites.has(COMPONENTS[kind].site)
    }
    openings = {
        arm: {
            emotion: replies.Opening(tuple(one["token_ids"]), one["share"], one["n"], one["accepted"])
            for emotion, one in of.items()
        }
        for arm, of in report["openings"].items()
    }
    controls = circuit_arms.tuned(tuple(manifest["arms"]), circuit, scores, manifest["seed"])
    return Chosen(
        directions_.load(study / "directions"), report["chosen"], circuit, report["chosen_circuit"], openings,
        {name: (one, report["chosen_tuned"][name]) for name, one in controls.items()},
        et.open_activations(study / "activations.zarr").where(skeleton_id=report["trial"]),
    )  # fmt: skip


def _way(record: dict[str, Any], asked: str) -> datasets.Elicitation:
    """The way to ask that the study took."""
    name = record["chosen"]
    way = next((one for one in datasets.elicitations(asked) if one.name == name), None)
    if way is None or way.digest != record[name]["digest"]:
        raise EmotraceError(
            f"the way {name!r} in which the study asked is not here as it was ({record[name]['digest']})."
        )
    return way


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same(flag: str, given: str | None, before: str | None) -> None:
    if given != before:
        raise EmotraceError(f"{flag}: the study was judged by {before!r}, not by {given!r}.")


if __name__ == "__main__":
    et.cli.experiment(main)
