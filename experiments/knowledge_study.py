"""Settings, small measures and figures of the study of emotion knowledge (`emotion_knowledge.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import knowledge_figures as knowledge
import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats as sps

import emotrace as et
from emotrace import presets, rsa
from emotrace import prompt_tuning as pt
from emotrace.cli import options
from emotrace.datasets.goemotions import LabelledText
from emotrace.labels import unknown
from emotrace.prompt_tuning.masking import HOWS
from emotrace.prompt_tuning.neurons import STAGES
from emotrace.prompt_tuning.recipe import RECIPES
from emotrace.report.figures import Shown
from emotrace.rsa.masks import MATCHES
from emotrace.sites import LanguageModel
from emotrace.store import Activations

POSITIONS = ("answer", "prompt", "last")
"""Where neurons are read: where a tuned prompt is answered, over its vectors, or at the last token of `SENTENCES`."""
SENTENCES = (
    "The feeling was {concept}", "What they called it was {concept}", "A word for this is {concept}",
    "Everyone there knew {concept}",
)  # fmt: skip
"""Plain sentences that end with a concept, for decoders without tuned prompts."""
PERMUTATIONS = 2000
DRAWS = 1000
"""Bootstrap draws."""


@dataclass(frozen=True)
class Protocol:
    """What is done with tuned prompts.

    Attributes:
        seeds: of the prompts.
        k: neurons masked; below 1 a share of all.
        draws: random masks of each k.
        match: see `rsa.select_neurons`.
        shared: whether the random masks serve every attribute.
        how: masking.
        stage: ``neuron``, ``neuron_pre`` or ``active``.
        position: one of `POSITIONS`.
        part: the part of the data on which accuracy is measured.
        eval_batch: with masks, of accuracies that are means over batches.
        decimals: to which the attributes' distances are rounded.
        neuron_permutations: shuffles of the concepts by which single neurons are tested; 0, as published: asymptotic p.
        rule: of the false discovery rate, of asymptotic p.
        level: p of the max-statistic (as published: q) below which a neuron counts as selective.
        units: of the paired tests; None: emotions.
        link: over what the link to the human side is tested, see `rsa.human_link`.
    """

    seeds: tuple[int, ...] = (1, 3)
    k: tuple[float, ...] = (0.2, 0.4)
    draws: int = 20
    match: str = "none"
    shared: bool = True
    how: str = "zero"
    stage: str = "neuron"
    position: str = "answer"
    part: str = "test"
    eval_batch: int | None = None
    decimals: int | None = 9
    neuron_permutations: int = 1000
    rule: str = "bh"
    level: float = 0.05
    units: tuple[str, ...] | None = None
    link: str = "attribute"

    def __post_init__(self) -> None:
        for name, choices in (
            ("how", HOWS), ("stage", STAGES), ("match", MATCHES), ("position", POSITIONS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices, f"--{name}")

    @classmethod
    def of(cls, preset: str | None, **asked: Any) -> Protocol:
        """The settings of a preset (None: ours), with those that were asked for (None: not asked for)."""
        base = {} if preset is None else published(preset)
        return cls(**(base | {k: v for k, v in asked.items() if v is not None}))

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def published(preset: str) -> dict[str, Any]:
    """The authors' settings: one random mask, dev for choice and report, q = p · N / rank, every row a unit.

    Raises:
        EmotraceError: for a preset that has no such settings.
    """
    if preset not in RECIPES:
        raise unknown("preset", preset, RECIPES, "--preset")
    p = presets.preset(preset)
    masking, neurons = p["masking"], p["rsa"]
    return {
        "seeds": tuple(p["seeds"]), "k": tuple(masking["k"]), "draws": masking["random_draws"],
        "match": masking["random_match"], "shared": masking["random_shared"], "how": masking["ablation"],
        "stage": p["activations"]["site"], "part": masking["split"], "eval_batch": masking["batch_size"],
        "decimals": neurons["attribute_decimals"], "rule": neurons["correction"], "level": neurons["significant_below"],
        "units": tuple(masking["units"]), "neuron_permutations": 0, "link": "emotion",
    }  # fmt: skip


def numbers(text: str | None, kind: type, flag: str) -> tuple[Any, ...] | None:
    """Numbers joined by commas; None where the flag is not given."""
    return None if text is None else tuple(options.numbers(text, flag, kind, some=True))


def sizes(k: Sequence[float], neurons: int) -> list[int]:
    """Numbers of neurons; what is below 1 is a share of all."""
    found = [max(1, round(v * neurons)) if v < 1 else int(v) for v in k]
    if min(k) <= 0 or max(found) > neurons:
        raise et.EmotraceError(
            f"--k {','.join(map(str, k))}: the model has {neurons} neurons, so above 0 and up to that."
        )
    return list(dict.fromkeys(found))


def emotions(parts: Mapping[str, list[LabelledText]], scores: xr.DataArray, asked: str | None) -> list[str]:
    """Emotions that have ratings, and texts in every part, in the order of the ratings."""
    have = [{label for t in rows for label in t.labels} for rows in parts.values()]
    shared = [str(e) for e in scores["emotion"].values if all(e in h for h in have)]
    for name in asked.split(",") if asked else ():
        if name not in shared:
            raise unknown("emotion", name, shared, "--emotions")
    found = shared if asked is None else [name for name in shared if name in asked.split(",")]
    if len(found) < 4:
        raise et.EmotraceError(
            f"{len(found)} emotions with ratings and texts in every part ({', '.join(found)}); at least 4."
        )
    return found


def activations(
    lm: LanguageModel, prompts: Mapping[Any, pt.SoftPrompt], names: Sequence[str], plan: Protocol, out: Any
) -> xr.DataArray:
    """Neurons ``[emotion, seed, layer, unit]`` where the protocol reads them."""
    if plan.position == "last":
        return pt.concept_neurons(lm, pt.concept_prompts(names, SENTENCES), plan.stage, out=out)
    return pt.activated_neurons(lm, prompts, plan.stage, plan.position, out=out)


def apart(acts: Activations, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Emotion → layer → 1 − cosine of its mean pattern with that of the other emotions, each a slice of what is stored."""
    (site,) = acts.variables
    found: dict[str, dict[str, float]] = {}
    for layer in acts[site]["layer"].values.tolist():
        means = np.stack([acts.sel(site, layer=layer, emotion=e).mean("token").values for e in names]).astype(
            np.float64
        )
        others = (means.sum(0) - means) / (len(names) - 1)
        size = np.linalg.norm(means, axis=1) * np.linalg.norm(others, axis=1)
        for name, value in zip(names, 1 - (means * others).sum(1) / size, strict=True):
            found.setdefault(name, {})[str(layer)] = float(value)
    return found


