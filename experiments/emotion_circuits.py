"""Emotion circuits, first part: find emotion directions in a model and steer unprompted text with them.

The method of EmotionCircuits (arXiv 2510.11328), sections 3 and 4, with the controls that it lacks:

1. The model answers the training scenarios in six emotions, each asked for in words; a judge reads the replies.
2. Activations at the last prompt token go into a labelled store.
3. Context-agnostic directions: within each scenario and valence centred over emotions, averaged, re-centred, normalised;
   fitted on three quarters of the training skeletons. Do they hold for a theme or a valence they never saw?
4. On the other quarter, doses and layer ranges are swept; the one with most fluent matches is chosen.
5. The test file is touched once: replies without an emotion asked (``none``), asked in words (``prompt``), steered
   (``steer``), steered along random directions of equal norm (``random_steer``) and along the direction of another
   emotion (``shuffled``).

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

import emotrace as et
from emotrace import directions as directions_
from emotrace import evaluation, judges, report, scoring, stats
from emotrace.datasets import Prompts
from emotrace.judges import measured
from emotrace.run import Run
from emotrace.runlog import Log, write_json, write_rows

DOSES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
"""Size of one addition as a share of ‖h‖: strength · RMS(h) · v̂ has the norm (strength / √d) · ‖h‖."""
HELD_OUT = 0.25
"""Share of the training skeletons on which dose and layers are chosen."""
MIN_WHOLE = 0.1
"""Below this share of complete accepted groups, directions are fitted on all replies, and the report warns."""


def main(
    model: Annotated[
        str, typer.Option(help="hub id or directory of a causal model with a chat template")
    ] = "data/tiny_model",
    train: Annotated[Path, typer.Option(help="SEV file to find directions on")] = Path("data/sev.jsonl"),
    test: Annotated[Path, typer.Option(help="SEV file to measure on, once")] = Path("data/test_set.jsonl"),
    judge: Annotated[str, typer.Option(help="lexicon | classifier:HF_ID_OR_DIR | openai[:MODEL]")] = "lexicon",
    out: Annotated[Path, typer.Option(help="folder for everything; the same command again continues")] = Path(
        "runs/emotion_circuits"
    ),
    limit: Annotated[int | None, typer.Option(help="skeletons per file, spread over themes")] = None,
    sweep_limit: Annotated[int, typer.Option(help="most held-out skeletons used per point of the sweep")] = 8,
    draws: Annotated[int, typer.Option(help="draws of each control")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of a reply")] = 60,
    batch_size: Annotated[int, typer.Option(help="prompts per batch")] = 32,
    target_aware: Annotated[
        bool, typer.Option(help="ask the published target-aware question as well (openai only)")
    ] = False,
    label_map: Annotated[str | None, typer.Option(help="of a classifier judge: LABEL_0=anger,LABEL_1=none")] = None,
    price: Annotated[
        str | None, typer.Option(help="of an openai judge: dollars per million prompt,completion tokens")
    ] = None,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Emotion directions and steering, from prompts to a judged report."""
    the_judge = judges.make(judge, **judges.flags(label_map, price))
    prompts = et.datasets.sev(train, limit=limit)
    asked = et.datasets.sev(test, limit=limit)
    if draws < 1:
        raise et.EmotraceError(f"--draws {draws}: at least 1 draw of each control.")
    lm = et.load(model, device=device, dtype=dtype)
    settings = {
        "experiment": "emotion_circuits", "model": lm.sites.identity, "template": lm.sites.encoder.record,
        "train": {"file": train.name, "digest": prompts.digest, "skeletons": _count(prompts)},
        "test": {"file": test.name, "digest": asked.digest, "skeletons": _count(asked)},
        "judge": the_judge.name, "label_map": label_map, "limit": limit, "sweep_limit": sweep_limit, "draws": draws,
        "max_new_tokens": max_new_tokens, "batch_size": batch_size, "target_aware": target_aware, "seed": seed,
        "doses": list(DOSES), "held_out": HELD_OUT,
    }  # fmt: skip
    run = Run(out, settings)
    study = Study(lm, the_judge, run, max_new_tokens, batch_size, target_aware)
    print(lm.sites.describe())

    # 1. Prompted replies to the training scenarios, judged.
    replies = study.replies("train_prompt", prompts, method="prompt")
    plain = et.datasets.sev(train, instruction=False, limit=limit)
    study.add_fluency(replies, plain)
    bounds = stats.fluency_bounds(replies)
    accepted = [row["key"] for row in replies if row["verdict"]["match"] == 1]
    print(f"prompted replies to the training file: {len(accepted)} of {len(replies)} express what was asked")

    # 2. Activations at the last prompt token.
    sites = [s for s in ("resid_mid", "resid_post") if lm.sites.has(s)]
    acts = et.capture(
        lm, prompts, sites, positions="last", out=run.path("activations.zarr"), batch_size=batch_size, seed=seed
    )

    # 3. Directions, and whether they are context-agnostic.
    fit, held = evaluation.split(prompts, HELD_OUT, seed)
    inside = {p.key for p in prompts if p.labels["skeleton_id"] in fit}
    fitted, notes = _fitted(replies, inside)
    dirs = directions_.centered_mean(acts, label="emotion", within=("skeleton_id", "valence"), accepted=fitted)
    directions_.save(dirs, run.path("directions"))
    agnosticism = directions_.context_agnosticism(acts, accepted=fitted, seed=seed)

    # 4. Dose and layers, chosen on held-out training skeletons.
    aimed = plain.where(skeleton_id=sorted(held)).limit(sweep_limit).for_each(emotion=et.EMOTIONS)
    sweep = study.sweep(aimed, plain, dirs, bounds)
    chosen = max(sweep, key=lambda point: (point["accuracy_fluent"], point["accuracy"], -point["dose"]))
    print(f"chosen on {_count(aimed)} held-out training skeletons: layers {chosen['layers']}, dose {chosen['dose']}")

    # 5. The test file, once.
    rows = study.test(asked, et.datasets.sev(test, instruction=False, limit=limit), dirs, chosen, draws, seed)
    study.add_fluency(rows, et.datasets.sev(test, instruction=False, limit=limit))
    evaluation.mark_fluent(rows, bounds)
    result = evaluation.summary(rows)
    result["fluency"]["bounds"] = {k: list(v) for k, v in bounds.items()}
    result |= {
        "judge": {"name": the_judge.name, "usage": getattr(the_judge, "usage", None)},
        "model": lm.sites.identity, "n_train_skeletons": _count(prompts), "n_test_skeletons": _count(asked),
        "accepted_train": {"value": len(accepted) / len(replies), "n": len(replies)},
        "directions": {"n_groups": dirs.attrs.get("n_groups"), "fitted_on": len(fit), "chosen_on": len(held)},
        "sweep": sweep, "chosen": {**chosen, "site": "resid_post"}, "layer_profile": _profile(acts),
        "dose_unit": "share of the activation's norm", "warnings": notes + _warnings(lm, the_judge),
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    write_json(
        run.path("accuracy_stats.json"),
        evaluation.published_stats([r for r in rows if r["method"] == "prompt"], test.stem),
    )
    write_rows(run.path("generations.jsonl"), rows)
    run.finish()
    page = report.write(run.out, result, rows, directions=dirs, agnosticism=agnosticism, manifest=run.manifest)
    for method, table in result["accuracy_fluent"].items():
        low, high = table["overall"]["ci95"]
        blind = result["accuracy"][method]["overall"]["value"]
        print(
            f"{method:>13}: {blind:6.1%} express the emotion, {table['overall']['value']:6.1%} fluently [{low:.1%}, {high:.1%}]"
        )
    print(f"report: {page}")


class Study:
    """One model, one judge, one folder: what every stage shares."""

    def __init__(self, lm: Any, judge: Any, run: Run, max_new_tokens: int, batch_size: int, target_aware: bool) -> None:
        self.lm, self.judge, self.run = lm, judge, run
        self.max_new_tokens, self.batch_size, self.target_aware = max_new_tokens, batch_size, target_aware

    def replies(self, name: str, prompts: Prompts, method: str, edits: Any = (), draw: int = 0) -> list[dict[str, Any]]:
        """Generated and judged rows; both logs resume."""
        rows = et.generate(
            self.lm, prompts, edits, method=method, draw=draw, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size,
            out=self.run.path("parts", f"{name}.jsonl"),
        )  # fmt: skip
        return self.judged(name, rows)

    def judged(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with verdicts, where an emotion was aimed at."""
        log = Log(self.run.path("parts", f"{name}.verdicts.jsonl"))
        return judges.judge_rows(rows, self.judge, log=log, target=self.target_aware)

    def add_fluency(self, rows: list[dict[str, Any]], plain: Prompts) -> None:
        """Perplexity of every reply under the un-edited model, after the prompt without the emotion sentence."""
        scoring.add_perplexity(self.lm, rows, {p.key: p for p in plain}, self.batch_size)
        for row in rows:
            row["meta"]["repetition"] = stats.repetition(row["token_ids"])
            row["meta"]["length"] = len(row["token_ids"])

    def steering(self, dirs: xr.DataArray, layers: list[int], dose: float) -> list[Any]:
        """One addition per layer at ``resid_post``, last prompt token and every generated one."""
        strength = dose * math.sqrt(self.lm.sites.d_model)
        return [et.Add("resid_post", layers=layers, vector=dirs, strength=strength, scale="rms", positions="steer")]

    def sweep(self, aimed: Prompts, plain: Prompts, dirs: xr.DataArray, bounds: Any) -> list[dict[str, Any]]:
        """Accuracy and fluency of every dose and layer range, on held-out training skeletons."""
        points = []
        for layers in evaluation.layer_windows(self.lm.sites.n_layers):
            for dose in DOSES:
                name = f"sweep_{layers[0]}-{layers[-1]}_{dose}"
                rows = self.replies(name, aimed, "steer", self.steering(dirs, layers, dose))
                self.add_fluency(rows, plain)
                evaluation.mark_fluent(rows, bounds)
                blind, both = evaluation.accuracy(rows)["overall"], evaluation.accuracy(rows, fluent=True)["overall"]
                known = sorted(r["meta"]["perplexity"] for r in rows if r["meta"]["perplexity"] is not None)
                points.append(
                    {
                        "layers": layers, "dose": dose, "strength": dose * math.sqrt(self.lm.sites.d_model),
                        "accuracy": blind["value"], "accuracy_fluent": both["value"], "ci95": both["ci95"],
                        "perplexity": known[len(known) // 2] if known else None, "n": blind["n"],
                    }
                )  # fmt: skip
        return points

    def test(
        self, asked: Prompts, plain: Prompts, dirs: xr.DataArray, chosen: dict[str, Any], draws: int, seed: int
    ) -> list[dict[str, Any]]:
        """Replies to the test file under every method."""
        layers, dose = chosen["layers"], chosen["dose"]
        aimed = plain.for_each(emotion=et.EMOTIONS)
        once = {row["key"]: row for row in et.generate(
            self.lm, plain, method="none", max_new_tokens=self.max_new_tokens, batch_size=self.batch_size,
            out=self.run.path("parts", "none.jsonl"),
        )}  # fmt: skip
        none = [{**once[p.key.rsplit("__", 1)[0]], "key": p.key, **p.labels} for p in aimed]
        none = [{**row, "meta": dict(row["meta"])} for row in none]
        rows = self.judged("none", none)
        rows += self.replies("prompt", asked, "prompt")
        rows += self.replies("steer", aimed, "steer", self.steering(dirs, layers, dose))
        for method, control in (("random_steer", evaluation.random_like), ("shuffled", evaluation.deranged)):
            for draw in range(draws):
                vectors = control(dirs, seed + 1 + draw)
                rows += self.replies(f"{method}_{draw}", aimed, method, self.steering(vectors, layers, dose), draw)
        return rows


def _fitted(replies: list[dict[str, Any]], inside: set[str]) -> tuple[list[str], list[str]]:
    """Keys to fit directions on: accepted replies of the fitting part, or all of them where too few groups are whole."""
    rows = [row for row in replies if row["key"] in inside]
    keys = directions_.accepted(rows)
    groups = len({(row["skeleton_id"], row["valence"]) for row in rows})
    good = [row for row in rows if row["key"] in set(keys)]
    whole = len(directions_.complete_groups(good, "emotion", ("skeleton_id", "valence"))[0]) if good else 0
    if whole >= max(2, MIN_WHOLE * groups):
        return keys, []
    note = (
        f"only {whole} of {groups} scenarios × valences have six accepted prompted replies, so directions were fitted on "
        "all replies, accepted or not: this model hardly expresses the emotions it is asked for"
    )
    return sorted(inside), [note]


def _profile(acts: Any) -> list[dict[str, Any]]:
    """Mean RMS of the activations by layer and sublayer."""
    sigma = directions_.mean_rms(acts)
    return [
        {"layer": int(layer), "sublayer": str(site), "rms": float(sigma.sel(layer=layer, sublayer=site))}
        for layer in sigma["layer"].values
        for site in sigma["sublayer"].values
    ]


def _count(prompts: Prompts) -> int:
    return len({p.labels["skeleton_id"] for p in prompts})


def _warnings(lm: Any, judge: Any) -> list[str]:
    shipped = lm.sites.identity["model_id"] == "tiny_model"
    found = [measured.statement(judge.name), None if shipped else measured.warning(judge.name)]
    if shipped:
        found.append(
            "the shipped tiny model is for teaching and testing, trained on synthetic text: its numbers are no findings"
        )
    return [text for text in found if text]


if __name__ == "__main__":
    et.cli.experiment(main)
