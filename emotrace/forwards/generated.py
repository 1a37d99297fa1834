"""Generated: the replies of a model to the prompts of one batch, in one generation where it lives, under edits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from emotrace import edits as edits_
from emotrace.edits import Edit
from emotrace.forwards import decoding, finite
from emotrace.forwards.entering import HERE, backend, enter, inputs
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel, Site
from emotrace.templates import Encoder
from emotrace.traced import kept, runs
from emotrace.traced.finite import Watch
from emotrace.traced.kept import Begun
from emotrace.traced.runs import Generation

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Generated(NamedTuple):
    """A reply.

    Attributes:
        text: without special tokens; the ids where there is no tokenizer.
        token_ids: what it was begun with and what was generated, without the end token.
        stopped: whether the model ended it.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped: bool


def generated(
    model: LanguageModel,
    items: Sequence[finite.Item],
    edits: Sequence[Edit],
    config: GenerationConfig,
    seed: int | None,
    begun: Begun | None = None,
    stop: Sequence[str] = (),
    **options: Any,
) -> tuple[list[Generated], list[int]]:
    """Replies to prompts in one batch, and how often each edit fired.

    Args:
        model: from `emotrace.load`.
        items: the prompts; where they have a reply, it is what theirs begins with.
        edits: checked; what a reply begins with are generated positions to them.
        config: of the generation.
        seed: of the sampling; None where nothing is drawn.
        begun: what they begin with; None where they are computed whole.
        stop: texts that end a reply, which ``config`` has the tokens of among its ends.
        options: more for the model's own ``generate``.

    Raises:
        EmotraceError: for a model of which nobody knows which columns a forward computes, or one that finds no next token
            because its numbers are not finite.
    """
    sites, most, given = model.sites, config.max_new_tokens, [[*item.ids, *item.reply] for item in items]
    width, ends = max(map(len, given)), decoding.ends_of(config)
    lowered = edits_.lower(
        edits, sites, [item.about for item in items], [len(item.ids) for item in items],
        [len(ids) + most for ids in given], width + most, True,
    )  # fmt: skip
    _refuse_cached(model, lowered, config.use_cache)
    fed = inputs(model, given)
    first = ("embed", None) if sites.has("embed") else ("resid_pre", min(sites.layers("resid_pre")))
    options |= {"generation_config": config, "logits_processor": [Watch(width, ends)]}
    if any(e.site == "logits" or isinstance(e.site, Site) for e in edits) and model._module._supports_logits_to_keep():
        options["logits_to_keep"] = 0  # all columns of a prompt, of which transformers would compute the last alone
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*iter.*")  # the loop outruns a batch that ended early, as it should
        warnings.filterwarnings("ignore", message=".*unwound.*")
        try:
            with decoding.neutral(model):
                here = backend(model) is HERE and not any(isinstance(e.site, Site) for e in edits)
                program = lowered.program()
                last = sites.address("resid_post", sites.layers("resid_post")[-1]).read(model, -1)
                asked = Generation(
                    fed, program, sites.place(*first), most, lowered.count, options, seed, here=here, last=last
                )
                if begun is None:
                    tokens, fired = enter(model, runs.generate, asked)
                else:
                    tokens, fired = enter(model, kept.generate, begun, asked._replace(ends=tuple(ends)))
        except (ValueError, ArithmeticError, EmotraceError) as error:
            if "columns that arrive" in str(error):
                raise EmotraceError(f"{sites.model_class} cannot be edited while it generates: {error}") from error
            stopped = finite.stopped(error)
            if stopped is None:
                raise
            item = items[stopped[0]]
            item = item._replace(reply=[*item.reply, *stopped[1]])
            what = f"generate, token {len(item.reply)} of the reply to {item.key!r}"
            raise finite.refusal(what, model, [item], edits) from error
    new = [row[width:].tolist() for row in tokens]
    return [_reply(item.reply, ids, ends, sites.encoder, stop) for item, ids in zip(items, new, strict=True)], fired


def _refuse_cached(model: LanguageModel, lowered: edits_.Lowered, caches: bool) -> None:
    """Refuse edits at inputs that a key-value cache comes with, where values cross to and fro by copies.

    Raises:
        EmotraceError: naming the module.
    """
    if not backend(model).copies or not caches:
        return
    for group in lowered.groups:
        path = str(group.place.envoy.path).partition(".")[2]
        if group.place.side == "input" and path in model.sites.cached:
            raise EmotraceError(
                f"the input of {path} cannot be edited while {model.sites.model_class} generates on this server: the key-value "
                "cache comes with it, and a copy of it would go on. Edit an output before it, or generate with use_cache=False."
            )


def _reply(
    begun: Sequence[int], new: list[int], ends: Sequence[int], encoder: Encoder, stop: Sequence[str]
) -> Generated:
    """What was given and generated, up to the token that ends it; tokens that hold a part of the text and of a stop are kept."""
    end = next((i for i, token in enumerate(new) if token in ends), None)
    own = [*begun, *(new[:end] if end is None or new[end] not in encoder.holding(stop) else new[: end + 1])]
    raw = encoder.decode_all(own) if stop else ""
    at = first_of(raw, stop)
    if at is None:
        return Generated(text_of(encoder, own), tuple(own), end is not None)
    left, *ended = raw[:at], *(raw[: at + len(one)] for one in stop if raw.startswith(one, at))
    kept = next(n for n in range(len(own) + 1) if _holds(encoder.decode_all(own[:n]), left, ended))
    return Generated(left.strip(), tuple(own[:kept]), True)


def text_of(encoder: Encoder, token_ids: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of a reply, up to the first of the texts that end it."""
    if encoder.tokenizer is None:
        return " ".join(map(str, token_ids))
    return encoder.decode_all(token_ids)[: first_of(encoder.decode_all(token_ids), stop)].strip()


def _holds(text: str, left: str, ended: Sequence[str]) -> bool:
    """Whether a text is what is left of a reply, or goes on with all of what ended it."""
    return text == left or any(text.startswith(one) for one in ended)


def first_of(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the texts that end a reply begins."""
    return min((text.index(one) for one in stop if one in text), default=None)
