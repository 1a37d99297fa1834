"""Kept: prompts whose first tokens are computed once for all calls: all edits, doses and draws that begin behind them.

In a causal model nothing at a token depends on what follows it. So the keys and values of a prompt's first tokens, up to where
something is wanted of them, are the same whatever is done behind: they are computed once and kept beside the model, within
``model.sites.kept_bytes`` (a share of what is held anyway), under the edits that act in them. Prompts that begin alike (few-shot
examples, a system message) share that beginning's computation too. Where a model does not allow it
(`emotrace.forwards.beginnings`), everything is computed whole.
"""

from __future__ import annotations

import hashlib
import uuid
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import xarray as xr

from emotrace import configs, disk, memory
from emotrace import edits as edits_
from emotrace.edits import Edit, edits_digest
from emotrace.forwards import beginnings, caches
from emotrace.forwards.capturing.prefixes import prefixes
from emotrace.forwards.entering import backend, inputs, locked
from emotrace.forwards.finite import Item
from emotrace.identity import bits, weights_hash
from emotrace.labels import positions_in
from emotrace.sites import LanguageModel, Site
from emotrace.traced import edits as leaf
from emotrace.traced.caches import Setup
from emotrace.traced.inner import Controller
from emotrace.traced.kept import Begun, BegunRow, Block, Kept, Pass, Wanted

BLOCK_TOKENS = 4096
"""Most tokens, padding included, of the rows of one block, beside what all of them begin with."""

WORTH = 1e9
"""Floating-point operations of the first tokens of a call from which on they are kept: fewer take about as long as a pass."""

SHARE = 0.08
"""Of the memory that is held, for what is kept where the user says nothing: ten times the prompts take no tenth more."""

_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))
"""Attributes that torch itself keeps."""
_KEPT: weakref.WeakKeyDictionary[torch.nn.Module, Kept] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Placed:
    """Where the first tokens of one distinct beginning are computed: row of a block, and how many tokens it has there."""

    block: int
    row: int
    own: int


