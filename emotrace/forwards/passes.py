"""Passes: sums over prompts, of one kind or of several from the same forwards, continued after a kill with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace import arguments
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts
from emotrace.files import to_folder
from emotrace.forwards.entering import keeping
from emotrace.forwards.rows import asked
from emotrace.forwards.streams import dry, fitting, reductions
from emotrace.forwards.sums import Sums
from emotrace.labels import SUBLAYERS
from emotrace.planned import DryRows, Steps
from emotrace.sites import LanguageModel
from emotrace.traced import contributions

Finish = Callable[[Mapping[str, np.ndarray]], xr.Dataset]


class Reduction(NamedTuple):
    """Sums over prompts that are wanted of a pass.

    Attributes:
        name: of what they are.
        at: sites that are read, in the order of the function's values, each with its layers.
        function: of `emotrace.traced`, see `emotrace.forwards.capturing.reduced`.
        args: what else it takes for a range of the prompts that pass.
        row_bytes: of each site, what one prompt takes.
        size: bytes of the sums.
        settings: what they depend on, beside chunks and batches.
        begin: reads the weights, refuses those that it cannot use, and returns what makes a Dataset of the sums.
    """

    name: str
    at: Mapping[str, Sequence[int]]
    function: Callable[..., Any]
    args: Callable[[range], tuple[Any, ...]]
    row_bytes: Mapping[str, int]
    size: int
    settings: Mapping[str, Any]
    begin: Callable[[], Finish]


def chunk(wanted: Sequence[Reduction]) -> int:
    """Prompts held at a time: as many as fit, each site counted once."""
    sizes: dict[str, int] = {}
    for reduction in wanted:
        for site, size in reduction.row_bytes.items():
            sizes[site] = max(size, sizes.get(site, 0))
    return fitting(sum(sizes.values()))


def planned_pass(
    model: LanguageModel, prompts: Prompts, wanted: Sequence[Reduction], per_chunk: int | None = None
) -> DryRows:
    """What `passed` would do."""
    return dry(
        model, prompts, sum(reduction.size for reduction in wanted), chunk(wanted) if per_chunk is None else per_chunk
    )


def one_pass(
    model: LanguageModel, prompts: Prompts, reduction: Reduction, *, method: str, batch_size: BatchSize,
    per_chunk: int | None = None, out: str | Path | None, progress: bool,
) -> Steps[DryRows, xr.Dataset]:  # fmt: skip
    """The steps of a `planned` function that is one reduction: what the pass would do, then its Dataset (`passed`).

    Raises:
        EmotraceError: before that, for a size of batches or a folder that cannot be.
    """
    arguments.batch("batch_size", batch_size)
    if out is not None:
        to_folder(out)
    yield lambda: planned_pass(model, prompts, [reduction], per_chunk)
    found = passed(
        model,
        prompts,
        [reduction],
        method=method,
        batch_size=batch_size,
        per_chunk=per_chunk,
        out=out,
        progress=progress,
    )
    return found[reduction.name]


def passed(
    model: LanguageModel, prompts: Prompts, wanted: Sequence[Reduction], *, method: str, batch_size: BatchSize,
    per_chunk: int | None = None, out: str | Path | None, progress: bool,
) -> dict[str, xr.Dataset]:  # fmt: skip
    """Every reduction's Dataset, by name, from one forward of every prompt.

    Chunk by chunk: the sites that any of them reads are captured together, and in the same trace each makes its sums of them. A
    reduction alone gives the same bits where its chunks are the same (they are cut by the bytes of all sites together); else the
    prompts of a batch differ, and with them the rounding of the forwards.

    Args:
        model: from `emotrace.load`.
        prompts: that pass.
        wanted: at least one reduction; several have names of their own.
        method: what the sums are, for their settings.
        batch_size: prompts per forward, or ``auto`` for what fits, as those that the sums were begun with.
        per_chunk: prompts held at a time; None for `chunk`.
        out: folder of the running sums; a killed run continues there.
        progress: show a bar.

    Raises:
        EmotraceError: for weights that a reduction cannot use, or an ``out`` that holds sums of another run.
    """
    begun = None if out is None else Path(out, "sums.json")
    with keeping(model, out):
        return _passed(
            model, prompts, wanted, method=method, batch_size=asked(model, batch_size, prompts, begun=begun),
            per_chunk=chunk(wanted) if per_chunk is None else per_chunk, out=out, progress=progress,
        )  # fmt: skip


def _passed(
    model: LanguageModel, prompts: Prompts, wanted: Sequence[Reduction], *, method: str, batch_size: int, per_chunk: int,
    out: str | Path | None, progress: bool,
) -> dict[str, xr.Dataset]:  # fmt: skip
    begun = {reduction.name: reduction.begin() for reduction in wanted}
    alone = len(wanted) == 1
    settings = dict(wanted[0].settings) if alone else {r.name: dict(r.settings) for r in wanted}
    sums = Sums(out, {"method": method, **settings, "per_chunk": per_chunk, "batch_size": batch_size})
    sites, layers, cells = _union(model, wanted)

    def args(rows: range) -> tuple[Any, ...]:
        parts = [
            contributions.ChunkPart(r.name, r.function, at, r.args(rows)) for r, at in zip(wanted, cells, strict=True)
        ]
        return (parts,)

    for rows, found in reductions(
        model, prompts, sites, contributions.together, args, layers=layers, prompts_per_chunk=per_chunk,
        batch_size=batch_size, left=sums.left, apart=sums.apart, progress=progress, desc=method,
    ):  # fmt: skip
        for name, totals in found.items():
            for total, value in totals.items():
                sums.add(total if alone else f"{name}.{total}", value.numpy())
        sums.commit(rows.stop)

    def of(name: str) -> dict[str, np.ndarray]:
        if alone:
            return sums.totals
        return {k.removeprefix(f"{name}."): v for k, v in sums.totals.items() if k.startswith(f"{name}.")}

    return {name: finish(of(name)) for name, finish in begun.items()}


def _union(
    model: LanguageModel, wanted: Sequence[Reduction]
) -> tuple[list[str], list[int] | None, list[list[tuple[int, list[int] | None]]]]:
    """Sites and layers to capture; of each reduction, its values: number of the variable, and cells (None for all).

    Where all want the same layers, these are captured; else all that have a site, since a capture has one choice of layers.
    """
    named = {site for reduction in wanted for site in reduction.at}
    residual = [site for site in SUBLAYERS if site in named]
    others = list(dict.fromkeys(s for reduction in wanted for s in reduction.at if s not in residual))
    choices = {tuple(layers) for reduction in wanted for layers in reduction.at.values()}
    same = list(choices.pop()) if len(choices) == 1 else None
    variables = [*(["residual"] if residual else []), *others]
    there = {site: same if same is not None else list(model.sites.layers(site)) for site in others}
    if residual:
        common = set.intersection(*(set(model.sites.layers(site)) for site in residual))
        there["residual"] = same if same is not None else sorted(common)

    def cells(name: str, layers: Sequence[int], n: int) -> tuple[int, list[int] | None]:
        at = there[name]
        picked = None if at == list(layers) else [at.index(i) * n + j for i in layers for j in range(n)]
        return variables.index(name), picked

    found = []
    for reduction in wanted:
        own = [cells(site, layers, 1) for site, layers in reduction.at.items() if site not in residual]
        read = next((layers for site, layers in reduction.at.items() if site in residual), None)
        found.append(([] if read is None else [cells("residual", read, len(residual))]) + own)
    return [*residual, *others], same, found
