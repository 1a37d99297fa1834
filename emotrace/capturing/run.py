"""Run: one capture from prompts to a labelled store, or to memory."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace import store
from emotrace.capturing import memory
from emotrace.capturing.caches import Beginning, Caches
from emotrace.capturing.groups import fitted
from emotrace.capturing.prefixes import Stem, batches, stems, twigs
from emotrace.capturing.reads import Reads, Sink
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.labels import EmotraceError, Positions, check_positions, positions_in
from emotrace.model import locked, versions
from emotrace.runlog import progress as progress_bar
from emotrace.sites import Site
from emotrace.traced import runs

SHARING_TOLERANCE = 1e-3
"""Largest relative deviation of a prompt computed behind a shared prefix; a model that exceeds it never shares."""


@dataclass(frozen=True)
class Dry:
    """What a capture would do: rows, bytes, row groups, and the free disk at its destination."""

    rows: int
    prompts: int
    tokens: int
    bytes: int
    row_groups: int
    free_disk: int | None

    def __str__(self) -> str:
        free = "" if self.free_disk is None else f", {self.free_disk / 1e9:.1f} GB free"
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
        out: zarr store to write or to continue; None keeps everything in memory.
        batch_size: prompts per forward.
        share_prefixes: compute shared first tokens once (never with edits, never when early positions are wanted).
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
    if dry_run:
        free = None if out is None else shutil.disk_usage(_existing(Path(out))).free
        return Dry(len(rows), len(prompts), sum(map(len, sequences)), plan.bytes, plan.n_groups, free)
    job = _Job(model, reads, edits, prompts, prompt_lengths, sequences, chosen, batch_size, share_prefixes)
    if out is None:
        return _to_memory(job, plan, progress)
    return _to_store(job, plan, out, progress)


class _Job:
    """Everything that fills the buffers of one row group."""

    def __init__(
        self, model: Any, reads: Reads, edits: list[Edit], prompts: Prompts, prompt_lengths: list[int],
        sequences: list[list[int]], chosen: list[range], batch_size: int, share: bool,
    ) -> None:  # fmt: skip
        self.model, self.reads, self.edits, self.prompts = model, reads, edits, prompts
        self.prompt_lengths, self.sequences, self.chosen = prompt_lengths, sequences, chosen
        self.batch_size = batch_size
        self.fired = [0] * len(edits)
        self.row_starts = np.concatenate([[0], np.cumsum([len(c) for c in chosen])])
        self.steps = reads.program()
        self.caches = Caches(model, self.steps)
        self.share = share and not edits and model.sites.encoder.causal
        self.exact: bool | None = None  # asked only where prompts begin alike
        takes = inspect.signature(model._module.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in takes and model.sites.encoder.causal else {}

    def fill(self, group: Any, buffers: dict[str, np.ndarray], bar: Any) -> None:
        """Compute one row group: its prompts by shared prefix, then by length, in batches."""
        targets = self.reads.targets(buffers)
        wants = {p.prompt: (p.start, p.stop) for p in group.prompts}
        members = list(wants)
        found: list[Stem] = []
        if self.share and self.exact is not False:
            firsts = [self._span(i, *wants[i])[0] for i in members]
            found = stems([self.sequences[i] for i in members], firsts)
            if self.exact is None and any(stem.length for stem in found):
                self.exact = self._sharing_is_exact()
        if not self.share or not self.exact:
            found = [Stem(0, tuple(range(len(members))))]
        for stem in found:
            self._stem(stem.length, [members[m] for m in stem.members], wants, group.start, targets, bar)

    def _stem(self, length: int, inside: list[int], wants: dict, offset: int, targets: list, bar: Any) -> None:
        """Compute the prompts of one stem: those that share more in batches of twigs, the others by length."""
        ids = [self.sequences[i] for i in inside]
        twig_batches = []
        if self.share and self.exact:
            found = twigs(ids, [self._span(i, *wants[i])[0] for i in inside], length)
            twig_batches = batches(found, ids, length, self.batch_size)
        stem = self.caches.stem(ids[0][:length]) if length or twig_batches else None
        done: set[int] = set()
        for some in twig_batches:
            assert stem is not None
            rows = [inside[m] for twig in some for m in twig.members]
            further = self._batch([ids[twig.members[0]][length : twig.length] for twig in some])
            beginning = self.caches.branched(stem, further, [len(twig.members) for twig in some])
            skips = [twig.length for twig in some for _ in twig.members]
            self._forward(rows, [wants[i] for i in rows], offset, targets, skips, beginning)
            done.update(rows)
            bar.update(len(rows))
        alone = sorted((i for i in inside if i not in done), key=lambda i: (-len(self.sequences[i]), i))
        for at in range(0, len(alone), self.batch_size):
            rows = alone[at : at + self.batch_size]
            beginning = self.caches.repeated(stem, len(rows)) if length and stem is not None else None
            self._forward(rows, [wants[i] for i in rows], offset, targets, [length] * len(rows), beginning)
            bar.update(len(rows))

    def _batch(self, ids: list[list[int]]) -> dict[str, Any]:
        device = next(self.model._module.parameters()).device
        return {k: v.to(device) for k, v in self.model.sites.encoder.batch(ids).items()}

    def _span(self, prompt: int, start: int, stop: int) -> tuple[int, int]:
        """Positions of a prompt that some of its rows stand for (rows of one prompt are consecutive positions)."""
        first = self.chosen[prompt].start + start - int(self.row_starts[prompt])
        return first, first + stop - start

    def _forward(
        self,
        batch: list[int],
        wants: list[tuple[int, int]],
        offset: int,
        targets: list[torch.Tensor],
        skips: list[int],
        beginning: Beginning | None,
    ) -> None:
        """One forward: of each prompt what follows its first ``skips`` tokens, which ``beginning`` holds."""
        encoder = self.model.sites.encoder
        inputs = self._batch([self.sequences[i][skip:] for i, skip in zip(batch, skips, strict=True)])
        width = inputs["input_ids"].shape[1]
        spans = []
        for row, (i, (start, stop), skip) in enumerate(zip(batch, wants, skips, strict=True)):
            pad = width - (len(self.sequences[i]) - skip) if encoder.causal else 0
            first, last = self._span(i, start, stop)
            spans.append((row, first - skip + pad, last - skip + pad, start - offset))
        program, count = self.steps, 0
        if self.edits:
            lengths = [len(self.sequences[i]) for i in batch]
            lowered = edits_.lower(
                self.edits, self.model.sites, [self.prompts[i].about for i in batch],
                [self.prompt_lengths[i] for i in batch], lengths, width, encoder.causal,
            )  # fmt: skip
            rank = {"keep": 1, "edit": 0, "read": 2}
            program = sorted(lowered.program() + self.steps, key=lambda s: (s[1], rank[s[0]]))
            count = lowered.count
        inputs = inputs | self.options if beginning is None else self.caches.inputs(beginning, inputs)
        with locked(self.model):
            fired = runs.capture(self.model, inputs, program, len(batch), (0, width), count, Sink(targets, spans))
        self.fired = [a + b for a, b in zip(self.fired, fired, strict=True)]

    def _sharing_is_exact(self) -> bool:
        """Whether the longest prompt comes out alike behind a stem and a padded twig; families differ in their caches."""
        longest = max(range(len(self.sequences)), key=lambda i: len(self.sequences[i]))
        first = self.chosen[longest].start if len(self.chosen[longest]) else 0
        start, stop = int(self.row_starts[longest]), int(self.row_starts[longest + 1])
        if first < 3 or stop == start:
            return False
        stem, twig, ids = first // 3, 2 * first // 3, self.sequences[longest]
        buffers = [{v.name: np.zeros(v.shape(stop - start), v.dtype) for v in self.reads.variables} for _ in range(2)]
        try:
            whole, parted = (self.reads.targets(buffer) for buffer in buffers)
            self._forward([longest], [(start, stop)], start, whole, [0], None)
            two = self._batch([ids[stem : twig + 1], ids[stem:twig]])
            beginning = self.caches.branched(self.caches.stem(ids[:stem]), two, [1, 1])
            self._forward([longest] * 2, [(start, stop)] * 2, start, parted, [twig + 1, twig], beginning)
        except Exception:  # a family without a plain key-value cache: computing every prompt whole is always right
            return False
        return all(
            np.abs(a - buffers[1][name]).max() <= SHARING_TOLERANCE * max(float(np.abs(a).max()), 1e-12)
            for name, a in buffers[0].items()
        )


def _to_store(job: _Job, plan: Any, out: str | Path, progress: bool) -> Any:
    with store.create_or_resume(out, plan) as writer:
        pending = writer.pending()
        with progress_bar(
            total=sum(len(g.prompts) for g in pending), desc="capture", unit="prompt", enabled=progress
        ) as bar:
            for group in pending:
                buffers = writer.buffers(group)
                job.fill(group, buffers, bar)
                writer.submit(group, buffers)
    if pending:
        edits_.refuse_silent(job.edits, job.fired)
    return store.open_activations(out)


def _to_memory(job: _Job, plan: Any, progress: bool) -> Any:
    plan = replace(plan, row_group=plan.n_rows)  # nothing is committed: one group, every prompt computed once
    arrays = {v.name: memory.empty(v.shape(plan.n_rows), v.dtype) for v in plan.variables}
    with progress_bar(total=len(job.prompts), desc="capture", unit="prompt", enabled=progress) as bar:
        job.fill(plan.groups[0], arrays, bar)
    edits_.refuse_silent(job.edits, job.fired)
    return store.Activations.in_memory(plan, arrays)


def _own_widths(model: Any, own: list[Site], ids: list[int]) -> dict[str, int]:
    """Width of each place of the user's own, from one small forward.

    Raises:
        EmotraceError: if a place holds no ``[batch, token, width]`` tensor, or its module does not run.
    """
    widths: dict[str, int] = {}
    probe = ids[:4]
    inputs = model.sites.encoder.batch([probe])
    inputs = {k: v.to(next(model._module.parameters()).device) for k, v in inputs.items()}
    for site in own:
        program = [("read", 0, model.sites.resolve(site).lower(model), 0)]
        seen: dict[int, Any] = {}
        try:
            with locked(model):
                runs.capture(model, inputs, program, 1, (0, len(probe)), 0, seen.__setitem__)
        except Exception as error:  # nnsight's or the model's own words, of whatever class
            raise EmotraceError(f"{site.name} cannot be read: {(str(error).splitlines() or [''])[0]}") from error
        shape = tuple(getattr(seen.get(0), "shape", ()))
        if len(shape) != 3 or shape[:2] != (1, len(probe)):
            raise EmotraceError(f"{site.name} holds shape {shape}; capture stores [batch, token, width] tensors.")
        widths[site.name] = shape[2]
    return widths


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
