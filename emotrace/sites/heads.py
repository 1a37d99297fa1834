"""Heads: into how many equal parts z of a layer is divided, shown by what is mixed within a part and never across.

One column of one output inside the attention is changed at a time (of the queries, keys, values, gates, whatever there is),
and the columns of z that follow are noted. A query's column moves all columns of its head and no other; the parts are the
finest blocks of equal size, of more than one column, that are moved so, all of them. Where there are none the heads are not
known: a norm over the whole width mixes them, for example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from emotrace.configs import numbers
from emotrace.sites.address import Address
from emotrace.sites.probe import Change, ModuleSide, Recording, watched
from emotrace.sites.roles import begin_anew

COLUMNS, FEW = 96, 8
"""Columns of one output that are changed, spread evenly; of a model that is too large for more."""
AT_ONCE = 192
"""Changes of one forward."""
LARGE = 100_000_000
ALONE = 8
"""Layers that are tried one by one where heads were not found when all layers were changed at once."""
SMALL = 1e-5
Column = tuple[str, int, int]
"""``(module path, column, columns in all)``"""


def heads(
    module: nn.Module, ids: Tensor, recording: Recording, z: Mapping[int, Address], blocks: Mapping[int, str]
) -> dict[int, int]:
    """Number of heads of each layer whose heads could be shown.

    Args:
        module: the probed model.
        ids: of the probe, of which the first row is taken.
        recording: of the probed model.
        z: addresses of the layers that have z.
        blocks: module path of each layer.
    """
    most = FEW if sum(p.numel() for p in module.parameters()) > LARGE else COLUMNS
    found: dict[int, int] = {}
    pending = [list(z), *([layer] for layer in z)]
    for those in pending[: 1 + ALONE]:
        those = [layer for layer in those if layer not in found]
        columns = {i: _columns(recording, z[i], blocks[i], most) for i in those}
        changed = _followed(module, ids, {i: z[i] for i in those}, columns, blocks)
        for layer, moved in changed.items():
            n = parts(moved, all_tried=all(width <= most for _, _, width in columns[layer]))
            if n:
                found[layer] = n
    return found


def parts(moved: Tensor, all_tried: bool = True) -> int:
    """The number of blocks that ``moved [change, column]`` shows, 0 where it shows none.

    Args:
        moved: whether a column of z followed a change. Where only whole rows move, there is one block or a mixture of all.
        all_tried: whether every block must have been moved alone; else two different ones are enough.
    """
    width = moved.shape[1]
    seen: dict[int, set[int]] = {}
    for row in moved:
        at = row.nonzero().flatten()
        n = len(at)
        if 1 < n < width and width % n == 0 and int(at[-1] - at[0]) == n - 1 and int(at[0]) % n == 0:
            seen.setdefault(n, set()).add(int(at[0]) // n)
    for size in sorted(seen):
        if len(seen[size]) == width // size or (not all_tried and len(seen[size]) > 1):
            return width // size
    return int(not seen and bool(moved.all(1).any()))


def _columns(recording: Recording, z: Address, block: str, most: int) -> list[Column]:
    """What is changed in one layer: columns of what runs in its attention before z, is ``[batch, token, column]``."""
    start = recording.at(z.path)[0]
    end, z_shape = start.order_in, () if start.inp is None else start.inp.shape
    chosen: list[Column] = []
    attention = ".".join(z.path.split(".")[: len(block.split(".")) + 1])
    for call in recording.under(block if attention == z.path else attention):
        out = call.out
        beside = call.path != z.path and not z.path.startswith(call.path + ".")
        if out is None or not beside or call.order_out >= end or out.ndim != 3 or out.shape[:2] != z_shape[:2]:
            continue
        width = out.shape[-1]
        each = torch.linspace(0, width - 1, min(width, most)).long().tolist()
        chosen += [(call.path, column, width) for column in each]
    return chosen


def _followed(
    module: nn.Module,
    ids: Tensor,
    z: Mapping[int, Address],
    columns: Mapping[int, list[Column]],
    blocks: Mapping[int, str],
) -> dict[int, Tensor]:
    """Which columns of z follow each change, ``[change, column]`` by layer."""
    most = max((len(c) for c in columns.values()), default=0)
    found: dict[int, list[Tensor]] = {layer: [] for layer in z}
    for start in range(0, most, AT_ONCE):
        n = 1 + min(AT_ONCE, most - start)
        changes: dict[ModuleSide, Change] = {}
        watch: dict[ModuleSide, Any] = {}
        for layer, address in z.items():
            changes[blocks[layer], "input"] = begin_anew(layer)
            by_path: dict[str, list[tuple[int, int]]] = {}
            for row, (path, column, _) in enumerate(columns[layer][start : start + n - 1], start=1):
                by_path.setdefault(path, []).append((row, column))
            for path, where in by_path.items():
                changes[path, "output"] = _shifted(where, n)
            watch[address.path, address.side] = _noting(found[layer], n)
        watched(module, ids[:1].expand(n, -1).contiguous(), changes, watch)
    return {layer: torch.cat(moved)[: len(columns[layer])] for layer, moved in found.items() if moved}


def _shifted(where: list[tuple[int, int]], n: int) -> Change:
    """Noise of three times the output's size in one column of a row, another for every token."""
    rows_, columns = (torch.tensor(x) for x in zip(*where, strict=True))

    def change(value: Tensor) -> Tensor:
        if value.ndim != 3 or value.shape[0] != n:  # a second call, on something that is the same for all prompts
            return value
        new = value.clone()
        noise = torch.randn(value.shape[1], generator=torch.Generator().manual_seed(0))
        size = 3 * float(value[0].float().std())
        new[rows_, :, columns] += (size * noise).to(value.device, value.dtype)
        return new

    return change


