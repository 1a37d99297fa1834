"""What steering and circuit of ``emotion_circuits.py`` do to the last prompt token's logits, and how much through directions.

Beside the projection, which every edit along the directions raises, stand the words by which replies of an emotion are told from
others, and the emotion's own name: directions that hold no more than the instruction's word would raise the name alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

import emotrace as et
from emotrace import attribution
from emotrace.datasets import Elicitation, Prompts
from emotrace.edits import Edit
from emotrace.replies import Row
from emotrace.sites import LanguageModel

WORDS = 5
"""Tokens of each emotion."""


def names(lm: LanguageModel, words: Mapping[str, str]) -> dict[str, list[int]]:
    """The first tokens of each emotion's name, and of the word that asks for it; those that are another's too are left out."""
    tokenizer: Any = lm.sites.encoder.tokenizer
    found: dict[str, set[int]] = {}
    for emotion in et.EMOTIONS:
        forms = {form for word in (emotion, words.get(emotion, emotion)) for form in (word, word.capitalize())}
        texts = [f"{before}{form}" for form in sorted(forms) for before in ("", " ")]
        found[emotion] = {int(tokenizer(text, add_special_tokens=False).input_ids[0]) for text in texts}
    return {e: sorted(ids - set().union(*(other for o, other in found.items() if o != e))) for e, ids in found.items()}


def measured(
    lm: LanguageModel, way: Elicitation, prompted: list[Row], plain: Prompts, dirs: xr.DataArray,
    edits: Mapping[str, Sequence[Edit]], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Arm → `attribution.logit_mediation`, and the words of each set; no names where an emotion has none of its own.

    Args:
        lm: the model.
        way: how it was asked.
        prompted: judged prompted replies to the training file.
        plain: prompts of held-out training skeletons that ask for nothing.
        dirs: directions.
        edits: arm → its edits.
        seed: of the intervals.
    """
    own = names(lm, way.words)
    sets = {"replies": attribution.telling_tokens(prompted, WORDS, without={i for ids in own.values() for i in ids})}
    sets |= {"names": own} if all(own.values()) else {}
    goal = plain.for_each(emotion=et.EMOTIONS)
    told = {
        arm: attribution.logit_mediation(lm, goal, list(some), dirs, sets, seed=seed) for arm, some in edits.items()
    }
    text = lm.sites.encoder.token_texts
    return {"arms": told, "words": {name: {e: text(ids) for e, ids in of.items()} for name, of in sets.items()}}
