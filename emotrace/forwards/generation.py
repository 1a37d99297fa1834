"""Generation: text from prompts, with and without edits, batched, resumable by key."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from emotrace import arguments, disk, ranks, spread
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.defaults import BATCH_SIZE, MAX_NEW_TOKENS
from emotrace.edits import Edit
from emotrace.files import to_file
from emotrace.forwards import beginnings, finite, replied
from emotrace.forwards import decoding as decoding_
from emotrace.forwards import rows as rows_
from emotrace.forwards.entering import keeping
from emotrace.forwards.generated import generated
from emotrace.forwards.kept import Shared
from emotrace.labels import EmotraceError
from emotrace.planned import DryReplies, Steps, planned
from emotrace.replies.row import Row
from emotrace.runlog import Log
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.templates import Encoder


@planned
@typed
def generate(
    model: LanguageModel,
    prompts: PromptsLike,
    edits: Sequence[Edit] | None = None,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    min_new_tokens: int = 0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    use_cache: bool = True,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: BatchSize = BATCH_SIZE,
    method: str | None = None,
    draw: int = 0,
    prefill: bool = False,
    out: str | Path | None = None,
    rank: tuple[int, int] | None = None,
    client: Annotated[Any, "on_workers"] = None,
    progress: bool = True,
) -> Steps[DryReplies, list[Row]]:
    """Replies of a model to prompts, as rows, in the order of the prompts.

    Batches are made of prompts of similar length over the *whole* set, so a run that was killed and repeated yields the
    same rows. The model's own sampling defaults are not used: what is not said here is off. ``generate.plan(…)`` says what
    would be done: prompts, tokens, batches (`emotrace.planned.DryReplies`); of a new model it is proven first what may share one.

    Args:
        model: from `emotrace.load`; a causal model.
        prompts: `Prompts`, or whatever `Prompts.of` takes.
        edits: applied in the prefill and at every decoding step, where their positions say.
        max_new_tokens: most tokens of a reply, beyond those it was begun with.
        min_new_tokens: fewest, counted likewise.
        do_sample: sample with ``temperature``, ``top_p``, ``top_k`` instead of taking the likeliest token.
        temperature: of the sampling.
        top_p: nucleus.
        top_k: 0 is off.
        repetition_penalty: 1 is off.
        no_repeat_ngram_size: 0 is off.
        use_cache: reuse keys and values of earlier tokens.
        stop: texts that end a reply, which is cut before the first of them; its tokens are kept up to there, as generated: with
            those of the stop where one of them holds a part of the reply, too.
        seed: of the sampling; each batch has its own stream.
        batch_size: most prompts per batch; ``auto`` for what fits into a quarter of the free memory, and 32 where tokens are
            sampled, whose stream belongs to a batch.
        method: label of the rows, e.g. ``steer``; None: that of the edits (`edits.edits_label`), ``none`` without edits.
        draw: 0 unless the method is random.
        prefill: begin each reply with what its prompt carries as ``reply_ids`` (`Prompts.with_replies`), as transformers does
            with ``continue_final_message`` and other programs with a last message of the assistant's; False asks for whole
            replies, whatever prompts carry. To edits these tokens are ``generated`` positions.
        out: JSON-lines file; rows found there that the same prompt, settings, edits and model made are not generated again.
        rank: ``(i, n)``: this process is one of n that make the rows of the same file, batch by batch; each returns all rows, and
            the file is that of one process. None takes what SLURM (array or tasks) and torchrun say, and prints it.
        client: a ``dask.distributed.Client``: each of its workers loads the model and takes one rank.
        progress: show a bar on stderr.

    Returns:
        One row per prompt: ``key, method, draw``, the prompt's labels, ``gen_text, token_ids`` (with what the reply was begun
        with, without the end token) and ``meta`` (``prompt_length, stopped, decoding, edits, weights``; ``prefill``, with how
        many tokens the reply was begun, where it was; ``made``: digests of the prompt's token ids, of the model and, where
        tokens were sampled, of the batch).

    Raises:
        EmotraceError: for prompts or edits that do not fit the model, with ``prefill`` a prompt that carries no opening or
            one that is over, an edit that never fired, a masked model, or a file whose rows were made from other prompts,
            labels or settings (the row and each difference are named).
    """
    prompts = Prompts.of(prompts)
    sites, encoder = model.sites, model.sites.encoder
    if not encoder.causal:
        raise EmotraceError(f"{sites.model_class} is a masked model: it does not generate. Use capture instead.")
    counts = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "top_k": top_k,
              "no_repeat_ngram_size": no_repeat_ngram_size, "draw": draw}  # fmt: skip
    for name, value in counts.items():
        arguments.whole(name, value, int(name == "max_new_tokens"))
    arguments.batch("batch_size", batch_size)
    if min_new_tokens > max_new_tokens:
        raise EmotraceError(f"min_new_tokens={min_new_tokens} is more than max_new_tokens={max_new_tokens}.")
    for name, value in (
        ("do_sample", do_sample),
        ("use_cache", use_cache),
        ("prefill", prefill),
        ("progress", progress),
    ):
        arguments.flag(name, value)
    for name, value in (("temperature", temperature), ("repetition_penalty", repetition_penalty), ("top_p", top_p)):
        arguments.number(name, value)
    if do_sample and (temperature < decoding_.COLDEST or not 0 < top_p <= 1):
        raise EmotraceError(
            f"temperature={temperature}, top_p={top_p}: sampling needs temperature >= {decoding_.COLDEST:g} (below, logits "
            "overflow; do_sample=False takes the likeliest token) and 0 < top_p <= 1."
        )
    arguments.number("repetition_penalty", repetition_penalty, above=0)
    arguments.seed("seed", seed)
    if method is not None:
        arguments.text("method", method)
    stop = [arguments.encodable("stop", text) for text in stop]
    if "" in stop:
        raise EmotraceError(f"stop={stop!r}: an empty text ends every reply before it begins.")
    if stop and encoder.tokenizer is None:
        raise EmotraceError(f"stop={stop!r} is text, but this model has no tokenizer: pass tokenizer= to load.")
    if out is not None:
        to_file(out)
    taken = ranks.chosen(rank, out, "generate(rank)")
    if client is not None and (out is None or rank is not None):
        raise EmotraceError("generate(client=…): workers take the ranks of a file: give out=, and no rank.")
    edits = [] if edits is None else edits
    edits_.check(edits, sites, [p.about for p in prompts])
    edits = list(edits)
    method = edits_.edits_label(edits) if method is None else method
    ids = encoder.ids(prompts)
    begun = [p.reply_ids or () if prefill else () for p in prompts]
    lengths = [len(i) + len(b) for i, b in zip(ids, begun, strict=True)]
    edits_.refuse_unreached(edits, list(map(len, ids)), [n + max_new_tokens - 1 for n in lengths])
    longest = max(lengths) + max_new_tokens
    if encoder.max_length is not None and longest > encoder.max_length:
        raise EmotraceError(
            f"a prompt of {longest - max_new_tokens} tokens and max_new_tokens={max_new_tokens} exceed the "
            f"{encoder.max_length} positions of {sites.model_class}."
        )
    batch_size = rows_.resolved(model, rows_.ROWS if do_sample and batch_size == "auto" else batch_size, longest)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed} if do_sample else {}
    decoding = {
        "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "do_sample": do_sample, **sampling,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size, "use_cache": use_cache,
        **({"stop": stop} if stop else {}),
    }  # fmt: skip
    settings = {
        "decoding": decoding,
        "edits": edits_.edits_digest(edits),
        "weights": sites.identity.get("weights_hash"),
    }
    batches = beginnings.batches(model, [n + max_new_tokens for n in lengths], batch_size)
    yield lambda: DryReplies(len(prompts), sum(lengths), len(prompts) * max_new_tokens, len(batches))
    if client is not None:
        options = {
            **decoding, "seed": seed, "batch_size": batch_size, "method": method, "draw": draw, "prefill": prefill,
            "stop": stop, "temperature": temperature, "top_p": top_p, "top_k": top_k,
        }  # fmt: skip
        return ranks.on_workers(client, generate, model, prompts, edits, out=out, progress=False, **options)  # type: ignore[arg-type]
    config = decoding_.configuration(model, decoding, encoder.pad_id, encoder.holding(stop))
    items = [finite.Item(p.key, i, b, p.about) for p, i, b in zip(prompts, ids, begun, strict=True)]
    if prefill:
        _refuse_openings(items, set(decoding_.ends_of(config)) - encoder.holding(stop))
    made = replied.made(model, items, config, batches if do_sample else [])
    fired = [0] * len(edits)
    shared: list[Shared] = []

    def answered(number: int, there: Mapping[str, Row]) -> list[Row]:
        """The replies of a batch that are not there."""
        nonlocal fired
        if not shared:
            shared.append(Shared(model, items if use_cache else [], edits, longest, batch_size))
        batch, drawn = batches[number], (seed * 1_000_003 + number) % 2**63 if do_sample else None
        some = [items[i] for i in batch]
        replies, counts = generated(model, some, edits, config, drawn, shared[0].begun(batch), stop)
        fired = [a + b for a, b in zip(fired, counts, strict=True)]
        return [
            replied.row(prompts[i], reply, items[i], method, draw, {**settings, "made": made[i]})
            for i, reply in zip(batch, replies, strict=True)
            if prompts[i].key not in there
        ]

    def count(known: Iterable[int], rows: Mapping[str, Row]) -> None:
        """How often edits fired in replies that were made before, or by another rank."""
        nonlocal fired
        some = [i for i in known if prompts[i].key in rows]
        fed = [
            len(ids[i]) + min(len(rows[prompts[i].key]["token_ids"]), len(begun[i]) + max_new_tokens - 1) for i in some
        ]
        counts = edits_.reached(edits, [len(ids[i]) for i in some], fed)
        fired = [a + b for a, b in zip(fired, counts, strict=True)]

    jobs = out if taken.of == 1 else f"{out}.{taken.number}"
    with keeping(model, jobs), Log(out) if out is not None else nullcontext() as log:
        rows = replied.known(log, prompts, method, draw, settings, made, encoder)
        count(range(len(prompts)), rows)
        about = {"settings": settings, "method": method, "draw": draw, "rows": disk.digest([made, prompts.keys])}
        if log is not None and spread.shared(log.path, about, taken):
            names = [[(prompts[i].key, method, draw) for i in batch] for batch in batches]
            mine: set[int] = set()

            def piece(number: int) -> list[Row]:
                mine.update(batches[number])
                return answered(number, rows)

            spread.joined(log, about, taken, names, piece)
            before, log = rows, Log(log.path)
            rows = replied.known(log, prompts, method, draw, settings, made, encoder)
            if mine:
                count((i for i, p in enumerate(prompts) if i not in mine and p.key not in before), rows)
                edits_.refuse_silent(edits, fired)
        todo = [(n, b) for n, b in enumerate(batches) if any(prompts[i].key not in rows for i in b)]
        with progress_bar(total=sum(len(b) for _, b in todo), desc=method, unit="reply", enabled=progress) as bar:
            for number, batch in todo:
                fresh = answered(number, rows)
                if log is not None:
                    log.append(fresh)
                rows |= {row["key"]: row for row in fresh}
                bar.update(len(batch))
    if todo:
        edits_.refuse_silent(edits, fired)
    if not stop:
        _warn_of_empty(prompts, rows, encoder)
    return [rows[key] for key in prompts.keys]


def _warn_of_empty(prompts: Prompts, rows: dict[str, Row], encoder: Encoder) -> None:
    """Says why plain strings may have got no reply: a model tuned on chats may end at once outside its template."""
    empty = [p.key for p in prompts if p.text is not None and not rows[p.key]["token_ids"]]
    if empty and encoder.has_template:
        warnings.warn(
            f"{len(empty)} of {len(prompts)} replies are empty (e.g. {empty[0]!r}): plain strings are passed without the "
            "chat template of this model; give chat messages, [{'role': 'user', 'content': …}], to use it.",
            stacklevel=4,
        )


def _refuse_openings(items: Sequence[finite.Item], ends: Collection[int]) -> None:
    """Refuse prompts that carry no opening of a reply, or one that holds the token that ends a reply."""
    bare = [item.key for item in items if not item.reply]
    if bare:
        raise EmotraceError(
            f"generate(prefill=True): {len(bare)} of {len(items)} prompts carry no reply_ids to begin with (e.g. {bare[0]!r}); "
            "Prompts.with_replies gives prompts theirs."
        )
    over = [(item.key, i) for item in items for i in item.reply if i in ends]
    if over:
        raise EmotraceError(
            f"generate(prefill=True): prompt {over[0][0]!r} begins its reply with {over[0][1]}, the token that ends it."
        )