def _noting(into: list[Tensor], n: int) -> Callable[[Tensor], None]:
    def look(value: Tensor) -> None:
        value = value.detach().double().reshape(n, -1, value.shape[-1])
        change = (value[1:] - value[:1]).abs().amax(1)
        into.append((change > SMALL * float(value[0].abs().max())).cpu())

    return look


def carried(here: Mapping[str, int], there: Mapping[str, int], n: int, width: int, real_width: int) -> int:
    """Heads of a layer of the real model, from those of its twin: by the numbers that say them in both.

    A number of heads and a head's width are sought among the numbers of the twin, such that the same two make up the
    width of the real layer.

    Args:
        here: numbers of the twin's layer, by name.
        there: those of the real layer.
        n: heads of the twin's layer.
        width: of the twin's z.
        real_width: of the real z.

    Returns:
        0 where the numbers do not say it, or contradict each other.
    """
    counts = {there[k] for k, value in here.items() if value == n and _is_count(k) and there.get(k, 0) > 0}
    sizes = {there[k] for k, value in here.items() if value == width // n and _is_size(k) and there.get(k, 0) > 0}
    found = {c for c in counts for s in sizes if c * s == real_width}
    if not found:
        found = {real_width // s for s in sizes if real_width % s == 0} or {c for c in counts if real_width % c == 0}
    return found.pop() if len(found) == 1 else 0


def _is_count(name: str) -> bool:
    return "head" in name.rpartition(".")[2] and not _is_size(name)


def _is_size(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return any(part in leaf for part in ("dim", "size", "channels", "d_kv"))


def layer_numbers(module: nn.Module, block: str, z: str, config: object, layer: int) -> list[dict[str, int]]:
    """Whole numbers that describe a layer's attention: those of the modules around z, and the configuration's beside them.

    Args:
        module: of the whole model.
        block: path of the layer.
        z: path of the projection after z.
        config: of the language model.
        layer: 0-based.
    """
    own: dict[str, int] = {}
    names = z.removeprefix(f"{block}.").split(".")[:-1]
    for depth in range(1, len(names) + 1):
        path = ".".join((block, *names[:depth]))
        around = module.get_submodule(path)
        # projections and norms know their own sizes only
        inside = [(n, m) for n, m in around.named_children() if not any(p is not None for p in m._parameters.values())]
        for child_name, child in [("", around), *inside]:
            for name, value in vars(child).items():
                if isinstance(value, Integral) and not isinstance(value, bool):
                    own[f"{'.'.join(names[:depth])}.{child_name}.{name}"] = int(value)
    return [own, own | {f"config.{name}": value for name, value in numbers(config, layer)}]
