"""How often the tests that reports print find something where there is nothing: at a nominal .05 in at most .07 of the runs.

Each simulation draws data in which the null hypothesis holds, with the dependence that real data have (replies of one skeleton,
emotions under one mask, pairs of one concept), and asks the very function that a study calls. Beside them stand tests as
published, which presets alone use, and which take for independent what is not.

    python experiments/null_simulations.py --runs 1000
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import pandas as pd
import typer
import xarray as xr
from tqdm.auto import tqdm

from emotrace import cli, directions, discovery, replies, rsa, stats
from emotrace.cli.options import Seed
from emotrace.labels import EmotraceError, unknown

NOMINAL: Final = 0.05
MOST: Final = 0.07
"""Share of runs below `NOMINAL` that a printed test may reach: .05, and what a thousand runs may differ from it."""

Null = Callable[[np.random.Generator], float]
"""One run: the p of the test, or the smallest adjusted p of its family."""


class Rate(NamedTuple):
    """How often a test found something: ``share`` of ``runs``."""

    test: str
    share: float
    runs: int
    published: bool

    @property
    def holds(self) -> bool:
        """Whether a report may print it."""
        return self.published or self.share <= MOST


def _p(table: Any) -> float:
    """Of the first line of a table of tests."""
    return float(table["p"].iloc[0])


def _answers(rng: np.random.Generator, method: str, hits: np.ndarray) -> list[Any]:
    return [
        {"key": f"{s}_{i}", "method": method, "skeleton_id": f"s{s}", "verdict": {"match": int(rng.random() < p)}}
        for s, row in enumerate(hits)
        for i, p in enumerate(row)
    ]


def paired_replies(rng: np.random.Generator) -> float:
    """Two methods that are equally good on every skeleton, skeletons being of unequal difficulty."""
    easy = rng.beta(1, 1, size=(20, 1)) * np.ones((20, 4))
    mine, theirs = (_answers(rng, m, np.clip(easy + 0.3 * rng.normal(size=(20, 1)), 0, 1)) for m in ("a", "b"))
    return replies.paired_test(mine, theirs, n=2, permutations=999, seed=int(rng.integers(1 << 30)))["p"]


def fluent_replies(rng: np.random.Generator) -> float:
    """The same among fluent replies alone, of which one method has half as many."""
    easy = rng.beta(1, 1, size=(20, 1)) * np.ones((20, 4))
    both = [_answers(rng, m, np.clip(easy + 0.3 * rng.normal(size=(20, 1)), 0, 1)) for m in ("a", "b")]
    for rows, share in zip(both, (0.9, 0.45), strict=True):
        for row in rows:
            row["meta"] = {"fluent": bool(rng.random() < share)}
    return replies.fluent_test(both[0], both[1], n=2, permutations=999, seed=int(rng.integers(1 << 30)))["p"]


def paired_family(rng: np.random.Generator) -> float:
    """Three such comparisons with Holm's correction."""
    return float(stats.holm([paired_replies(rng) for _ in range(3)]).min())


def sign_flips(rng: np.random.Generator) -> float:
    """Differences of measures by skeleton, of no mean and heavy tails."""
    return stats.sign_flip(rng.standard_t(3, size=24), permutations=999, seed=int(rng.integers(1 << 30)))[0]


def _rdm(rng: np.random.Generator, n: int = 10) -> xr.DataArray:
    x = xr.DataArray(rng.normal(size=(n, 5)), dims=("emotion", "unit"), coords={"emotion": [f"e{i}" for i in range(n)]})
    return rsa.rdm(x, "cosine")


def mantel(rng: np.random.Generator) -> float:
    """Two RDMs of independent patterns."""
    found = rsa.compare(_rdm(rng), _rdm(rng), "pearson", permutations=199, seed=int(rng.integers(1 << 30)))
    return float(found["p_mantel"])


def partial_mantel(rng: np.random.Generator) -> float:
    """Model and people follow the words alike, and beyond them not each other."""
    words, mine, theirs = (_rdm(rng) for _ in range(3))
    control = {"words": words}
    x, y = (one + 0.5 * words for one in (mine, theirs))
    found = rsa.text_control(x, y, control, "pearson", permutations=199, seed=int(rng.integers(1 << 30)))
    return float(found["p_partial"])


