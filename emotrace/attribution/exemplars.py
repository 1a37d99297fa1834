"""Exemplars: prompts and tokens that excite a neuron."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from emotrace import arguments
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt, Prompts, PromptsLike
from emotrace.directions.source import provenance_of
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations
from emotrace.store.asked import of_acts

AT = ("key", "position", "position_from_end", "token_id", "token_text")
"""Columns that say which token of which prompt a row is."""
BEFORE, AFTER = 6, 3
"""Most stored tokens before and after one that are shown with it."""


def _stored(acts: Activations, layer: int, units: int | Iterable[int], k: int = 10) -> pd.DataFrame:
    """`top_prompts` of stored activations."""
    chosen = list(arguments.wholes("top_prompts(units)", units))
    arguments.whole("top_prompts(k)", k, 1)
    values = acts.sel("neuron", layer=layer, unit=chosen).transpose("token", "unit").values
    at = {name: acts.column(name) for name in acts.columns if name not in ("prompt", "prompt_length")}
    around = _Around(acts)

    def about(row: int) -> dict[str, Any]:
        place = {name: at[name][row] for name in AT} | {
            "before": around.text(row, -BEFORE),
            "after": around.text(row, AFTER),
        }
        return {**place, **{name: column[row] for name, column in at.items() if name not in place}}

    return _table(layer, chosen, values, k, about, provenance_of(acts))


class _Around:
    """The tokens beside a row, as far as the rows that follow each other in its prompt hold them."""

    def __init__(self, acts: Activations) -> None:
        self.texts = acts.column("token_text")
        apart = (np.diff(acts.column("prompt")) != 0) | (np.diff(acts.column("position")) != 1)
        self.ends = np.append(np.flatnonzero(apart) + 1, len(acts))

    def text(self, row: int, n: int) -> str:
        """Of up to n rows behind one, or of up to -n before it."""
        run = int(np.searchsorted(self.ends, row, side="right"))
        first = int(self.ends[run - 1]) if run else 0
        part = range(row + 1, min(row + 1 + n, int(self.ends[run]))) if n > 0 else range(max(first, row + n), row)
        return "".join(str(self.texts[i]) for i in part)


@of_acts(_stored)
@typed
def top_prompts(
    model: LanguageModel,
    prompts: PromptsLike,
    layer: int,
    units: int | Iterable[int],
    k: int = 10,
    *,
    batch_size: BatchSize = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """The prompts at whose last token each neuron is highest; of ``acts``, the tokens.

    ``top_prompts(acts, layer, units, k)`` ranks the stored rows, each one (prompt, position): of reply tokens (``positions=
    "generated"``) or of those that ``acts.where(…)`` leaves, and needs no model.

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes.
        layer: 0-based.
        units: one or several neurons of the layer.
        k: prompts of each; all where there are fewer.
        batch_size: prompts per forward, or ``auto`` for what fits.
        progress: show a bar.

    Returns:
        One row per unit and rank: ``layer, unit, rank`` (0 is the highest), ``activation, key, position, position_from_end,
        token_id, token_text``, of a model and prompts also ``text`` (of the last message), of ``acts`` ``before`` and ``after``
        (texts of the stored tokens beside it, up to 6 and 3), and the prompt's labels. ``attrs`` say model and rows.

    Raises:
        EmotraceError: for a layer without neurons, or a unit that it lacks.
    """
    from emotrace.forwards.rows import asked
    from emotrace.forwards.streams import fitting, origin, reductions
    from emotrace.traced import contributions

    prompts = Prompts.of(prompts)
    address = model.sites.address("neuron", layer)
    chosen = list(arguments.wholes("top_prompts(units)", units))
    wrong = [u for u in chosen if not 0 <= u < address.width]
    if wrong:
        raise EmotraceError(f"top_prompts(units={wrong[0]}): layer {layer} has units 0 to {address.width - 1}.")
    arguments.whole("top_prompts(k)", k, 1)
    batch_size = asked(model, batch_size, prompts, "top_prompts(batch_size)")
    activations = np.zeros((len(prompts), len(chosen)), dtype=np.float32)
    for rows, (values,) in reductions(
        model, prompts, "neuron", contributions.picked, lambda _: ([chosen],), layers=[layer],
        prompts_per_chunk=fitting(4 * address.width), batch_size=batch_size, progress=progress,
        desc=f"neurons of layer {layer}",
    ):  # fmt: skip
        activations[rows.start : rows.stop] = values.numpy()
    encoder = model.sites.encoder
    ids = encoder.ids(prompts)

    def about(row: int) -> dict[str, Any]:
        prompt, last = prompts[row], ids[row][-1]
        at = (prompt.key, len(ids[row]) - 1, -1, int(last), encoder.token_texts([last])[0])
        return {**dict(zip(AT, at, strict=True)), "text": _text(prompt), **prompt.labels}

    return _table(layer, chosen, activations, k, about, origin(model, prompts))


def _table(
    layer: int,
    units: list[int],
    values: np.ndarray,
    k: int,
    about: Callable[[int], dict[str, Any]],
    attrs: dict[str, Any],
) -> pd.DataFrame:
    """The k rows with the highest values ``[row, unit]`` of each unit, ties in order, and what is known of each."""
    order = np.argsort(-values, axis=0, kind="stable")[:k]
    found = []
    for column, unit in enumerate(units):
        for rank, row in enumerate(order[:, column].tolist()):
            place = {"layer": layer, "unit": int(unit), "rank": rank, "activation": float(values[row, column])}
            found.append(place | {name: value for name, value in about(row).items() if name not in place})
    table = pd.DataFrame(found)
    table.attrs.update(attrs)
    return table


def _text(prompt: Prompt) -> str:
    """What a person reads of a prompt: its last message, its text, or its ids."""
    if prompt.messages:
        return str(prompt.messages[-1]["content"])
    return prompt.text if prompt.text is not None else " ".join(map(str, prompt.token_ids or ()))
