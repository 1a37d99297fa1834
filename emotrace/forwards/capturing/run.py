"""Run: one capture from prompts to a labelled store, or to memory."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from emotrace import arguments, disk, ranks, store
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.edits import Edit
from emotrace.files import to_folder
from emotrace.forwards.capturing import filling, memory
from emotrace.forwards.capturing.job import CaptureJob
from emotrace.forwards.capturing.prepare import prepared
from emotrace.forwards.entering import backend
from emotrace.forwards.metrics import Metric, differentiable
from emotrace.identity import refuse_changed
from emotrace.labels import EmotraceError, Positions
from emotrace.planned import DryRows, Steps, planned
from emotrace.ranks import Rank
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site
from emotrace.store import Activations, Plan


@planned
@typed
def capture(
    model: LanguageModel,
    prompts: PromptsLike,
    sites: Sequence[str | Site] | str | Site = ("resid_mid", "resid_post"),
    *,
    layers: Iterable[int] | int | None = None,
    positions: Positions = "last",
    edits: Sequence[Edit] | None = None,
    gradients: Metric | None = None,
    components: bool = False,
    reduce: Literal["mean"] | None = None,
    out: str | Path | None = None,
    batch_size: BatchSize = 32,
    share_prefixes: bool = True,
    codec: str = "none",
    row_group_bytes: int = 256 << 20,
    seed: int = 0,
    rank: tuple[int, int] | None = None,
    client: Annotated[Any, "on_workers"] = None,
    progress: bool = True,
) -> Steps[DryRows, Activations]:
    """Activations of prompts at chosen sites and positions.

    Only what is asked is copied, and nothing after the last wanted site is computed. Prompts that begin alike share the
    computation of their first tokens where only later positions are wanted. The values are those of one prompt at a
    time, to float rounding, whatever the batch, the order and the padding. ``capture.plan(…)`` says what would be done: rows,
    bytes, row groups, the free disk, and requests to a server (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes. Replies they carry follow their prompt (teacher forcing).
        sites: names of sites and places of the user's own (`emotrace.Site`).
        layers: 0-based layers; None for every layer that has the sites.
        positions: policy or span; ``generated`` needs prompts with replies.
        edits: applied in the same forward, before the reads of their site.
        gradients: a metric of `emotrace.discovery` (or anything like it), read at the last token of each prompt: beside every
            variable ``X`` the store holds ``X_gradient`` = d metric / d X at the same rows, in the layers that come before the
            metric, from one backward pass per forward; and ``metric``, what it is for the prompt of each row. A metric of
            pairs finds labels of the counterfactual as ``against_NAME``.
        components: beside ``z`` and ``neuron`` also what the norms behind them divide by, with all heads and without each (see
            `emotrace.forwards.capturing.components`), which scores out of the store need where a norm follows: the ``normed``
            read-out (capture ``resid_mid`` too), post-norm blocks, post-LN (capture ``resid_pre`` too).
        reduce: ``mean`` keeps one row per prompt, the mean over its positions in float32, taken where the model lives; the label
            ``averaged`` says over how many, ``position`` is the last of them. ``positions="generated"`` gives means over replies.
        out: zarr store to write or to continue, a folder or a URL (``s3://…``, ``gs://…``, ``az://…``; keys and endpoint
            come from the provider's variables); None keeps everything in memory. A killed capture that is repeated computes again
            what came since its journal was last written: at most a minute's work, or one batch that takes longer; up to a row
            group where the disk has no room beside the groups. Remotely the ids of jobs on their way are
            kept beside it (``….jobs``) until it is whole.
        batch_size: most prompts per forward; ``auto`` for what fits into a quarter of the free memory. The store does not depend
            on it.
        share_prefixes: compute shared first tokens once (never with edits, never when early positions are wanted, never on
            a server that hands a trace copies of the model's values).
        codec: ``none``, ``lz4`` or ``zstd``.
        row_group_bytes: most memory of one row group, the unit of commit; two of them are held.
        seed: recorded only; a capture draws nothing.
        rank: ``(i, n)``: this process is one of n that fill the same store, also on other machines that see ``out``: it takes
            every n-th row group, then those that no living rank works on, and returns when all are there. The tree is that of one
            process, to the byte. None takes what SLURM (array or tasks) and torchrun say, and prints it.
        client: a ``dask.distributed.Client``: each of its workers loads the model and takes one rank.
        progress: show a bar on stderr.

    Returns:
        `emotrace.Activations`.

    Raises:
        EmotraceError: before anything runs, for prompts, sites, positions or edits that do not fit the model; for a
            store made with other settings; for a disk without room.
    """
    arguments.batch("batch_size", batch_size)
    arguments.whole("row_group_bytes", row_group_bytes, 1)
    for name, value in (("share_prefixes", share_prefixes), ("progress", progress), ("components", components)):
        arguments.flag(name, value)
    arguments.seed("seed", seed)
    if out is not None and not disk.is_url(out):
        to_folder(out, store=True)
    if reduce is not None and (gradients is not None or components):
        raise EmotraceError(
            f"capture(reduce={reduce!r}): gradients and components belong to single rows; capture them without."
        )
    taken = ranks.chosen(rank, out, "capture(rank)")
    if client is not None and (out is None or rank is not None):
        raise EmotraceError("capture(client=…): workers take the ranks of a store: give out=, and no rank.")
    job, plan = prepared(
        model, prompts, sites, layers=layers, positions=positions, edits=edits, batch_size=batch_size,
        share_prefixes=share_prefixes, codec=codec, row_group_bytes=row_group_bytes, seed=seed, gradients=gradients,
        components=components, mean=reduce == "mean",
    )  # fmt: skip
    yield lambda: _dry(job, plan, out)
    if gradients is not None and not differentiable(model):
        raise EmotraceError(
            "capture(gradients=…): the server keeps no graph of the model. Capture values there without gradients; "
            "attribution.sublayer_influence takes central differences, and a model loaded here gives gradients."
        )
    if out is None:
        return _to_memory(job, plan, progress)
    if client is not None:
        return ranks.on_workers(
            client, capture, model, Prompts.of(prompts), sites, layers=layers, positions=positions, edits=edits,
            gradients=gradients, components=components, reduce=reduce, batch_size=batch_size, codec=codec, seed=seed,
            share_prefixes=share_prefixes, row_group_bytes=row_group_bytes, out=out, progress=False,
        )  # fmt: skip
    return _to_store(job, plan, out, progress, taken)


def _dry(job: CaptureJob, plan: Plan, out: str | Path | None) -> DryRows:
    free = None if out is None or disk.is_url(out) else shutil.disk_usage(_existing(Path(out))).free
    job.exact = True  # as where shared beginnings are proven, which takes forwards
    asked = None
    if backend(job.model).limit is not None:
        asked = sum(1 for group in plan.groups for _ in filling.pieces(job, group))
    tokens = sum(map(len, job.sequences))
    return DryRows(len(job.prompts), plan.n_rows, tokens, plan.bytes, plan.n_groups, free, asked)


def _to_store(job: CaptureJob, plan: Plan, out: str | Path, progress: bool, rank: Rank) -> Activations:
    refuse_changed(job.model)
    log = Path(out).with_name(f"{Path(out).name}{'' if rank.of == 1 else f'.{rank.number}'}.jobs")
    log = log if backend(job.model).resumes and not disk.is_url(out) else None
    begun: set[int] = set()
    with store.create_or_resume(out, plan, progress, rank) as writer:
        plan = writer.plan
        share = [g for g in writer.pending() if g.index % rank.of == rank.number]
        if rank.of > 1 and rank.number >= plan.n_groups:
            warnings.warn(
                f"{rank} has no row group of its own: there are {plan.n_groups}. A smaller row_group_bytes cuts more.",
                stacklevel=3,
            )
        with progress_bar(
            total=sum(len(g.prompts) for g in share), desc="capture", unit="prompt", enabled=progress
        ) as bar:
            write = writer.submit if log is None else writer.commit  # ids are forgotten once what they gave is safe
            while True:
                for group, buffers in filling.filled(
                    job, writer.claimed(), writer.made, writer.buffers, bar, log, writer
                ):
                    begun.update(prompt.prompt for prompt in group.prompts)
                    write(group, buffers)
                if not writer.more():
                    break
    if begun:
        before = [i for i, chosen in enumerate(job.chosen) if len(chosen) and i not in begun]
        lengths = [len(job.sequences[i]) for i in before]
        job.count(
            edits_.reached(job.edits, [job.prompt_lengths[i] for i in before], lengths)
        )  # committed by earlier runs, or by other ranks
        edits_.refuse_silent(job.edits, job.fired)
    return store.open_activations(out)


def _to_memory(job: CaptureJob, plan: Plan, progress: bool) -> Activations:
    plan = replace(plan, row_group=plan.n_rows)  # nothing is committed: one group, every prompt computed once
    arrays = {v.name: memory.empty(v.shape(plan.n_rows), v.dtype) for v in plan.variables}
    with progress_bar(total=len(job.prompts), desc="capture", unit="prompt", enabled=progress) as bar:
        for _ in filling.filled(job, plan.groups, "", lambda _: arrays, bar, None):
            pass
    edits_.refuse_silent(job.edits, job.fired)
    return store.Activations.in_memory(plan, arrays)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