def _noise(rng: np.random.Generator, permutations: int) -> xr.Dataset:
    names = [f"e{i}" for i in range(12)]
    x = xr.DataArray(rng.normal(size=(12, 1, 40)), dims=("emotion", "layer", "unit"), coords={"emotion": names})
    people = xr.DataArray(
        rng.normal(size=(12, 1)), dims=("emotion", "attribute"), coords={"emotion": names, "attribute": ["valence"]}
    )
    return rsa.searchlight(
        x, rsa.attribute_rdms(people), over=None, permutations=permutations, seed=int(rng.integers(1 << 30))
    )


def selective_neurons(rng: np.random.Generator) -> float:
    """Any of 40 neurons of noise, by the max-statistic."""
    return float(_noise(rng, 99)["p_max"].min())


def selective_neuron(rng: np.random.Generator) -> float:
    """One neuron of noise, by Mantel's test."""
    return float(_noise(rng, 99)["p_mantel"][0, 0, 0])


def selective_published(rng: np.random.Generator) -> float:
    """Any of 40 neurons of noise, by the asymptotic p and its false discovery rate."""
    return float(rsa.fdr(_noise(rng, 0)["p"], "published").min())


def _masked(rng: np.random.Generator) -> tuple[pd.DataFrame, dict[str, float]]:
    """Drops of 27 emotions under 14 masks, each mask doing to all of them what it happens to do."""
    names = [f"a{i}" for i in range(14)]
    of_mask = rng.normal(size=14)
    values = of_mask + rng.normal(size=(27, 14))
    rows = [(f"e{e}", 1, a, 10, values[e, i]) for e in range(27) for i, a in enumerate(names)]
    table = pd.DataFrame(rows, columns=pd.Index(["emotion", "seed", "attribute", "k", "drop"]))
    return table, dict(zip(names, rng.normal(size=14).tolist(), strict=True))


def human_link(rng: np.random.Generator) -> float:
    """Masks whose effects have nothing to do with what matters to people."""
    return _p(rsa.human_link(*_masked(rng), permutations=199, seed=int(rng.integers(1 << 30)))[0])


def human_link_published(rng: np.random.Generator) -> float:
    """The same, emotions taken for independent."""
    return _p(rsa.human_link(*_masked(rng), over="emotion")[0])


def paired_published(rng: np.random.Generator) -> float:
    """One mask that is as any other, by a t-test over emotions."""
    table: Any = _masked(rng)[0]
    return _p(rsa.paired_tests(table[table["attribute"] == "a0"]))


def mask_among_draws(rng: np.random.Generator) -> float:
    """A selective mask that is as any random one, by its rank among 19 of them."""
    of_mask = 0.7 + 0.05 * rng.normal(size=20)
    rows = [
        (f"e{e}", 1, "a", 10, "selective" if m == 0 else "random", m - 1, float(np.clip(v + 0.05 * rng.normal(), 0, 1)))
        for e in range(6)
        for m, v in enumerate(of_mask)
    ]
    columns = ["emotion", "seed", "attribute", "k", "kind", "draw", "accuracy"]
    return _p(rsa.draw_tests(pd.DataFrame(rows, columns=pd.Index(columns))))


def modes(rng: np.random.Generator) -> float:
    """Drops of one mode."""
    table = pd.DataFrame(
        {"k": 10, "attribute": "a", "emotion": [f"e{i}" for i in range(27)], "drop": rng.normal(size=27)}
    )
    return _p(rsa.unimodality(table, draws=499))


def _scores(rng: np.random.Generator, by: str = "theme") -> xr.Dataset:
    kinds = np.array(["head"] * 12 + ["mlp"] * 12)
    layers = np.tile(np.repeat(np.arange(3), 4), 2)
    skeletons = np.repeat(np.arange(12), 2)
    score = (rng.normal(size=(12, 24))[skeletons] + rng.normal(size=(24, 24))).astype(np.float32)
    return xr.Dataset(
        {"score": (("pair", "node"), score)},
        {
            "node": [f"{k}{i}.{n}" for n, (k, i) in enumerate(zip(kinds, layers, strict=True))], "kind": ("node", kinds),
            "layer": ("node", layers), "skeleton_id": ("pair", skeletons), "pair": np.arange(24),
            by: ("pair", np.array(["x", "y"])[skeletons % 2]),
        },
        {"level": "node"},
    )  # fmt: skip


def components(rng: np.random.Generator) -> float:
    """Any of 24 components without effect, by sign flips over skeletons and the false discovery rate."""
    return float(discovery.significance(_scores(rng), draws=999, seed=int(rng.integers(1 << 30)))["q"].min())


def circuits_of_contexts(rng: np.random.Generator) -> float:
    """Circuits of two themes, chosen from noise."""
    return float(discovery.across(_scores(rng), 6, "theme", draws=99, seed=int(rng.integers(1 << 30)))["p"])