class Shared:
    """The first tokens of sequences, up to the last token of each prompt, from which on everything is wanted.

    Args:
        model: from `emotrace.load`.
        items: everything that one call runs on, so that what is computed together does not depend on what is left to do.
        edits: checked.
        longest: most tokens of a sequence, generated ones included.
        batch_size: most rows of a forward.
    """

    def __init__(
        self, model: LanguageModel, items: Sequence[Item], edits: Sequence[Edit], longest: int, batch_size: int
    ) -> None:
        self.model, self.items, self.batch_size = model, items, batch_size
        self.cuts = [max(0, len(item.ids) - 1) for item in items]
        self.starts = [tuple(item.ids[:cut]) for item, cut in zip(items, self.cuts, strict=True)]
        self.inside = [n for n, edit in enumerate(edits) if any(self._reach(edit, i) for i in range(len(items)))]
        self.edits = [edits[n] for n in self.inside]
        self.dims = self._dims()
        own = any(
            isinstance(edit.site, Site) for edit in self.edits
        )  # of a place of the user's own nobody knows when it is
        long = max(self.cuts, default=0) >= beginnings.MIN_PREFIX
        self.on = not own and long and self._pays() and allowed(model, longest)
        self.setup: Setup | None = None
        self.blocks: list[tuple[int, list[int]]] = []
        self.plans: dict[Hashable, Placed] = {}
        self.made: dict[int, Block] = {}
        self.state = ""
        if model._module in _KEPT:  # a limit that was lowered holds from the next call on, whatever that shares
            with locked(model):
                _KEPT[model._module].call(_limit(model))
        if self.on:
            self.state = state(model)
            self._plan()

    def _pays(self) -> bool:
        """Whether the first tokens take longer to compute than to keep: those of a tiny model do not. Counted, not timed, so
        that the same call always does the same."""
        if not backend(self.model).holds(self.model):
            return True
        size = self.model.sites.vocab_size
        each = sum(p.numel() for p in self.model._module.parameters() if size not in p.shape)
        return 2 * each * sum(map(len, set(self.starts))) >= WORTH

    def _kept(self) -> Kept:
        """What is known of the model where it is here; of one elsewhere, nothing yet."""
        if not backend(self.model).holds(self.model):
            return Kept(float("inf"))
        with locked(self.model):
            found = _KEPT.setdefault(self.model._module, Kept(0))
            found.within(_limit(self.model))
        return found

    def rest(self, i: int) -> int:
        """Tokens of a sequence that are computed whatever is kept."""
        return len(self.items[i].ids) + len(self.items[i].reply) - (self.cuts[i] if self.on else 0)

    def begun(self, rows: Sequence[int]) -> Begun | None:
        """What the rows of a batch begin with; None where nothing is to be gained."""
        if self.setup is None:
            return None
        rest = max(self.rest(i) for i in rows)
        width = max(self.rest(i) + self.cuts[i] for i in rows)
        if width - rest < beginnings.MIN_PREFIX:
            return None
        numbers: dict[int, int] = {}
        laid = []
        for i in rows:
            tokens = max(0, self.rest(i) + self.cuts[i] - rest)
            if not tokens:
                laid.append(BegunRow(0, 0, 0, 0))
                continue
            plan = self.plans[self._key(i)]
            laid.append(BegunRow(numbers.setdefault(plan.block, len(numbers)), plan.row, tokens, plan.own))
        wanted = Wanted([self._block(n) for n in numbers], laid, width - rest, tuple(self.inside))
        return Begun(wanted, self.setup, self._kept())

    def by_blocks(self, rows: Sequence[int], size: Callable[[int], int]) -> list[list[int]]:
        """Rows in batches that find their beginnings in few blocks; of a block, those with most to compute first.

        Args:
            rows: which.
            size: most rows of a batch, of the most tokens that are computed of one.
        """

        def place(i: int) -> tuple[int, ...]:
            plan = self.plans.get(self._key(i), Placed(-1, 0, 0))
            return plan.block, -self.rest(i), plan.row, i

        left = sorted(rows, key=place)
        found: list[list[int]] = []
        while left:
            n = max(1, size(self.rest(left[0])))
            n = max(1, min(n, size(max(self.rest(i) for i in left[:n]))))
            found.append(left[:n])
            left = left[n:]
        return found

    # -- which tokens are computed together ----------------------------------------------------------------------------

    def _plan(self) -> None:
        """Distinct beginnings in blocks; nothing but items, edits and batch size decides."""
        last = max(self.model.sites.layers("resid_post"))
        site = "attn_out" if self.model.sites.has("attn_out", last) else "resid_post"
        self.setup = caches.setup(self.model, [self.model.sites.address(site, last).seen.read(self.model)])
        groups: dict[Hashable, dict[tuple[int, ...], int]] = {}
        for i, cut in enumerate(self.cuts):
            if cut > 0:
                groups.setdefault(self._labels(i), {}).setdefault(self.starts[i], i)
        for labels, distinct in groups.items():
            starts = list(distinct)
            known = [starts[n] for n in beginnings.longest_first([len(ids) for ids in starts])]
            for length, members in prefixes(known, [len(ids) - 1 for ids in known]):
                self._into_blocks(length, [known[m] for m in members], labels, distinct)

    def _into_blocks(
        self, length: int, known: list[tuple[int, ...]], labels: Hashable, distinct: dict[tuple[int, ...], int]
    ) -> None:
        at = 0
        while at < len(known):
            rows = max(1, min(self.batch_size, BLOCK_TOKENS // (len(known[at]) - length)))
            for row, ids in enumerate(known[at : at + rows]):
                self.plans[ids, labels] = Placed(len(self.blocks), row, len(ids) - length)
            self.blocks.append((length, [distinct[ids] for ids in known[at : at + rows]]))
            at += rows

    def _key(self, i: int) -> tuple[tuple[int, ...], Hashable]:
        return self.starts[i], self._labels(i)

    def _labels(self, i: int) -> Hashable:
        """The labels of an item by which the edits in its beginning choose their payload."""
        return tuple((dim, self.items[i].about.get(dim)) for dim in self.dims)

    def _dims(self) -> list[str]:
        """Dims of the payloads of these edits that are labels."""
        named = {str(d) for e in self.edits if isinstance(e.payload, xr.DataArray) for d in e.payload.dims}
        return sorted(named & {name for item in self.items for name in item.about})

    def _reach(self, edit: Edit, i: int) -> bool:
        """Whether an edit acts in the beginning of an item."""
        n = len(self.items[i].ids)
        acts = positions_in(edit.positions, n, n)
        return len(acts) > 0 and acts.start < self.cuts[i]

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _block(self, number: int) -> Block:
        if number not in self.made:
            length, rows = self.blocks[number]
            prefix = self._pass(rows[:1], 0, length) if length else None
            self.made[number] = Block(prefix, self._pass(rows, length, None))
        return self.made[number]

    def _pass(self, rows: list[int], start: int, stop: int | None) -> Pass:
        """One forward over the tokens from ``start`` on, behind those before, which all rows share."""
        assert self.setup is not None
        stops = [self.cuts[i] if stop is None else stop for i in rows]
        fed = inputs(self.model, [self.starts[i][start:end] for i, end in zip(rows, stops, strict=True)])
        width = start + fed["input_ids"].shape[1]
        lowered = edits_.lower(
            self.edits, self.model.sites, [self.items[i].about for i in rows], [len(self.items[i].ids) for i in rows],
            stops, width, True,
        )  # fmt: skip
        (read,) = self.setup.program
        program = [step for step in lowered.program([read]) if step.order <= read.order]
        late = [group for group in lowered.groups if group.order > read.order]
        later = {op.number for group in late for op in leaf.live(group, start, width)}
        known = [self.starts[i][:end] for i, end in zip(rows, stops, strict=True)]
        about = [self._labels(i) for i in rows]
        key = disk.digest([self.state, edits_digest(self.edits), start, known, repr(about)])
        return Pass(key, fed, program, lowered.count, tuple(sorted(later)))


def _limit(model: LanguageModel) -> int:
    """Bytes that are kept at most: where the user says nothing, `SHARE` of what was held when that was first asked."""
    if model.sites.kept_bytes is None:
        model.sites.kept_bytes = int(SHARE * memory.held(next(model._module.parameters()).device))
    return model.sites.kept_bytes


def allowed(model: LanguageModel, longest: int) -> bool:
    """Whether sequences of up to so many tokens may begin with kept keys and values."""
    sites = model.sites
    if sites.kept_bytes == 0 or not (sites.encoder.causal and sites.has("resid_post")):
        return False
    return longest <= beginnings.shared_up_to(model) and beginnings.of(model).continued


def state(model: LanguageModel) -> str:
    """Of a model that is here, what a change of its weights, configuration, hooks and switches changes.

    Weights are compared by their bits: a change through ``.data`` leaves no other trace. That costs about what one or two new
    tokens do. What a hook or a ``forward`` of the user's own does may change unseen: nothing is kept from one call to the next.
    """
    module = model._module
    if not backend(model).holds(model) or any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        return ""  # its weights are elsewhere
    if any(_own(part) for part in module.modules()):
        return uuid.uuid4().hex
    config, sha = module.config, hashlib.sha256(weights_hash(module).encode())
    attention = configs.field(config, "_attn_implementation", "")
    sha.update(f"{config.to_json_string(use_diff=False)} {attention} {module.dtype}".encode())
    for part in module.modules():
        switches = {k: v for k, v in vars(part).items() if k not in _OF_EVERY_MODULE and _plain(v)}
        sha.update(f"{type(part).__name__} {part.training} {switches}".encode())
        for name, tensor in part._buffers.items():
            if tensor is not None and name in part._non_persistent_buffers_set:
                sha.update(bits(tensor))
    return sha.hexdigest()


def _own(part: torch.nn.Module) -> bool:
    """Whether a module has a hook, or a ``forward`` that neither its class, nnsight nor accelerate gave it."""
    forward = vars(part).get("forward")
    given = forward is not None and not isinstance(forward, Controller) and "_hf_hook" not in vars(part)
    return given or bool(part._forward_hooks or part._forward_pre_hooks)


def _plain(value: object) -> bool:
    """Whether the representation of a value says all of it."""
    if isinstance(value, dict):
        return all(_plain(k) and _plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
