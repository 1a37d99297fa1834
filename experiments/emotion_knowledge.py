"""Emotion knowledge: do neurons that hold human attributes of emotion concepts carry a model's inferences about emotions?

The method of Model Emotion (arXiv 2302.09582), with what it lacks: clean negatives, a test part that chose nothing, many random
masks, and a control for the words themselves.

1. For every emotion and seed a soft prompt is tuned, with which the frozen model says whether a text holds the emotion.
2. The neurons that each prompt activates, at the token that answers, go into a labelled store.
3. RSA: how alike are two emotions in the model (whole pattern, and layer by layer), and how alike are they in people's ratings?
   How much of that do the words of the texts explain?
4. Searchlight: which single neurons tell emotions apart as an attribute does? Kendall's τ-b against the largest of all neurons
   under shuffled concepts (the preset: asymptotic p and their false discovery rate, as published).
5. The k best neurons of each attribute are masked at every position, and random ones as many times as asked; accuracy on the
   test part, of every prompt.
6. Does the selective mask hurt more than random ones do, and more so where people's concepts follow the attribute?

Without ``--model`` a tiny masked model is trained first, with texts of its own (``train_tiny_masked.py``), and the ratings are
illustrative (synthetic): what comes out shows that the method runs, and nothing about emotions or people.

With ``--untuned`` and ``--model`` (or, on a server, with ``--remote``, ``--model`` and ``--position last``): 2 to 4 alone, of
plain sentences that end with the emotion's name.

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import knowledge_figures as knowledge
import knowledge_study as study
import pandas as pd
import train_tiny_masked
import typer
import xarray as xr

import emotrace as et
from emotrace import disk, report, rsa
from emotrace import prompt_tuning as pt
from emotrace.cli.groups import LoadingAnywhere, grouped
from emotrace.cli.options import Folder, Seed
from emotrace.datasets.goemotions import read_goemotions
from emotrace.disk import write_json
from emotrace.prompt_tuning.tasks import PARTS
from emotrace.report.figures import Shown
from emotrace.run import Run, records
from emotrace.sites import LanguageModel
from emotrace.stats.permutation import p_said

DATA = Path(__file__).resolve().parent.parent / "data"
OURS = {"limit": 48, "length": 8, "epochs": 6, "learning_rate": 0.05, "batch_size": 16}
"""Soft prompts for a small model and few texts."""
TITLE = "Emotion knowledge"
ILLUSTRATIVE = (
    "The ratings are illustrative: synthetic numbers written for this project, not measured on people. What is said of the human "
    "side on this page describes that file."
)
TINY = (
    "The model is a tiny one, just trained on synthetic texts of this project. Its numbers show that the method works from "
    "end to end, and are no findings."
)


def _joined(values: tuple[float, ...]) -> str:
    return ",".join(map(str, values))


@grouped
def main(
    *,
    model: Annotated[str | None, typer.Option(help="hub id, directory or GGUF file; none: train a tiny one")] = None,
    texts: Annotated[Path | None, typer.Option(help="folder with train.csv, dev.csv and test.csv in the format of GoEmotions; "
                                                    "none: texts of this project")] = None,
    ratings: Annotated[Path, typer.Option(help="CSV: emotion and one column per attribute")] = DATA / "illustrative_ratings.csv",
    human: Annotated[Path | None, typer.Option(help="CSV of judged dissimilarities: first, second, dissimilarity; none: distance "
                                                    "in the space of all attributes")] = None,
    out: Folder = Path(
        "runs/emotion_knowledge"
    ),
    preset: Annotated[str | None, typer.Option(help="model_emotion: all as published, for roberta-base (hours on a GPU); "
                                                     "what is given beside it changes it")] = None,
    emotions: Annotated[str | None, typer.Option(help="comma-joined; none: all that texts and ratings share")] = None,
    seeds: Annotated[str | None, typer.Option(help=f"comma-joined ({_joined(study.Protocol.seeds)})")] = None,
    position: Annotated[str | None, typer.Option(help="of the neurons: answer (to a tuned prompt), prompt (mean over it), "
                                                       "last (token of sentences that end with the emotion's name)")] = None,
    untuned: Annotated[bool, typer.Option("--untuned", help="sentences that end with the name; no masks")] = False,
    neuron_permutations: Annotated[int | None, typer.Option(help="shuffles of concepts that test single neurons "
                                                                 f"({study.Protocol.neuron_permutations}); 0: none")] = None,
    k: Annotated[str | None, typer.Option(help="neurons masked, comma-joined; below 1 a share of all "
                                               f"({_joined(study.Protocol.k)})")] = None,
    draws: Annotated[int | None, typer.Option(help=f"random masks of each k ({study.Protocol.draws})")] = None,
    match: Annotated[str | None, typer.Option(help="of random masks: none, or layer (as many in each layer; costs more)")] = None,
    how: Annotated[str | None, typer.Option(help="masking: zero | mean | resample | multiply")] = None,
    stage: Annotated[str | None, typer.Option(help="neuron | neuron_pre | active")] = None,
    prompt_length: Annotated[int | None, typer.Option(help=f"vectors of a prompt ({OURS['length']})")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"at most ({OURS['epochs']}); early stopping on dev")] = None,
    learning_rate: Annotated[float | None, typer.Option(help=f"of a prompt ({OURS['learning_rate']})")] = None,
    limit: Annotated[int | None, typer.Option(help=f"most positives of a part ({OURS['limit']})")] = None,
    words: Annotated[str | None, typer.Option(help="answers no,yes (negative,positive)")] = None,
    processes: Annotated[int, typer.Option(help="side by side, one thread each")] = 2,
    loading: LoadingAnywhere,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Soft prompts, activated neurons, RSA with human attributes, masked neurons, from texts to a report."""
    plan = study.Protocol.of(
        preset, seeds=study.numbers(seeds, int, "--seeds"), k=study.numbers(k, float, "--k"), draws=draws, match=match, how=how,
        stage=stage, position=position or ("last" if untuned else None), neuron_permutations=neuron_permutations,
    )  # fmt: skip
    there = bool(loading.options["remote"])
    if untuned and (plan.position != "last" or model is None):
        raise et.EmotraceError("--untuned reads the last token of sentences: give --model, and no other --position.")
    if there and (plan.position != "last" or model is None):
        raise et.EmotraceError(
            f"--remote {loading.remote}: soft prompts are tuned, and the tiny model trained, where the weights are. Give --model "
            "and --position last, which reads un-tuned prompts; or leave --remote out."
        )
    scores = rsa.read_ratings(ratings)
    ours = {} if preset else OURS | ({"init": "mask"} if model is None else {})
    asked = {"limit": limit, "length": prompt_length, "epochs": epochs, "learning_rate": learning_rate,
             "words": tuple(words.split(",")) if words else None}  # fmt: skip
    recipe = pt.Recipe.of(preset, **ours | {name: value for name, value in asked.items() if value is not None})
    own = [DATA / "emotion_phrases.json", DATA / "goemotions_sample.csv"]  # what the texts are composed of
    files = own if texts is None else [texts / f"{part}.csv" for part in PARTS if (texts / f"{part}.csv").is_file()]
    settings = {
        "experiment": "emotion_knowledge", "model": model or "tiny masked model, trained here", "texts": str(texts or "own"),
        "texts_digest": disk.digest([_content(file) for file in files]),
        "ratings": {"file": ratings.name, "attributes": scores["attribute"].values.tolist(), "digest": disk.digest(scores)},
        "human": human.name if human else "space of all attributes", "human_digest": human and _content(human),
        "preset": preset, "recipe": recipe.record,
        **plan.record, "untuned": untuned, "emotions": emotions, "dtype": loading.dtype, "bos": loading.bos, "seed": seed,
    }  # fmt: skip
    run = Run(out, settings)

    # 0. Texts, and the tiny model where none is given.
    folder = texts or run.path("texts")
    if texts is None and not (folder / "test.csv").is_file():
        train_tiny_masked.write(
            train_tiny_masked.compose(DATA / "emotion_phrases.json", DATA / "goemotions_sample.csv", seed=seed), folder
        )
    parts = {part: read_goemotions(folder / f"{part}.csv") for part in PARTS if (folder / f"{part}.csv").is_file()}
    for one, other in itertools.combinations(
        parts, 2
    ):  # single texts that occur in two parts are dropped from the later
        both = et.datasets.shared(parts[other], parts[one])
        if 2 * len(both) > len(parts[other]):
            et.datasets.refuse_shared(parts[other], parts[one], f"{other}.csv of {folder}", f"{one}.csv")
    source = model or str(run.path("model"))
    if model is None and not run.path("model", "training.json").is_file():
        train_tiny_masked.fit(parts, run.path("model"), train_tiny_masked.Recipe(seed=seed))
    lm = loading.load(source)
    print(lm.sites.describe())
    names = study.emotions(parts, scores, emotions)
    sizes = study.sizes(plan.k, sum(lm.sites.address("neuron", i).width for i in lm.sites.layers("neuron")))
    where = lm if processes == 1 else source  # several processes load it themselves

    # 1. Soft prompts.
    part = plan.part if plan.part in parts else "dev"
    if there or untuned:
        run.keep_jobs(lm)
        _publish_untuned(
            run, lm, names, plan, _alike(run, lm, {}, names, plan, scores, human, parts, seed), _notes(model, ratings)
        )
        return
    table: Any = pt.tune_all(
        where, parts, names, plan.seeds, recipe, out=run.path("prompts"), processes=processes, load=loading.options
    )
    prompts = {
        key: p for key, p in pt.tuned_prompts(run.path("prompts")).items() if key[0] in names and key[1] in plan.seeds
    }
    tuned = study.learned(table, part)
    print(f"{tuned['prompts']} prompts, mean accuracy on {part} {tuned['mean']:.1%} "
          f"[{tuned['ci95'][0]:.1%}, {tuned['ci95'][1]:.1%}], {tuned['above_chance']} of them above chance")  # fmt: skip

    # 2. Activated neurons. 3. RSA of whole patterns. 4. Single neurons.
    alike = _alike(run, lm, prompts, names, plan, scores, human, parts, seed)

    # 5. Masks.
    masks = rsa.select_neurons(alike.tau, sizes, draws=plan.draws, match=plan.match, shared=plan.shared, seed=seed)
    masks.save(run.path("masks"))
    accuracies: Any = pt.masked_accuracy(
        where, prompts, parts, masks, how=plan.how, part=part, out=run.path("masked"), processes=processes, load=loading.options,
        eval_batch=plan.eval_batch, seed=seed,
    )  # fmt: skip

    # 6. What masking does.
    drops: Any = rsa.drops(accuracies)
    tests: Any = rsa.draw_tests(accuracies)
    notes = _notes(model, ratings)
    try:
        link, link_by_emotion = rsa.human_link(drops, alike.human_side, over=plan.link, seed=seed)
    except et.EmotraceError as error:  # too few emotions whose accuracies differ under the masks
        link = link_by_emotion = pd.DataFrame({"k": []})
        notes.append(f"The link between masking and the human side could not be measured: {error}")
    dips = rsa.unimodality(drops, seed=seed)

    result = {
        "model": {**lm.sites.identity, "teaching": False}, "emotions": names, "seeds": list(plan.seeds), "part": part,
        "accuracy": {}, "tuned": tuned,
        **alike.said,
        "masks": {"k": sizes, "draws": plan.draws, "match": plan.match, "how": plan.how},
        "draw_tests": records(tests), "human_link": records(link), "warnings": notes,
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    run.finish()
    tables: dict[str, Any] = {
        **alike.tables,
        "prompts": table, "masked_accuracy": accuracies, "drops": drops, "draw_tests": tests,
        "human_link": link, "human_link_by_emotion": link_by_emotion, "unimodality": dips,
    }  # fmt: skip
    if preset:  # as published: emotions are taken for independent, though they share the masks
        tables["paired_tests"] = rsa.paired_tests(drops, units=plan.units, rule=plan.rule)
    answers = Shown("prompts", "How well the soft prompts answer", knowledge.tuned_accuracy(table, plan.part))
    shown = [answers, *alike.shown, *study.masked_figures(masks, drops, tests, alike.human_side, link, plan)]
    page = report.publish(run.out, result, shown, tables, run.manifest, report.Page(title=TITLE))
    print(alike.told)
    for row in tests.to_dict("records"):
        print(f"{row['attribute']:>18}, k {row['k']:>4}: selective {row['selective']:6.1%}, random {row['random']:6.1%}, "
              f"hurts more than {row['hurts_more']:4.0%} of {row['n_draws']} draws")  # fmt: skip
    print(f"report: {page}")


class Alike(NamedTuple):
    """How alike emotions are in the model and in people.

    Attributes:
        tau: Kendall's τ-b of single neurons and attributes.
        human_side: of each attribute with people's judgements.
        said: entries of the report.
        tables: of its folder.
        shown: figures.
        told: on the terminal.
    """

    tau: xr.DataArray
    human_side: xr.DataArray
    said: dict[str, Any]
    tables: dict[str, Any]
    shown: list[Shown]
    told: str


def _alike(
    run: Run, lm: LanguageModel, prompts: Any, names: list[str], plan: study.Protocol, scores: xr.DataArray, human: Path | None,
    parts: dict[str, Any], seed: int,
) -> Alike:  # fmt: skip
    """Neurons of every emotion, whole patterns and single ones, against people's ratings."""
    x = study.activations(lm, prompts or {}, names, plan, run.path("activations.zarr"))
    apart = study.apart(et.open_activations(run.path("activations.zarr")), names)
    references = rsa.attribute_rdms(scores.sel(emotion=names), decimals=plan.decimals)
    ties = "exact" if plan.decimals is None else "rounded"  # published ranks compare distances to the last bit
    people = rsa.read_dissimilarities(human) if human else rsa.space_rdms(
        scores.sel(emotion=names), {"all": scores["attribute"].values.tolist()}, combined=False
    ).isel(space=0, drop=True)  # fmt: skip
    people = rsa.matched(people, names)
    each = rsa.rdm(x, "cosine")
    whole = each.mean("seed", keep_attrs=True)
    layered = rsa.rdm(x, "cosine", features="unit", over="seed")
    test: dict[str, Any] = {"permutations": study.PERMUTATIONS, "seed": seed}
    fit = rsa.compare(whole, people, "pearson", **test)
    fit = fit.merge(rsa.bootstrap(each, people, "pearson", over="seed", draws=study.DRAWS, seed=seed)[["lo", "hi"]])
    by_attribute = rsa.compare(whole, references, ties=ties, **test)
    by_layer = rsa.compare(layered, people, "pearson", **test)
    human_side = rsa.compare(people, references, ties=ties)["correlation"]
    controls = study.words(lm, parts["train"], names)
    control = rsa.text_control(whole, people, controls, "pearson", seed=seed)
    alone = {name: rsa.compare(whole, c, "pearson", **test) for name, c in controls.items()}
    reliability = rsa.noise_ceiling(each, "seed", "pearson") if x.sizes["seed"] > 1 else None
    found = rsa.searchlight(
        x, references, ties=ties, permutations=plan.neuron_permutations, seed=seed, progress=True
    )  # fmt: skip
    significant, neurons = study.selective(found, plan)
    said = {
        "rsa": {
            "human": study.values(fit), "by_layer": study.values(by_layer), "by_attribute": study.values(by_attribute),
            "text_control": study.values(control), "controls": {n: study.values(c) for n, c in alone.items()},
            "reliability_over_seeds": None if reliability is None else study.values(reliability),
        },
        "apart": apart,
        "neurons": neurons,
    }  # fmt: skip
    tables = {
        "emotions_apart": (
            study.most(apart), "How far the neurons of an emotion's prompts are from those of the others: 1 − cosine of the mean "
            "patterns of a layer, where most, and mean over layers.",
        ),
        "rsa_by_attribute": by_attribute.assign(human=human_side).to_dataframe().reset_index(),
        "rsa_by_layer": by_layer.to_dataframe().reset_index(),
        "selective_neurons": significant.sum("unit").to_series().rename("neurons").reset_index(),
    }  # fmt: skip
    most, explained = int(by_layer["correlation"].idxmax("layer")), float(control["explained"])
    words = ", ".join(f"{name} r {float(c['correlation']):+.3f}" for name, c in alone.items())
    told = (
        f"model and ratings: Pearson r {float(fit['correlation']):+.3f} [{float(fit['lo']):+.3f}, {float(fit['hi']):+.3f}], "
        f"Mantel p {p_said(float(fit['p_mantel']), 1 / (1 + study.PERMUTATIONS))}; "
        + (f"{explained:.0%} of the fit is in the words" if explained > 0 else "the words explain none of it")
        + f" (alone: {words})\n"
        f"by layer: r {float(by_layer['correlation'].max()):+.3f} at most (layer {most}); "
        "by attribute: "
        + ", ".join(
            f"{a} τ {float(by_attribute['correlation'].sel(attribute=a)):+.3f} (Mantel p "
            f"{p_said(float(by_attribute['p_mantel'].sel(attribute=a)), 1 / (1 + study.PERMUTATIONS))})"
            for a in by_attribute["attribute"].values
        )
        + f"\nselective neurons of {neurons['of']:,} ({neurons['test']}, level {neurons['level']:g}): "
        + ", ".join(f"{a} {n}" for a, n in neurons["significant"].items())
    )
    return Alike(
        found["tau"], human_side, said, tables, study.rsa_figures(whole, people, fit, control, significant, plan), told
    )


def _publish_untuned(
    run: Run, lm: LanguageModel, names: list[str], plan: study.Protocol, alike: Alike, notes: list[str]
) -> None:
    """The report of a model for which nothing was tuned and of which no neuron was masked."""
    where = "" if lm.sites.remote is None else "The model is on a server: "
    notes = [*notes, f"{where}neurons of un-tuned prompts; no soft prompt was tuned, and nothing masked."]
    result = {
        "model": {**lm.sites.identity, "teaching": False}, "emotions": names, "seeds": list(plan.seeds), "accuracy": {},
        **alike.said, "warnings": notes,
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    run.finish()
    page = report.publish(run.out, result, alike.shown, alike.tables, run.manifest, report.Page(title=TITLE))
    print(alike.told)
    if lm.sites.remote is not None:
        print(f"{lm.sites.identity['backend']}: {lm.sites.remote.traffic}")
    print(f"report: {page}")


def _notes(model: str | None, ratings: Path) -> list[str]:
    return [*([TINY] if model is None else []), *([ILLUSTRATIVE] if "illustrative" in ratings.name else [])]


def _content(file: Path) -> str | None:
    """Hash of a file; None where there is none, which its reader says."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


if __name__ == "__main__":
    et.cli.experiment(main)
