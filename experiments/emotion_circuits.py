"""Emotion circuits: find where a model computes emotion, and control what it expresses by acting there.

The method of EmotionCircuits (arXiv 2510.11328), with the controls that it lacks:

1. The model answers the training scenarios in six emotions, each asked for in words; a judge reads the replies. How it is asked
   (an instruction, worked examples) is what it takes best on a few of them.
2. Activations at the last prompt token go into a labelled store: one capture, which the next steps ask.
3. Context-agnostic directions: within each scenario and valence centred over emotions, averaged, re-centred, normalised;
   fitted on three quarters of the training skeletons. Do they hold for a theme or a valence they never saw?
4. Asked of that store, without another forward: neurons and heads are ranked by what they contribute to their emotion's
   direction, more than to the others'; the best of each layer, with the difference of their activations, are that emotion's
   circuit. Which sublayers matter? At which tokens of accepted replies are these neurons highest?
5. On the other quarter: does ablating the best k components lower the projection, and adding them raise it, and do others
   not? Doses, layer ranges and positions of steering, and strengths and positions of the circuit, are searched there by
   successive halving; the one with most fluent matches is chosen. KL from the un-edited model says what each costs.
6. The test file is touched once: replies without an emotion asked (``none``), asked in words (``prompt``), steered
   (``steer``), with the circuit added (``circuit``), and what these are held against (``circuit_arms.py``): openings alone,
   other directions, other components, another payload, one set for all emotions, components taken away.
7. What may be said of it: each claim is tested, paired over skeletons and corrected over all of them, and what does not hold
   is printed as not shown. What each method reaches at every dose is set against fluency and KL.

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import circuit_arms
import circuit_budget
import circuit_chosen
import circuit_curves
import circuit_mediation
import circuit_plan
import circuit_prompts
import circuit_protocol
import circuit_refits
import typer
from circuit_study import TRAINING, Study, comparison

import emotrace as et
from emotrace import acceptance, attribution, circuits, replies, report, shipped
from emotrace import directions as directions_
from emotrace.cli.groups import Answering, Eliciting, Judging, LoadingAnywhere, grouped
from emotrace.cli.options import CausalModel, Folder, PerLayer, TargetAware, of
from emotrace.defaults import HEADS_PER_LAYER, MAX_NEW_TOKENS, NEURONS_PER_LAYER
from emotrace.disk import write_json, write_rows
from emotrace.evaluation import repeated
from emotrace.judges import measured
from emotrace.labels import COMPONENTS, KINDS, unknown
from emotrace.run import Run
from emotrace.sites import LanguageModel

HELD_OUT = 0.25
"""Share of the training skeletons on which doses, layers and strengths are chosen."""
PUBLISHED = {"prompt": 0.9896, "steer": 0.9122, "circuit": 0.9965}
"""Llama-3.2-3B-Instruct, judge told the emotion; shown beside ours and not comparable with them."""


LONG = Answering(max_new_tokens=MAX_NEW_TOKENS)


@grouped
def main(
    *,
    model: CausalModel = "data/tiny_model",
    train: Annotated[Path, typer.Option(help="SEV file to find directions on")] = Path("data/sev.jsonl"),
    test: Annotated[Path, typer.Option(help="SEV file to measure on, once")] = Path("data/test_set.jsonl"),
    judging: Judging,
    second_judge: Annotated[
        str | None, typer.Option(help="named as --judge is: tests what --judge chose; claims rest on it")
    ] = None,
    out: Folder = Path("runs/emotion_circuits"),
    limit: Annotated[int | None, typer.Option(help="skeletons per file, spread over themes")] = None,
    sweep_limit: Annotated[int, typer.Option(help="held-out skeletons of the searches' middle sample")] = 8,
    finalists: Annotated[int, typer.Option(min=1, help="settings of a search tried on all held-out skeletons")] = 12,
    frontier_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="held-out skeletons on which all doses of what was chosen are measured against KL; "
            "default as --sweep-limit, cut alike",
        ),
    ] = None,
    dose_step: Annotated[int, typer.Option(min=1, help="try every n-th dose of steering and λ of the circuit")] = 1,
    draws: Annotated[int, typer.Option(help="draws of each control on the test file")] = 3,
    refits: Annotated[
        int,
        typer.Option(
            min=0, help="times that directions and circuit are fitted to other training skeletons; 0 for none"
        ),
    ] = 4,
    arms: Annotated[
        str,
        typer.Option(
            help=f"beside none, prompt, steer and circuit: all, none, or some of {', '.join(circuit_arms.NAMES)}"
        ),
    ] = "all",
    curve_draws: Annotated[int, typer.Option(help="random sets of each size in the causal curves")] = 5,
    neurons_per_layer: PerLayer = NEURONS_PER_LAYER,
    heads_per_layer: PerLayer = HEADS_PER_LAYER,
    preset: Annotated[
        str | None,
        typer.Option(help="emotion_circuits: components allocated, ranked and added as published"),
    ] = None,
    answering: Answering = LONG,
    eliciting: Eliciting = Eliciting(),  # noqa: B008 - frozen
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="minutes: searches, curves and influence are cut to it, by timed samples"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="end with what the run would take; nothing is kept")
    ] = False,
    target_aware: TargetAware = False,
    attn_implementation: Annotated[
        str | None, typer.Option(help="eager shows attention patterns of the top heads")
    ] = None,
    loading: LoadingAnywhere,
) -> None:
    """Emotion directions, circuits, steering and modulation, from prompts to a judged report."""
    tested, trained = et.datasets.read_sev(test), et.datasets.read_sev(train)
    et.datasets.refuse_shared(tested, trained, f"--test {test}", f"--train {train}")
    the_judge = judging.make()
    tester = et.judges.make(second_judge) if second_judge else the_judge
    ways = eliciting.ways(published=preset is not None)
    some = et.datasets.sev(train, limit=limit), et.datasets.sev(test, limit=limit)
    with of("--limit", limit):
        et.datasets.split(some[0], HELD_OUT, answering.seed)
    if min(draws, curve_draws) < 1:
        raise et.EmotraceError(f"--draws {draws} --curve-draws {curve_draws}: at least 1 draw of each control.")
    if refits == 1:
        raise et.EmotraceError("--refits 1: one refit says nothing of how far fits differ; give 0, or at least 2.")
    if preset not in (None, *circuits.PRESETS):
        raise unknown("preset", preset, circuits.PRESETS, "--preset")
    compared = circuit_arms.named(arms)
    batch_size, seed = answering.batch_size, answering.seed
    lm = loading.load(model, attn_implementation=attn_implementation, **circuit_protocol.encoding(preset))
    protocol = (
        circuit_protocol.published(preset, lm)
        if preset
        else circuit_protocol.ours(lm, answering.max_new_tokens, dose_step)
    )
    sites = circuit_protocol.sites_asked(lm) + ["final_norm"] * protocol.after_norm
    settings = {
        "experiment": "emotion_circuits", "captured": sites, "model": lm.sites.identity, "template": lm.sites.encoder.record,
        "train": {"file": train.name, "digest": some[0].digest, "skeletons": _count(some[0])},
        "test": {"file": test.name, "digest": some[1].digest, "skeletons": _count(some[1])},
        "elicit": eliciting.elicit, "elicitations": [way.record for way in ways], "elicit_limit": eliciting.elicit_limit,
        "judge": the_judge.name, "second_judge": tester.name if second_judge else None,
        "label_map": judging.label_map, "limit": limit, "budget": budget, "sweep_limit": sweep_limit,
        "finalists": finalists, "frontier_limit": frontier_limit, "draws": draws, "refits": refits, "arms": list(compared),
        "curve_draws": curve_draws, "neurons_per_layer": neurons_per_layer, "heads_per_layer": heads_per_layer,
        "preset": preset, "preset_settings": protocol.record, **asdict(answering), "target_aware": target_aware,
        "steering": protocol.steering, "modulation": protocol.modulation, "held_out": HELD_OUT,
    }  # fmt: skip
    scratch = TemporaryDirectory(prefix="emotrace-dry-run-") if dry_run else None  # what was only asked binds no folder
    run = Run(scratch.name if scratch else out, settings)
    run.keep_jobs(lm)
    study = Study(lm, the_judge, run.path("parts"), batch_size=batch_size, target=target_aware, protocol=protocol)
    print(lm.sites.describe())

    # 0. How the model is asked, and its plain counterpart.
    how = circuit_prompts.ask(study, ways, train, test, limit, eliciting.elicit_limit)
    study, prompts, plain, asked, asked_plain = how.study, how.prompts, how.plain, how.test, how.test_plain
    fit, held = et.datasets.split(prompts, HELD_OUT, seed)
    plan = circuit_plan.planned(
        study, circuit_plan.timed(study, prompts, plain, run.path("parts", "timing_replies.json")), prompts, asked, compared,
        held=len(held), middle=sweep_limit, finalists=finalists, wide=frontier_limit or 0, draws=draws, refits=refits,
        budget=budget, asking=how.n_replies,
    )  # fmt: skip
    print(plan.said)
    if scratch:
        scratch.cleanup()
        return
    middle, chosen_on = (getattr(plan.searches["steer"], name) for name in ("middle", "skeletons"))

    # 1. Prompted replies to the training scenarios, judged.
    prompted = study.scored("train_prompt", study.replies("train_prompt", prompts, method="prompt"), plain)
    study = replace(study, bounds=(bounds := replies.fluency_bounds(prompted)))
    accepted = directions_.accepted(prompted)
    taken = acceptance.apart(prompted, how.used)
    print(circuit_prompts.told(len(accepted), len(prompted), taken))
    openings = {name: replies.openings(prompted, n) for name, n in circuit_arms.PREFILLS.items() if name in compared}

    # 2. Activations at the last prompt token: all that the next steps ask for.
    where: dict[str, Any] = {
        "positions": "last", "components": True, "out": run.path("activations.zarr"), "batch_size": batch_size, "seed": seed
    }  # fmt: skip
    print(f"activations: {et.capture.plan(lm, prompts, sites, **where)}")
    stored = et.capture(lm, prompts, sites, **where)
    acts = stored.where(sublayer=[s for s in ("resid_mid", "resid_post") if s in sites])

    # 3. Directions, and whether they are context-agnostic.
    fitting = prompts.where(skeleton_id=sorted(fit))
    fitted, by_emotion, notes = circuit_protocol.fitted(prompted, {p.key for p in fitting})
    dirs = protocol.directions(lm, acts, fitted)
    directions_.save(dirs, run.path("directions"))
    try:
        agnosticism = directions_.context_agnosticism(acts, accepted=fitted, seed=seed)
    except et.EmotraceError as error:  # too few complete groups to leave a theme or a valence out
        agnosticism = None
        notes.append(f"whether the directions are context-agnostic could not be measured: {error}")

    # 4. Components, the circuit, and the influence of sublayers.
    fit_plain = plain.where(skeleton_id=sorted(fit))
    options = protocol.influence_options(acts, dirs, fitted)
    cut = circuit_budget.influence(
        None if preset else plan.allowed("influence"), run.path("parts"), lm, fit_plain, dirs,
        len(fit) if preset else min(middle, len(fit)), options,
    )  # fmt: skip
    if tuple(cut.more) != tuple(options.get("doses", ())):
        notes.append("under --budget the influence of sublayers is its small-dose limit alone, without finite doses")
    influence = attribution.sublayer_influence(
        lm, fit_plain.limit(cut.skeletons), dirs, batch_size=batch_size, out=run.path("influence"),
        **{**options, "doses": cut.more},
    )  # fmt: skip
    head_readout = circuits.PRESETS[preset]["readout"] if preset else "residual"
    covectors = attribution.covectors(lm, dirs, head_readout=head_readout, out=run.path("covectors"))
    discovering: dict[str, Any] = {
        "neurons_per_layer": neurons_per_layer, "heads_per_layer": heads_per_layer, "preset": preset,
        "influence": influence if preset else None, "seed": seed,
    }  # fmt: skip
    circuit = circuits.discover(
        stored.where(skeleton_id=sorted(fit)), covectors, accepted=fitted, out=run.path("circuit"), **discovering
    )
    scores = {
        f"{kind}s": attribution.load_scores(run.path("circuit", kind), f"{kind}s")
        for kind in KINDS
        if lm.sites.has(COMPONENTS[kind].site)
    }
    print(circuit)
    read = study.read(fitting, prompted, circuit, scores.get("neurons"), dirs, run.path("reply_tokens.zarr"), seed)

    # 5. What the components do, and what to choose, on held-out training skeletons.
    trial, trial_plain = (p.where(skeleton_id=sorted(held)).limit(middle) for p in (prompts, plain))
    by_size = circuit_curves.Curves(
        lm, trial, trial_plain, dirs, circuit, scores, stored, {"batch_size": batch_size, "seed": seed}
    )
    n_trial = min(middle, len(held))
    cut = by_size.within(plan.allowed("curves"), run.path("parts", "timing_curves.json"), n_trial, curve_draws)
    if (cut.skeletons, cut.more) != (n_trial, curve_draws):
        notes.append(
            f"under --budget causal curves are of {cut.skeletons} skeletons and {cut.more} random sets of each size"
        )
    curves = by_size.made(cut.skeletons, cut.more, run.path("curves"))
    held_plain = plain.where(skeleton_id=sorted(held)).limit(chosen_on)
    controls = circuit_arms.tuned(compared, circuit, scores, seed)
    searched = {"steer": (plan.searches["steer"].lines, partial(study.steering, dirs))}
    searched |= {
        name: (plan.searches[name].lines, partial(study.modulated, one))
        for name, one in {"circuit": circuit, **controls}.items()
    }
    wide = plain.where(skeleton_id=sorted(held)).limit(max(middle, frontier_limit or 0))
    found = {
        name: study.search(held_plain, plain, name, lines, edits, middle, plan.searches[name].finalists, wide)
        for name, (lines, edits) in searched.items()
    }
    best, best_circuit = found["steer"].best, found["circuit"].best
    print(
        f"chosen on {best['skeletons']} held-out training skeletons: steering at layers {best['layers']}, positions "
        f"{best['positions']!r}, dose {best['dose']:.3g}; circuit at positions {best_circuit['neuron_positions']!r} (neurons), "
        f"{best_circuit['head_positions']!r} (heads), λ = {best_circuit['lambda']:.3g}"
        + "".join(f"; {name} at λ = {found[name].best['lambda']:.3g}" for name in controls)
    )
    mediation = circuit_mediation.measured(
        lm, acceptance.best(how.tried).way, prompted, trial_plain, dirs,
        {"steer": study.steering(dirs, best), "circuit": study.modulated(circuit, best_circuit)}, seed,
    )  # fmt: skip
    base = study.generated("trial_none", wide)
    costs = {
        name: study.cost(name, lines, found[name], base, wide, plain, edits)
        for name, (lines, edits) in searched.items()
    }
    none = study.scored(
        "trial_none", study.judged("trial_none", repeated(base, wide, wide.for_each(emotion=et.EMOTIONS))), plain
    )
    points = [point for of_arm in costs.values() for point in of_arm]
    pairs = [("circuit", name) for name in searched if name != "circuit"]
    frontier = replies.frontiers(points, none, pairs=pairs, seed=seed)
    tested = circuit_chosen.read_again(study, points, none, tester)
    frontier_tested = replies.frontiers(*tested, pairs=pairs, seed=seed) if second_judge else frontier

    # 6. The test file, once; and once more with each refit.
    chosen = circuit_chosen.Chosen(
        dirs, best, circuit, best_circuit, openings, {name: (one, found[name].best) for name, one in controls.items()},
        stored.where(key=list(trial.keys)),
    )  # fmt: skip
    rows = circuit_chosen.answered(study, compared, asked, asked_plain, chosen, draws, seed, tester)
    drawn = circuit_refits.draws([*fit, *held], len(fit), refits, seed)
    again = circuit_refits.Refits(study, stored, acts, prompts, prompted, head_readout, tester, discovering)
    refitted = again.answered(drawn, asked_plain, chosen)

    # 7. What may be said of it.
    verdict = "verdict_second" if second_judge else "verdict"
    claims, family = replies.claims(
        rows,
        given=frontier_tested["pairs"],
        doubt=measured.doubt(tester, lm.sites.identity),
        verdict=verdict,
        seed=seed,
    )

    elicited = acceptance.over_elicited(rows, replies.accuracy_table(prompted)["by_emotion"])
    result = replies.summary(rows)
    result["fluency"]["bounds"] = {k: list(v) for k, v in bounds.items()}
    result |= {
        "judge": {"name": the_judge.name, "usage": getattr(the_judge, "usage", None)}
        | ({"second": tester.name, "second_usage": getattr(tester, "usage", None)} if second_judge else {}),
        "model": lm.sites.identity, "n_train_skeletons": _count(prompts), "n_test_skeletons": _count(asked),
        "accepted_train": {**taken, "accepted": len(accepted), "of": len(prompted)},
        "elicitation": how.record(eliciting.elicit), "accuracy_elicited": elicited,
        "plan": plan.record,
        "directions": {"n_groups": dirs.attrs.get("n_groups"), "fitted_on": len(fit), "chosen_on": best["skeletons"]},
        "fitted_by_emotion": by_emotion,
        "sweep": found["steer"].points, "chosen": {**best, "site": "resid_post"},
        "trial": sorted({str(p.labels["skeleton_id"]) for p in trial}),
        "modulation": [point for name in ("circuit", *controls) for point in found[name].points],
        "chosen_circuit": best_circuit, "chosen_tuned": {name: found[name].best for name in controls},
        "comparison": [p for name in ("steer", "circuit") for p in comparison(found[name].line, costs[name])],
        "frontiers": frontier, **({"frontiers_second": frontier_tested} if second_judge else {}),
        "claims": claims, "paired": family, "published": PUBLISHED,
        "refits": (told := circuit_refits.record(rows, refitted, drawn, len(fit | held), verdict)),
        "mediation": mediation,
        "openings": circuit_arms.told(openings, lm.sites.encoder), "wrong_payload": circuit_arms.readings(rows),
        "circuit": {"share": circuit.share(), "n": len(circuit.components), "digest": circuit.digest},
        "reply_tokens": read.record if read else None,
        "layer_profile": _profile(acts), "dose_unit": "share of the activation's norm",
        "warnings": notes + circuit.meta["warnings"] + _warnings(lm, *([the_judge, tester] if second_judge else [the_judge])),
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    published = replies.published_stats([r for r in rows if r["method"] == "prompt"], test.stem)
    write_json(run.path("accuracy_stats.json"), published)
    write_rows(run.path("generations.jsonl"), rows)
    run.finish()
    inside = {"circuit": circuit, "influence": influence, "curves": curves, **scores}
    inside["reply_tokens"] = read.tokens if read else None
    inside |= study.views(fitting, stored, dirs, scores.get("neurons"), scores.get("heads"))
    page = report.write(
        run.out, result, [*rows, *(read.rows if read else [])], directions=dirs, agnosticism=agnosticism, manifest=run.manifest,
        circuits=inside, projections={TRAINING: read.projection} if read else None,
    )  # fmt: skip
    for method, table in result["accuracy_fluent"].items():
        low, high = table["overall"]["ci95"]
        blind = result["accuracy"][method]["overall"]["value"]
        print(
            f"{method:>14}: {blind:6.1%} express the emotion, {table['overall']['value']:6.1%} fluently [{low:.1%}, {high:.1%}]"
        )
    for line in (*circuit_refits.said(told), *(claim["sentence"] for claim in claims)):
        print(line)
    if lm.sites.remote is not None:
        print(f"{lm.sites.identity['backend']}: {lm.sites.remote.traffic}")
    print(f"report: {page}")


def _profile(acts: Any) -> list[dict[str, Any]]:
    """Mean RMS of the activations by layer and sublayer."""
    sigma = directions_.mean_rms(acts)
    return [
        {"layer": int(layer), "sublayer": str(site), "rms": float(sigma.sel(layer=layer, sublayer=site))}
        for layer in sigma["layer"].values
        for site in sigma["sublayer"].values
    ]


def _count(prompts: Any) -> int:
    return len({p.labels["skeleton_id"] for p in prompts})


def _warnings(lm: LanguageModel, *judges: Any) -> list[str]:
    identity = lm.sites.identity
    found = [measured.warning(judge, identity) or measured.statement(judge) for judge in judges]
    return [text for text in (*found, shipped.is_shipped(identity) and shipped.CAVEAT) if text]


if __name__ == "__main__":
    et.cli.experiment(main)