def coordinates(rng: np.random.Generator) -> float:
    """Any of 64 coordinates in which texts with an emotion differ from neutral ones."""
    labels = ["fear"] * 30 + ["neutral"] * 30
    x = xr.DataArray(
        rng.normal(size=(1, 60, 64)), dims=("layer", "token", "dim"),
        coords={"layer": [0], "emotion": ("token", labels), "key": ("token", [f"k{i}" for i in range(60)])},
    )  # fmt: skip
    return float(directions.contrast(x, "emotion", "neutral")["q"].min())


def context_agnosticism(rng: np.random.Generator) -> float:
    """The figure's claim that directions hold in other contexts: an interval of the accuracy above all shuffled labels (p 0)."""
    skeleton, emotion = np.repeat(np.arange(12), 3), np.tile(["anger", "fear", "sadness"], 12)
    columns = {"key": np.arange(36).astype(str), "skeleton_id": skeleton, "theme": skeleton % 3, "emotion": emotion}
    x = xr.DataArray(
        (rng.normal(size=(12, 8))[skeleton] + rng.normal(size=(36, 8)))[None], dims=("layer", "token", "dim"),
        coords={"layer": [0], **{name: ("token", values) for name, values in columns.items()}},
    )  # fmt: skip
    found = directions.context_agnosticism(
        x, within="skeleton_id", leave_out=["theme"], n_bootstrap=100, seed=int(rng.integers(1 << 30))
    )
    return 0.0 if float(found["accuracy_ci"][0, 0, 0]) > float(found["null_max"][0, 0]) else 1.0


PRINTED: Final[dict[str, Null]] = {
    "paired test of replies, skeletons flipped": paired_replies,
    "fluent replies of two methods, exchanged": fluent_replies,
    "three paired tests, Holm": paired_family,
    "difference of a measure, skeletons flipped": sign_flips,
    "Mantel test of two RDMs": mantel,
    "partial Mantel test, words held constant": partial_mantel,
    "any selective neuron, max-statistic": selective_neurons,
    "one selective neuron, Mantel": selective_neuron,
    "masking and the human side, over attributes": human_link,
    "selective mask among random draws": mask_among_draws,
    "dip test of drops": modes,
    "any component of a circuit, FDR": components,
    "overlap of circuits of contexts": circuits_of_contexts,
    "any coordinate, Welch and FDR": coordinates,
    "claim of context-agnosticism": context_agnosticism,
}
"""What reports print."""
PUBLISHED: Final[dict[str, Null]] = {
    "any selective neuron, asymptotic p and FDR": selective_published,
    "masking and the human side, over emotions": human_link_published,
    "selective mask, paired t": paired_published,
}
"""What presets alone print, as published."""


def rates(runs: int, seed: int = 0, only: str | None = None) -> Iterator[Rate]:
    """The share of runs at or below `NOMINAL`, test by test, each with a generator of its own.

    Args:
        runs: of each.
        seed: of all.
        only: tests whose name holds this; None for all.
    """
    every = {**PRINTED, **PUBLISHED}
    chosen = [name for name in every if only is None or only in name]
    if not chosen:
        raise unknown("test", only, every, "--only")
    for name in chosen:
        generators = np.random.default_rng([seed, list(every).index(name)]).spawn(runs)
        found = sum(every[name](rng) <= NOMINAL for rng in tqdm(generators, name, leave=False, disable=None))
        yield Rate(name, found / runs, runs, name in PUBLISHED)


def main(
    runs: Annotated[int, typer.Option(min=1, help="simulations of each test")] = 1000,
    only: Annotated[str | None, typer.Option(help="tests whose name holds this")] = None,
    seed: Seed = 0,
) -> None:
    """Print how often each test finds something where there is nothing; an error where a printed one does so too often."""
    wrong = []
    print(f"{'test':<48} p ≤ {NOMINAL:g}   of {runs:,} runs")
    for rate in rates(runs, seed, only):
        note = "as published, presets only" if rate.published else f"at most {MOST:g}" if rate.holds else "TOO OFTEN"
        print(f"{rate.test:<48} {rate.share:6.1%}   {note}", flush=True)
        wrong += [] if rate.holds else [rate.test]
    if wrong:
        raise EmotraceError(
            f"more than {MOST:.0%} of the runs of {', '.join(wrong)} found something where there is nothing."
        )


if __name__ == "__main__":
    cli.experiment(main)
