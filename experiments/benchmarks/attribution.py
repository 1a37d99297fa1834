"""Attribution's speed: one pass beside the many forwards that it replaces.

Method. Heads: `head_contributions` against zeroing every head of every layer alone in a plain transformers model
and running it again. Sublayers: `sublayer_influence` against shifting the output of every sublayer alone by the four
doses of arXiv 2510.11328. The other side is a twin with the same weights under one torch hook, on the same prompts in the
same batches, for one emotion per prompt. One torch thread; both take turns in one process; the table shows median / median
as a speed-up, with the smallest and largest of two neighbouring turns. All forwards are run, none is extrapolated.

    python experiments/benchmarks/attribution.py
    python experiments/benchmarks/attribution.py --only heads_shipped --repetitions 5
    python experiments/benchmarks/attribution.py --quick                 # tiny sizes: only shows that all of it runs
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import xarray as xr

from emotrace.sites import LanguageModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from emotrace.attribution.heads import head_contributions
from emotrace.attribution.reference import reference_direction
from emotrace.attribution.sublayers import sublayer_influence
from emotrace.labels import EMOTIONS
from experiments.benchmarks import work
from experiments.benchmarks.timing import Ratio, ratio

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)

DEEP = {
    "hidden_size": 192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "intermediate_size": 512, "vocab_size": 2048,
}  # fmt: skip
"""As many layers and heads as Llama-3.2-3B, narrow."""
DOSES = (0.1, 0.3, 0.5, 0.7)
"""Of the original, in units of σ."""
BATCH = 32


@dataclass(frozen=True)
class Case:
    """A model, its twin, and prompts of equal weight for every emotion.

    Attributes:
        pair: the model and its twin.
        name: for the table.
        ids: token ids of the prompts.
        directions: random unit directions ``[emotion, layer, sublayer, dim]``.
    """

    pair: work.Pair
    name: str
    ids: list[list[int]]
    directions: xr.DataArray

    @property
    def batches(self) -> list[dict[str, torch.Tensor]]:
        """What both sides run on: longest first."""
        return work.batches(self.ids, BATCH, by_length=True)

    @property
    def layers(self) -> Any:
        """The twin's blocks."""
        return self.pair.twin.model.layers


@dataclass(frozen=True)
class Answer:
    """One line of the table."""

    question: str
    ratio: Ratio
    target: float
    note: str

    def __str__(self) -> str:
        r = self.ratio
        met = "yes" if 1 / r.median >= self.target else "**no**"
        return f"| {self.question} | {1 / r.median:.1f} × ({1 / r.high:.1f} – {1 / r.low:.1f}) | ≥ {self.target:g} | {met} |"


def shipped(quick: bool) -> Case:
    """The shipped model on the prompts of four skeletons in six emotions."""
    pair = work.llama(work.QUICK) if quick else work.shipped()
    ids = work.sev_ids(pair.model, 1)[:6] if quick else work.sev_ids(pair.model, 4)
    trained = "shipped model" if work.SHIPPED.exists() and not quick else "random model"
    return Case(pair, trained, ids, _directions(pair.model))


def deep(quick: bool, prompts: int = 12) -> Case:
    """A random Llama of 28 layers and 24 heads."""
    pair = work.llama(work.QUICK if quick else DEEP)
    return Case(pair, "28 layers × 24 heads", work.random_ids(6 if quick else prompts, 24), _directions(pair.model))


def deep_more(quick: bool) -> Case:
    """The same with as many prompts as a batch takes: a third of the forwards to run beside it."""
    return deep(quick, BATCH)


def heads(case: Case, target: float, repetitions: int) -> Answer:
    """All heads of all layers."""
    prompts = [
        {"key": str(i), "token_ids": ids, "emotion": EMOTIONS[i % len(EMOTIONS)]} for i, ids in enumerate(case.ids)
    ]

    def ours() -> xr.Dataset:
        return head_contributions(case.pair.model, prompts, case.directions, batch_size=BATCH, progress=False)

    by_force: list[np.ndarray] = []

    def theirs() -> None:
        by_force[:] = [_ablated(case)]

    measured, found = ratio(ours, theirs, repetitions), ours()["mean"]
    for e, emotion in enumerate(EMOTIONS):
        want = by_force[0][e :: len(EMOTIONS), e].mean(0)
        np.testing.assert_allclose(found.sel(emotion=emotion), want, atol=1e-3 * np.abs(want).max())
    n = 1 + len(case.layers) * case.pair.twin.config.num_attention_heads
    note = f"{len(case.ids)} prompts, {n} forwards; the scores are equal"
    return Answer(f"heads, {case.name}", measured, target, note)


def sublayers(case: Case, target: float, repetitions: int) -> Answer:
    """All sublayers, for one emotion."""
    directions = case.directions.sel(emotion=["anger"])
    reference = reference_direction(directions, [(len(case.layers) - 1, "resid_post")])

    def ours() -> xr.Dataset:
        return sublayer_influence(
            case.pair.model, case.ids, directions, reference=reference, batch_size=BATCH, progress=False
        )

    found = ours().sel(emotion="anger")
    sigma, covector = found["sigma"].values, reference.sel(emotion="anger").values
    along = directions.sel(emotion="anger").values

    shifted: list[np.ndarray] = []

    def theirs() -> None:
        shifted[:] = [_shifted(case, along, sigma, covector)]

    measured = ratio(ours, theirs, repetitions)
    slopes = (shifted[0] - _read(case, covector)) / (np.array(DOSES)[:, None, None] * sigma)
    agreement = [float(np.corrcoef(s.ravel(), found["influence"].values.ravel())[0, 1]) for s in slopes]
    note = (
        f"{len(case.ids)} prompts, {shifted[0].size} forwards; correlation with the derivative "
        f"{agreement[0]:.5f} at dose {DOSES[0]}, {agreement[-1]:.5f} at {DOSES[-1]}"
    )
    return Answer(f"sublayers, {case.name}", measured, target, note)


