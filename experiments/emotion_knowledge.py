"""Emotion knowledge: do neurons that hold human attributes of emotion concepts carry a model's inferences about emotions?

The method of Model Emotion (arXiv 2302.09582), with what it lacks: clean negatives, a test part that chose nothing, many random
masks, and a control for the words themselves.

1. For every emotion and seed a soft prompt is tuned, with which the frozen model says whether a text holds the emotion.
2. The neurons that each prompt activates, at the token that answers, go into a labelled store.
3. RSA: how alike are two emotions in the model (whole pattern, and layer by layer), and how alike are they in people's ratings?
   How much of that do the words of the texts explain?
4. Searchlight: which single neurons tell emotions apart as an attribute does? Kendall's τ-b, FDR over all neurons and attributes.
5. The k best neurons of each attribute are masked at every position, and random ones as many times as asked; accuracy on the
   test part, of every prompt.
6. Does the selective mask hurt more than random ones do, and more so where people's concepts follow the attribute?

Without ``--model`` a tiny masked model is trained first, with texts of its own (``train_tiny_masked.py``), and the ratings are
illustrative (synthetic): what comes out shows that the method runs, and nothing about emotions or people.

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import train_tiny_masked
import typer
import xarray as xr

import emotrace as et
from emotrace import prompt_tuning as pt
from emotrace import rsa
from emotrace.datasets.goemotions import LabelledText, read_goemotions
from emotrace.prompt_tuning.tasks import PARTS
from emotrace.report import knowledge
from emotrace.report.figures import Shown
from emotrace.run import Run
from emotrace.runlog import write_json

DATA = Path(__file__).resolve().parent.parent / "data"
LEVEL = 0.01
"""q below which a neuron counts as selective, as published."""
PERMUTATIONS = 2000
ILLUSTRATIVE = (
    "The ratings are illustrative: synthetic numbers written for this project, not measured on people. What is said of the human "
    "side on this page describes that file."
)
TINY = (
    "The model is a tiny one, just trained on synthetic texts of this project. Its numbers show that the method works from "
    "end to end, and are no findings."
)


def main(
    model: Annotated[str | None, typer.Option(help="hub id or directory, masked or causal; none: train a tiny one")] = None,
    texts: Annotated[Path | None, typer.Option(help="folder with train.csv, dev.csv and test.csv in the format of GoEmotions; "
                                                    "none: texts of this project")] = None,
    ratings: Annotated[Path, typer.Option(help="CSV: emotion and one column per attribute")] = DATA / "illustrative_ratings.csv",
    human: Annotated[Path | None, typer.Option(help="CSV of judged dissimilarities: first, second, dissimilarity; none: distance "
                                                    "in the space of all attributes")] = None,
    out: Annotated[Path, typer.Option(help="folder for everything; the same command again continues")] = Path(
        "runs/emotion_knowledge"
    ),
    preset: Annotated[str | None, typer.Option(help="model_emotion: prompts tuned as published (hours on a GPU)")] = None,
    emotions: Annotated[str | None, typer.Option(help="comma-joined; none: all that texts and ratings share")] = None,
    seeds: Annotated[str, typer.Option(help="comma-joined")] = "1,3",
    k: Annotated[str, typer.Option(help="neurons masked, comma-joined; below 1 a share of all")] = "0.05,0.15",
    draws: Annotated[int, typer.Option(help="random masks of each k")] = 24,
    match: Annotated[str, typer.Option(help="of random masks: none, or layer (as many in each layer; costs more)")] = "none",
    how: Annotated[str, typer.Option(help="masking: zero | mean | resample | multiply")] = "zero",
    stage: Annotated[str, typer.Option(help="neuron | neuron_pre | active")] = "neuron",
    prompt_length: Annotated[int, typer.Option(help="vectors of a prompt")] = 8,
    epochs: Annotated[int, typer.Option(help="at most; early stopping on dev")] = 12,
    learning_rate: Annotated[float, typer.Option()] = 0.05,
    limit: Annotated[int | None, typer.Option(help="most positives of a part")] = 48,
    words: Annotated[str, typer.Option(help="answers no,yes")] = "negative,positive",
    processes: Annotated[int, typer.Option(help="side by side, one thread each")] = 2,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:  # fmt: skip
    """Soft prompts, activated neurons, RSA with human attributes, masked neurons, from texts to a report."""
    for name, value, choices in (
        ("how", how, pt.masking.HOWS), ("stage", stage, pt.neurons.STAGES), ("match", match, rsa.masks.MATCHES),
    ):  # fmt: skip
        if value not in choices:
            raise et.labels.unknown(name, value, choices, f"--{name}")
    scores = rsa.read_ratings(ratings)
    seed_list = [int(s) for s in seeds.split(",")]
    changes: dict[str, Any] = {"limit": limit, "length": prompt_length, "epochs": epochs, "learning_rate": learning_rate,
                               "words": tuple(words.split(",")), "batch_size": 16, "init": "mask"}  # fmt: skip
    recipe = pt.Recipe.of(preset) if preset else pt.Recipe.of(**changes)
    settings = {
        "experiment": "emotion_knowledge", "model": model or "tiny masked model, trained here", "texts": str(texts or "own"),
        "ratings": {"file": ratings.name, "attributes": scores["attribute"].values.tolist()},
        "human": human.name if human else "space of all attributes", "preset": preset, "recipe": recipe.record,
        "emotions": emotions, "seeds": seed_list, "k": k, "draws": draws, "match": match, "how": how, "stage": stage,
        "dtype": dtype, "seed": seed,
    }  # fmt: skip
    run = Run(out, settings)

    # 0. Texts, and the tiny model where none is given.
    folder = texts or run.path("texts")
    if texts is None and not (folder / "test.csv").is_file():
        train_tiny_masked.write(
            train_tiny_masked.compose(DATA / "emotion_phrases.json", DATA / "goemotions_sample.csv", seed=seed), folder
        )
    parts = {part: read_goemotions(folder / f"{part}.csv") for part in PARTS if (folder / f"{part}.csv").is_file()}
    source = model or str(run.path("model"))
    if model is None and not run.path("model", "training.json").is_file():
        train_tiny_masked.fit(parts, run.path("model"), train_tiny_masked.Recipe(seed=seed))
    load = {"device": device, "dtype": dtype}
    lm = et.load(source, **load)
    print(lm.sites.describe())
    names = _emotions(parts, scores, emotions)
    sizes = _sizes(k, sum(lm.sites.address("neuron", i).width for i in lm.sites.layers("neuron")))
    where = lm if processes == 1 else source  # several processes load it themselves

    # 1. Soft prompts.
    table: Any = pt.tune_all(
        where, parts, names, seed_list, recipe, out=run.path("prompts"), processes=processes, load=load
    )
    prompts = {key: p for key, p in pt.find(run.path("prompts")).items() if key[0] in names and key[1] in seed_list}
    part = "test" if "test" in parts else "dev"
    print(f"{len(table)} prompts, mean accuracy on {part}: {table[f'{part}_accuracy'].mean():.1%}")

    # 2. Activated neurons.
    x = pt.activated_neurons(lm, prompts, stage, out=run.path("activations.zarr"))

    # 3. RSA of whole patterns.
    references = rsa.attribute_rdms(scores.sel(emotion=names))
    people = rsa.read_dissimilarities(human) if human else rsa.space_rdms(
        scores.sel(emotion=names), {"all": scores["attribute"].values.tolist()}, combined=False
    ).isel(space=0, drop=True)  # fmt: skip
    people = rsa.matched(people, names)
    whole = rsa.rdm(x, "cosine", over="seed")
    layered = rsa.rdm(x, "cosine", features="unit", over="seed")
    with_people = rsa.compare(whole, people, "pearson", permutations=PERMUTATIONS, seed=seed)
    by_attribute = rsa.compare(whole, references, permutations=PERMUTATIONS, seed=seed)
    by_layer = rsa.compare(layered, people, "pearson", permutations=PERMUTATIONS, seed=seed)
    human_side = rsa.compare(people, references)["correlation"]
    words_rdm = rsa.text_rdm({name: [t.text for t in parts["train"] if name in t.labels] for name in names})
    control = rsa.text_control(whole, people, {"words of the texts": words_rdm}, "pearson", seed=seed)

    # 4. Single neurons.
    found = rsa.searchlight(x, references, progress=True)
    q = rsa.fdr(found["p"])
    significant = q < LEVEL

    # 5. Masks.
    masks = rsa.select(found["tau"], sizes, draws=draws, match=match, seed=seed)
    masks.save(run.path("masks"))
    accuracies: Any = pt.masked_accuracy(
        where,
        prompts,
        parts,
        masks,
        how=how,
        part=part,
        out=run.path("masked"),
        processes=processes,
        load=load,
        seed=seed,
    )

    # 6. What masking does.
    drops: Any = rsa.drops(accuracies)
    tests: Any = rsa.draw_tests(accuracies)
    paired = rsa.paired_tests(drops)
    notes = [*([TINY] if model is None else []), *([ILLUSTRATIVE] if "illustrative" in ratings.name else [])]
    try:
        link, link_by_emotion = rsa.human_link(drops, human_side)
    except et.EmotraceError as error:  # too few emotions whose accuracies differ under the masks
        link = link_by_emotion = pd.DataFrame({"k": []})
        notes.append(f"The link between masking and the human side could not be measured: {error}")
    dips = rsa.unimodality(drops, seed=seed)

    best = found["tau"].max(("layer", "unit"))
    result = {
        "model": {**lm.sites.identity, "teaching": False}, "emotions": names, "seeds": seed_list, "part": part,
        "accuracy": {}, "tuned": {"mean": float(table[f"{part}_accuracy"].mean()), "prompts": len(table)},
        "rsa": {
            "human": _values(with_people), "by_layer": _values(by_layer), "by_attribute": _values(by_attribute),
            "text_control": _values(control),
        },
        "neurons": {
            "significant": {str(a): int(significant.sel(attribute=a).sum()) for a in significant["attribute"].values},
            "best_tau": {str(a): float(best.sel(attribute=a)) for a in best["attribute"].values},
            "of": int(significant[0].size), "q_below": LEVEL, "undefined": int(found.attrs["undefined"]),
        },
        "masks": {"k": sizes, "draws": draws, "match": match, "how": how},
        "human_link": link.to_dict("records"),
        "warnings": notes,
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    run.finish()
    tables = {
        "prompts": table, "masked_accuracy": accuracies, "drops": drops, "draw_tests": tests, "paired_tests": paired,
        "human_link": link, "human_link_by_emotion": link_by_emotion, "unimodality": dips,
        "rsa_by_attribute": by_attribute.assign(human=human_side).to_dataframe().reset_index(),
        "rsa_by_layer": by_layer.to_dataframe().reset_index(),
        "selective_neurons": significant.sum("unit").to_series().rename("neurons").reset_index(),
    }  # fmt: skip
    shown = _figures(whole, people, with_people, control, significant, masks, drops, tests, human_side, link, sizes)
    page = knowledge.write(run.out, result, shown, tables, run.manifest)
    r = float(with_people["correlation"])
    print(f"model and ratings: Pearson r {r:+.3f}, Mantel p {float(with_people['p_mantel']):.4f}; "
          f"{float(control['explained']):.0%} of the fit is in the words")  # fmt: skip
    for row in tests.to_dict("records"):
        print(f"{row['attribute']:>18}, k {row['k']:>4}: selective {row['selective']:6.1%}, random {row['random']:6.1%}, "
              f"hurts more than {row['hurts_more']:4.0%} of {row['n_draws']} draws")  # fmt: skip
    print(f"report: {page}")


def _emotions(parts: dict[str, list[LabelledText]], scores: xr.DataArray, asked: str | None) -> list[str]:
    """Emotions that have ratings, and texts in every part, in the order of the ratings."""
    have = [{label for t in rows for label in t.labels} for rows in parts.values()]
    shared = [str(e) for e in scores["emotion"].values if all(e in h for h in have)]
    if asked is None:
        return shared
    for name in asked.split(","):
        if name not in shared:
            raise et.labels.unknown("emotion", name, shared, "--emotions")
    return [name for name in shared if name in asked.split(",")]


def _sizes(k: str, neurons: int) -> list[int]:
    """Numbers of neurons; what is below 1 is a share of all."""
    try:
        values = [float(part) for part in k.split(",")]
    except ValueError:
        raise et.EmotraceError(f"--k {k!r}: numbers joined by commas, e.g. 500,1000 or 0.05,0.15.") from None
    sizes = [max(1, round(v * neurons)) if v < 1 else int(v) for v in values]
    if min(values) <= 0 or max(sizes) > neurons:
        raise et.EmotraceError(f"--k {k!r}: the model has {neurons} neurons, so numbers above 0 up to that.")
    return sizes


def _values(data: xr.Dataset) -> dict[str, Any]:
    """A dataset as JSON values with its labels; NaN as None."""
    frame = data.to_dataframe() if data.sizes else None
    if frame is None:
        return {str(n): float(v) for n, v in data.data_vars.items()}
    clean = frame.reset_index().astype(object)
    return {"rows": clean.where(clean.notna(), None).to_dict("records")}


def _figures(
    whole: xr.DataArray, people: xr.DataArray, with_people: xr.Dataset, control: xr.Dataset, significant: xr.DataArray,
    masks: rsa.Masks, drops: Any, tests: Any, human_side: xr.DataArray, link: Any, sizes: Sequence[int],
) -> list[Shown]:  # fmt: skip
    """The figures of the original, each with what it says."""
    human = {str(a): float(human_side.sel(attribute=a)) for a in human_side["attribute"].values}
    r, p = float(with_people["correlation"]), float(with_people["p_mantel"])
    out = [
        Shown(
            "rdms", "Emotion concepts in the model and in people",
            "Left: 1 − cosine of the neurons that the tuned prompts of two emotions activate, mean over seeds. Right: the human "
            f"side. Their Pearson correlation is {r:+.3f}, Mantel p = {p:.4f} ({PERMUTATIONS:,} shuffles of the emotions). Of r² "
            f"the words of the texts alone give {float(control['explained']):.0%}; with them held constant r is "
            f"{float(control['partial']):+.3f}.",
            knowledge.rdm_maps({"model": whole, "human side": people}, f"Model and human side correlate at r = {r:+.2f}"),
        ),
        Shown(
            "selective_neurons", "Selective neurons by layer and attribute",
            f"Neurons whose distances between emotions follow those of an attribute: Kendall's τ-b, one-sided asymptotic p, FDR "
            f"q < {LEVEL} over all neurons and attributes. That p takes pairs of emotions for independent, which they are not, "
            "so the counts are too high; a neuron may be selective for several attributes.",
            knowledge.selective_counts(significant),
        ),
    ]  # fmt: skip
    for size in sizes:
        best = masks.sel(kind="selective", k=size).masked
        best = best.swap_dims(mask="attribute").drop_vars(["k", "kind", "draw"])
        out.append(Shown(
            f"top_neurons_{size}", f"Where the {size:,} best neurons of each attribute lie",
            f"The {size:,} neurons with the highest τ of each attribute, whether significant or not; ties go to the lower layer.",
            knowledge.top_neurons(best),
        ))  # fmt: skip
        out.append(Shown(
            f"masked_{size}", f"Accuracy with {size:,} neurons masked",
            "Mean accuracy of the prompts on texts that chose nothing, with 95 % t-intervals over emotions. A star: the mean "

            "with the selective mask is below that of more than 95 % of the random masks of the same size.",
            knowledge.masked_accuracy(drops, size, tests),
        ))  # fmt: skip
        out.append(Shown(
            f"human_link_{size}", f"Masking {size:,} neurons, and the human side",
            "Each point is an attribute: to the right, people's concepts follow it more; upwards, masking its neurons hurts more "
            "than masking random ones (95 % t-interval over emotions).",
            knowledge.human_scatter(drops, human, size, link),
        ))  # fmt: skip
    return out


if __name__ == "__main__":
    et.cli.experiment(main)
