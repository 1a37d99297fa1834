"""Answers: the two words between which a model decides, each a single token of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.templates import single_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIRS: Final = (
    ("negative", "positive"), ("no", "yes"), ("No", "Yes"), ("bad", "good"), ("false", "true"), ("False", "True"),
)  # fmt: skip
"""What is looked up when the words asked for will not do."""


@typed
def answer_ids(
    words: Sequence[str | int], tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> tuple[int, int]:
    """Token ids of *no* and *yes*.

    A word is taken as it is written; where that is several tokens, with a blank before it, as it stands inside a sentence.

    Args:
        words: two words, or token ids.
        tokenizer: of the model.
        vocab_size: ids that the model knows.

    Raises:
        EmotraceError: for a word that is several tokens or unknown (with pairs that would do), an id that the model does
            not know, or twice the same token.
    """
    ids = []
    for word in words:
        if isinstance(word, int) and not isinstance(word, bool):
            if word < 0 or (vocab_size is not None and word >= vocab_size):
                raise EmotraceError(
                    f"words={tuple(words)!r}: the model has no token id {word}; ids are below {vocab_size}."
                )
            ids.append(word)
            continue
        if tokenizer is None:
            raise EmotraceError(f"words={tuple(words)!r}: this model has no tokenizer; give token ids.")
        found = single_token(str(word), tokenizer)
        if found is None:
            pieces = tokenizer.convert_ids_to_tokens(tokenizer(str(word), add_special_tokens=False)["input_ids"])
            raise EmotraceError(
                f"words={tuple(words)!r}: {word!r} is no single token but {pieces}. Pairs that are: {_choices(tokenizer)}."
            )
        ids.append(found)
    if ids[0] == ids[1]:
        raise EmotraceError(f"words={tuple(words)!r} are one token ({ids[0]}); two different answers are needed.")
    return ids[0], ids[1]


def _choices(tokenizer: PreTrainedTokenizerBase) -> str:
    good = [pair for pair in PAIRS if all(single_token(w, tokenizer) is not None for w in pair)]
    if good:
        return ", ".join("/".join(pair) for pair in good)
    return "none of " + ", ".join("/".join(pair) for pair in PAIRS) + "; give words of the vocabulary, or token ids"