def most(found: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """One row per emotion: the layer in which it is furthest from the others, how far, and the mean over layers."""
    lines = [
        (e, max(row, key=row.__getitem__), max(row.values()), sum(row.values()) / len(row)) for e, row in found.items()
    ]
    return pd.DataFrame(lines, columns=["emotion", "layer", "there", "mean"])


def words(lm: LanguageModel, texts: Sequence[LabelledText], names: Sequence[str]) -> dict[str, xr.DataArray]:
    """RDMs of what needs no model of emotions: the words of the texts of each emotion, and the embedding of its name."""
    bags = rsa.text_rdm({name: [t.text for t in texts if name in t.labels] for name in names})
    return {"words of the texts": bags, "embedding of the name": rsa.rdm(pt.name_embeddings(lm, names), features="dim")}


def column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column; a table has each name once, which the types of `pandas` leave open."""
    return cast("pd.Series", table[name])


def learned(table: pd.DataFrame, part: str) -> dict[str, Any]:
    """How well the prompts answer: mean over emotions with its t-interval, n, and prompts above one half by Wilson's interval."""
    accuracy, n = column(table, f"{part}_accuracy"), column(table, f"n_{part}")
    by_emotion = cast("pd.Series", accuracy.groupby(column(table, "emotion"), sort=False).mean())
    half = float(sps.t.ppf(0.975, len(by_emotion) - 1)) * float(cast("float", by_emotion.sem()))
    low = [et.stats.wilson(a * m, m)[0] for a, m in zip(accuracy, n.astype(int), strict=True)]
    mean = float(by_emotion.mean())
    return {
        "mean": mean, "ci95": [mean - half, mean + half], "emotions": len(by_emotion), "prompts": len(table),
        "n": int(n.sum()), "above_chance": int(sum(v > 0.5 for v in low)), "chance": 0.5,
    }  # fmt: skip


def selective(found: xr.Dataset, plan: Protocol) -> tuple[xr.DataArray, dict[str, Any]]:
    """Which neurons count as selective, and how many by which test.

    By the max-statistic: τ above the largest of all neurons in all but ``level`` of the shuffles, so that where nothing answers
    to an attribute, there is any at all in ``level`` of the cases. Mantel's p of each neuron, uncorrected, is counted beside.

    Args:
        found: of `rsa.searchlight`.
        plan: of the study.
    """
    if plan.neuron_permutations:
        chosen, test = found["p_max"] <= plan.level, "max-statistic"
    else:
        chosen, test = rsa.fdr(found["p"], plan.rule) < plan.level, f"asymptotic, FDR ({plan.rule})"

    def counts(which: xr.DataArray) -> dict[str, int]:
        return {str(a): int(which.sel(attribute=a).sum()) for a in which["attribute"].values}

    best, defined = found["tau"].max(("layer", "unit")), int(np.isfinite(found["tau"].values[0]).sum())
    about: dict[str, Any] = {
        "significant": counts(chosen), "test": test, "level": plan.level, "permutations": plan.neuron_permutations,
        "best_tau": {str(a): float(best.sel(attribute=a)) for a in best["attribute"].values},
        "of": int(chosen[0].size), "undefined": int(found.attrs["undefined"]),
    }  # fmt: skip
    if plan.neuron_permutations:
        about["mantel"] = {"p_at_most": 0.05, "neurons": counts(found["p_mantel"] <= 0.05), "by_chance": 0.05 * defined}
    return chosen, about


def values(data: xr.Dataset) -> dict[str, Any]:
    """A dataset as JSON values with its labels; NaN as None."""
    if not data.sizes:
        return {str(n): None if (v := float(a)) != v else v for n, a in data.data_vars.items()}
    clean = data.to_dataframe().reset_index().astype(object)
    return {"rows": clean.where(clean.notna(), None).to_dict("records")}


def rsa_figures(
    whole: xr.DataArray,
    people: xr.DataArray,
    fit: xr.Dataset,
    control: xr.Dataset,
    significant: xr.DataArray,
    plan: Protocol,
) -> list[Shown]:
    """Emotion concepts in the model and in people, and the neurons that tell them apart."""
    order = [e for e in rsa.EMOTIONS_27 if e in rsa.concepts(whole)]  # akin ones beside each other
    order += [e for e in rsa.concepts(whole) if e not in order]
    maps = {"model": rsa.matched(whole, order), "human side": rsa.matched(people, order)}
    return [
        Shown(
            "rdms", "Emotion concepts in the model and in people", knowledge.rdm_maps(maps, fit, control, PERMUTATIONS)
        ),
        Shown(
            "selective_neurons", "Selective neurons by layer and attribute",
            knowledge.selective_counts(significant, plan.level, plan.rule, plan.neuron_permutations),
        ),
    ]  # fmt: skip


def masked_figures(
    masks: rsa.Masks,
    drops: pd.DataFrame,
    tests: pd.DataFrame,
    human_side: xr.DataArray,
    link: pd.DataFrame,
    plan: Protocol,
) -> list[Shown]:
    """What masking neurons does, as in the original."""
    human = {str(a): float(human_side.sel(attribute=a)) for a in human_side["attribute"].values}
    out = []
    for size in dict.fromkeys(masks.masked["k"].values.tolist()):
        best = masks.sel(kind="selective", k=size).masked
        best = best.swap_dims(mask="attribute").drop_vars(["k", "kind", "draw"])
        out += [
            Shown(
                f"top_neurons_{size}", f"Where the {size:,} best neurons of each attribute lie", knowledge.top_neurons(best)
            ),
            Shown(
                f"masked_{size}", f"Accuracy with {size:,} neurons masked",
                knowledge.masked_accuracy(drops, size, tests, plan.part),
            ),
            Shown(
                f"human_link_{size}", f"Masking {size:,} neurons, and the human side",
                knowledge.human_scatter(drops, human, size, link),
            ),
        ]  # fmt: skip
    return out