QUESTIONS: dict[str, tuple[Callable[[Case, float, int], Answer], Callable[[bool], Case], float]] = {
    "heads_shipped": (heads, shipped, 40),
    "heads_deep": (heads, deep, 300),
    "sublayers_shipped": (sublayers, shipped, 16),
    "sublayers_deep": (sublayers, deep_more, 60),
}


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(QUESTIONS)}; may be repeated")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns of each ratio")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, which only show that all of it runs")] = False,
) -> None:
    """Answer the questions and print a table."""
    torch.set_num_threads(1)
    wrong = [name for name in only or () if name not in QUESTIONS]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r}: choices are {', '.join(QUESTIONS)}.", param_hint="--only")
    answers = []
    for name in only or QUESTIONS:
        ask, case, target = QUESTIONS[name]
        one = ask(case(quick), target, 1 if quick else repetitions)
        answers.append(one)
        print(one, f"[{one.ratio.seconds:.3g} s against {one.ratio.reference:.3g} s] {one.note}", flush=True)
    print("\n| question | speed-up (min – max) | target | met |\n|---|---|---|---|")
    for one in answers:
        print(one)
    if quick:
        print("\n--quick: these sizes are too small for the ratios to mean anything.")


def _directions(model: LanguageModel) -> xr.DataArray:
    sites = model.sites
    values = np.random.default_rng(0).normal(size=(len(EMOTIONS), sites.n_layers, 2, sites.d_model))
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return xr.DataArray(
        values.astype(np.float32), dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": list(EMOTIONS), "layer": np.arange(sites.n_layers), "sublayer": ["resid_mid", "resid_post"]},
    )  # fmt: skip


@contextmanager
def _hook(module: torch.nn.Module, act: Callable[..., Any], before: bool = False) -> Iterator[None]:
    handle = module.register_forward_pre_hook(act) if before else module.register_forward_hook(act)
    try:
        yield
    finally:
        handle.remove()


def _order(case: Case) -> np.ndarray:
    """Prompt of every row of the batches."""
    return np.array(sorted(range(len(case.ids)), key=lambda i: len(case.ids[i]), reverse=True))


def _ablated(case: Case) -> np.ndarray:
    """Importance by force ``[prompt, emotion, layer, head]``: s without any change − s with one head zeroed."""
    config = case.pair.twin.config
    v = torch.from_numpy(case.directions.sel(sublayer="resid_mid").values)
    importance = np.empty((len(case.ids), len(EMOTIONS), len(case.layers), config.num_attention_heads))
    order, base = _order(case), _mids(case, range(len(case.layers)))
    for layer, block in enumerate(case.layers):
        for head in range(config.num_attention_heads):
            columns = slice(head * config.head_dim, (head + 1) * config.head_dim)

            def zero(_: Any, args: tuple, columns: slice = columns) -> tuple:
                z = args[0].clone()
                z[..., columns] = 0
                return (z,)

            with _hook(block.self_attn.o_proj, zero, before=True):
                (mid,) = _mids(case, [layer])
            importance[order, :, layer, head] = ((base[layer] - mid) @ v[:, layer].T).numpy()
    return importance


def _mids(case: Case, layers: Iterable[int]) -> list[torch.Tensor]:
    """The residual after attention at the last token, in the order of the batches, ``[prompt, dim]`` for each layer."""
    kept: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with ExitStack() as hooks:
        for layer, found in kept.items():

            def keep(_: Any, args: tuple, found: list = found) -> None:
                found.append(args[0][:, -1])

            hooks.enter_context(_hook(case.layers[layer].post_attention_layernorm, keep, before=True))
        work.forward(case.pair.twin, case.batches)
    return [torch.cat(found) for found in kept.values()]


def _read(case: Case, covector: np.ndarray) -> float:
    """Mean projection of the last layer's residual at the last token."""
    kept: list[torch.Tensor] = []
    with _hook(case.layers[-1], lambda _m, _a, out: kept.append(out[:, -1])):
        work.forward(case.pair.twin, case.batches)
    return float((torch.cat(kept).double() @ torch.from_numpy(covector).double()).mean())


def _shifted(case: Case, along: np.ndarray, sigma: np.ndarray, covector: np.ndarray) -> np.ndarray:
    """Mean projection with one sublayer shifted by one dose ``[dose, layer, sublayer]``."""
    scores = np.empty((len(DOSES), len(case.layers), 2))
    for layer, block in enumerate(case.layers):
        for sub, module in enumerate((block.self_attn, block.mlp)):
            for i, dose in enumerate(DOSES):
                shift = torch.from_numpy(along[layer, sub] * np.float32(dose * sigma[layer, sub]))

                def add(_m: Any, _a: Any, out: Any, shift: torch.Tensor = shift) -> Any:
                    h = (out[0] if isinstance(out, tuple) else out).clone()
                    h[:, -1] += shift
                    return (h, *out[1:]) if isinstance(out, tuple) else h

                with _hook(module, add):
                    scores[i, layer, sub] = _read(case, covector)
    return scores


if __name__ == "__main__":
    app()
