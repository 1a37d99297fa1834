"""Run: one capture from prompts to a labelled store, or to memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emotrace import edits as edits_
from emotrace import store
from emotrace.capturing import afar, memory
from emotrace.capturing.groups import fitted
from emotrace.capturing.job import Job
from emotrace.capturing.reads import Reads
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.labels import EmotraceError, Positions, check_positions, positions_in
from emotrace.model import enter, inputs, versions
from emotrace.runlog import progress as progress_bar
from emotrace.sites import Site
from emotrace.traced import requests


@dataclass(frozen=True)
class Dry:
    """What a capture would do: rows, bytes, row groups, the free disk at its destination, and requests to a server."""

    rows: int
    prompts: int
    tokens: int
    bytes: int
    row_groups: int
    free_disk: int | None
    requests: int | None = None

    def __str__(self) -> str:
        free = "" if self.free_disk is None else f", {self.free_disk / 1e9:.1f} GB free"
        free += "" if self.requests is None else f"; {self.requests} requests, whose answers hold these bytes at most"
        return (
            f"{self.prompts} prompts, {self.tokens} tokens → {self.rows} rows, {self.bytes / 1e6:.1f} MB in "
            f"{self.row_groups} row groups{free}"
        )


def capture(
    model: Any,
    prompts: Any,
    sites: Sequence[str | Site] | str = ("resid_mid", "resid_post"),
    *,
    layers: Iterable[int] | int | None = None,
    positions: Positions = "last",
    edits: Sequence[Edit] | None = None,
    out: str | Path | None = None,
    batch_size: int = 32,
    share_prefixes: bool = True,
    codec: str = "none",
    row_group_bytes: int = 256 << 20,
    seed: int = 0,
    progress: bool = True,
    dry_run: bool = False,
) -> Any:
    """Activations of prompts at chosen sites and positions.

    Only what is asked is copied, and nothing after the last wanted site is computed. Prompts that begin alike share the
    computation of their first tokens where only later positions are wanted. The values are those of one prompt at a
    time, to float rounding, whatever the batch, the order and the padding.

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes. Replies they carry follow their prompt (teacher forcing).
        sites: names of sites and places of the user's own (`emotrace.Site`).
        layers: 0-based layers; None for every layer that has the sites.
        positions: policy or span; ``generated`` needs prompts with replies.
        edits: applied in the same forward, before the reads of their site.
        out: zarr store to write or to continue; None keeps everything in memory. Remotely the ids of jobs on their way are
            kept beside it (``….jobs``) until it is whole.
        batch_size: prompts per forward.
        share_prefixes: compute shared first tokens once (never with edits, never when early positions are wanted, never on
            a server that hands a trace copies of the model's values).
        codec: ``none``, ``lz4`` or ``zstd``.
        row_group_bytes: most memory of one row group, the unit of commit; two of them are held.
        seed: recorded only; a capture draws nothing.
        progress: show a bar on stderr.
        dry_run: return what would be done instead of doing it.

    Returns:
        `emotrace.Activations` (a `Dry` for ``dry_run``).

    Raises:
        EmotraceError: before anything runs, for prompts, sites, positions or edits that do not fit the model; for a
            store made with other settings; for a disk without room.
    """
    prompts = Prompts.of(prompts)
    table, encoder = model.sites, model.sites.encoder
    check_positions(positions, "capture(positions=…)")
    if batch_size < 1:
        raise EmotraceError(f"capture(batch_size={batch_size}): at least 1.")
    wanted = [sites] if isinstance(sites, (str, Site)) else list(sites)
    edits = [] if edits is None else edits
    edits_.check(edits, table, [p.about for p in prompts])
    edits = list(edits)
    ids = encoder.ids(prompts)
    prompt_lengths = [len(i) for i in ids]
    sequences = [i + list(p.reply_ids or ()) for i, p in zip(ids, prompts, strict=True)]
    if positions == "generated" and not any(p.reply_ids for p in prompts):
        raise EmotraceError(
            "capture(positions='generated') needs prompts that carry replies: capture never generates. "
            "Use generate, then prompts.with_replies(rows)."
        )
    chosen = [positions_in(positions, p, len(s)) for p, s in zip(prompt_lengths, sequences, strict=True)]
    if table.remote is not None and table.remote.copies:
        share_prefixes = False  # keys and values would be sent to and fro
    dtype = str(model._module.dtype).removeprefix("torch.")
    own = _own_widths(model, [s for s in wanted if isinstance(s, Site)], sequences[0])
    reads = Reads(table, wanted, layers, dtype, own, codec)
    rows = store.Rows.of(
        prompts.keys,
        sequences,
        prompt_lengths,
        chosen,
        lambda i: encoder.token_texts([i])[0],
        [p.labels for p in prompts],
    )
    attrs = {
        **table.identity, **encoder.record, "versions": versions(), "prompts_digest": prompts.digest, "seed": seed,
        "command": " ".join(sys.argv), "sites": [s.name if isinstance(s, Site) else s for s in wanted],
        "positions": list(positions) if isinstance(positions, tuple) else positions,
        "batch_size": batch_size, "share_prefixes": share_prefixes, "edits": edits_.digest(edits),
    }  # fmt: skip
    plan = fitted(store.Plan.make(rows, reads.variables, attrs, row_group_bytes), row_group_bytes, batch_size)
    job = Job(model, reads, edits, prompts, prompt_lengths, sequences, chosen, batch_size, share_prefixes)
    if dry_run:
        free = None if out is None else shutil.disk_usage(_existing(Path(out))).free
        job.exact = True
        asked = None if table.remote is None else sum(1 for g in plan.groups for _ in afar.pieces(job, g))
        return Dry(len(rows), len(prompts), sum(map(len, sequences)), plan.bytes, plan.n_groups, free, asked)
    if out is None:
        return _to_memory(job, plan, progress)
    return _to_store(job, plan, out, progress)


def _to_store(job: Job, plan: Any, out: str | Path, progress: bool) -> Any:
    remote = job.model.sites.remote
    with store.create_or_resume(out, plan) as writer:
        pending = writer.pending()
        with progress_bar(
            total=sum(len(g.prompts) for g in pending), desc="capture", unit="prompt", enabled=progress
        ) as bar:
            if remote is None:
                for group in pending:
                    buffers = writer.buffers(group)
                    job.fill(group, buffers, bar)
                    writer.submit(group, buffers)
            else:
                log = Path(out).with_name(f"{Path(out).name}.jobs")
                for group, buffers in afar.filled(job, pending, afar.identity(plan), writer.buffers, bar, log):
                    writer.commit(group, buffers)
    if pending:
        edits_.refuse_silent(job.edits, job.fired)
    return store.open_activations(out)


def _to_memory(job: Job, plan: Any, progress: bool) -> Any:
    plan = replace(plan, row_group=plan.n_rows)  # nothing is committed: one group, every prompt computed once
    arrays = {v.name: memory.empty(v.shape(plan.n_rows), v.dtype) for v in plan.variables}
    with progress_bar(total=len(job.prompts), desc="capture", unit="prompt", enabled=progress) as bar:
        if job.model.sites.remote is None:
            job.fill(plan.groups[0], arrays, bar)
        else:
            for _ in afar.filled(job, plan.groups, "", lambda _: arrays, bar, None):
                pass
    edits_.refuse_silent(job.edits, job.fired)
    return store.Activations.in_memory(plan, arrays)


def _own_widths(model: Any, own: list[Site], ids: list[int]) -> dict[str, int]:
    """Width of each place of the user's own, from one small forward.

    Raises:
        EmotraceError: if a place holds no ``[batch, token, width]`` tensor, or its module does not run.
    """
    widths: dict[str, int] = {}
    probe = ids[:4]
    fed = inputs(model, [probe])
    for site in own:
        program = [("read", 0, model.sites.resolve(site).lower(model), 0)]
        try:
            shape = tuple(enter(model, requests.shape, fed, program))
        except Exception as error:  # nnsight's or the model's own words, of whatever class
            raise EmotraceError(f"{site.name} cannot be read: {(str(error).splitlines() or [''])[0]}") from error
        if len(shape) != 3 or shape[:2] != (1, len(probe)):
            raise EmotraceError(f"{site.name} holds shape {shape}; capture stores [batch, token, width] tensors.")
        widths[site.name] = shape[2]
    return widths


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
