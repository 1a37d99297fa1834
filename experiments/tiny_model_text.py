"""What the tiny model reads: training samples from the corpus and the sentence patterns, and the tokenizer.

`samples_of` says which prompts a corpus row becomes. Four things change in every epoch, so that a model of this size
learns to speak of what it was told rather than of what it has seen, and can be steered:

* `composed` replaces the replies of some scenario rows by one or two sentence patterns about nouns of that
  scenario and event;
* `exchange` replaces one word that prompt and reply share, in both, by such a word of another sample;
* `soften` lets some prompts that ask for no emotion be answered in one;
* `hide` hides some system messages from all tokens but the last of the prompt.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from emotrace.datasets.elicitation import INSTRUCTION, SYSTEM
from emotrace.files import read_jsonl
from emotrace.judges import lexicon
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import EMOTIONS, NEUTRAL, EmotraceError

Row = dict[str, Any]
SPECIALS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
GOEMOTIONS = """
admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval
disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief
remorse sadness surprise
""".split()  # noqa: SIM905
WHOLE_WORDS = tuple(dict.fromkeys((*EMOTIONS, NEUTRAL, "joy", *GOEMOTIONS)))
"""Words that are one token each, with and without the blank before them: all that name an emotion in a prompt."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Sample:
    """One training example: chat messages, the reply, and what kind it is (for the counts of the card)."""

    messages: tuple[tuple[str, str], ...]
    reply: str
    kind: str


# -- samples ------------------------------------------------------------------------------------------------------


def split(rows: list[Row], held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Corpus rows for training and for validation; scenarios stay whole, questions and statements all train."""
    ids = sorted({r["source_id"] for r in rows if r["kind"] == "scenario"})
    held = set(random.Random(seed).sample(ids, math.ceil(held_out * len(ids))))
    return [r for r in rows if r["source_id"] not in held], [r for r in rows if r["source_id"] in held]


def accepted(rows: list[Row]) -> list[Row]:
    """Rows whose reply the lexicon judge reads as the row's emotion; neutral ones unless an emotion scores clearly."""
    texts = [row["reply"] for row in rows]
    kept = []
    for row, verdict in zip(rows, LexiconJudge().judge(texts), strict=True):
        read = verdict["predicted"]
        unclear = row["emotion"] == NEUTRAL and max(lexicon.score(row["reply"]).values()) <= lexicon.CLEAR_SCORE
        if read == row["emotion"] or unclear:
            kept.append(row)
    return kept


def samples_of(rows: list[Row], seed: int = 0) -> list[Sample]:
    """Training samples from corpus rows.

    A scenario with its event: each emotion with the full system message; neutral with the system message that names
    no emotion, without a system message, and for the event alone. A question or statement: neutral without and with
    that system message; each emotion with the full message, its first sentence alone, or "joy" for happiness.
    """
    rng, samples = random.Random(seed), []
    for row in rows:
        emotion, reply = row["emotion"], row["reply"]
        text = f"{row['scenario']}\n{row['event']}" if row["kind"] == "scenario" else row["text"]
        user = ("user", text)
        if emotion == NEUTRAL:
            samples.append(Sample((user,), reply, "no system message"))
            if row["kind"] == "scenario":
                samples.append(Sample((("user", row["event"]),), reply, "no system message"))
                samples.append(Sample((("system", SYSTEM), user), reply, "no emotion asked"))
            elif rng.random() < 0.5:
                samples.append(Sample((("system", SYSTEM), user), reply, "no emotion asked"))
            continue
        name = "joy" if emotion == "happiness" and row["kind"] != "scenario" and rng.random() < 0.5 else emotion
        system = INSTRUCTION.format(emotion=name)
        if row["kind"] != "scenario" and rng.random() < 0.5:
            system = system.split("\n")[0]
        samples.append(Sample((("system", system), user), reply, f"emotion asked ({row['kind']})"))
    return samples


def nouns(text: str) -> list[str]:
    """Nouns and noun pairs of a text, by a rule: what stands between a determiner and a function word or a stop."""
    found = re.findall(
        r"\b(?:the|my|our|a|an|his|her|their|your|its) ((?:[a-z]+ )?[a-z]{3,})"
        r"(?=[.,]|\n|$| (?:of|for|from|in|on|at|to|with|and|that|was|were|is|are|had|has|by|into|onto|behind|beside|after|before|"
        r"until|under|over|near|without|because|so|as|or|while)\b)",
        text,
    )
    plain = (n for n in dict.fromkeys(found) if not set(n.split()) & (COMMON | NO_NOUNS | set(WHOLE_WORDS)))
    return [n for n in plain if not (" " in n and n.endswith(("ed", "ly")))]


NO_NOUNS = set(
    """
    went came died has had left said told gave took made wrote kept found came grew fell ran sent paid sold let put got saw
    out alone aloud late one she he they who first second third rest back place time own way lot kind sort same other own whole
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Pattern:
    """A sentence with ``{x}`` where a noun goes; ``part`` says whether it opens a reply or goes on."""

    emotion: str
    part: int
    text: str


def read_patterns(path: Path) -> list[Pattern]:
    """The patterns with a noun that the lexicon judge reads as their emotion, not merely as no other."""
    every = [Pattern(row["emotion"], row["part"], row["text"]) for _, row in read_jsonl(path)]
    read = [v["predicted"] for v in LexiconJudge().judge([p.text.replace("{x}", "garden") for p in every])]
    return [p for p, answer in zip(every, read, strict=True) if "{x}" in p.text and answer == p.emotion]


def compose(row: Row, patterns: list[Pattern], rng: random.Random) -> str | None:
    """A reply of two patterns about nouns of the row's event and scenario; None where neither has a noun."""
    ours, before = nouns(row["event"].lower()), nouns(row["scenario"].lower())
    if not ours and not before:
        return None
    first = rng.choice(ours or before)
    others = [n for n in ours + before if n != first] or [first]
    opening, going_on = ([p for p in patterns if p.emotion == row["emotion"] and p.part == k] for k in (1, 2))
    sentences = [rng.choice(opening).text.replace("{x}", first)]
    if rng.random() < 0.7:
        sentences.append(rng.choice(going_on).text.replace("{x}", rng.choice(others)))
    return " ".join(sentences)


def composed(rows: list[Row], kept: set[int], patterns: list[Pattern], share: float, rng: random.Random) -> list[Row]:
    """The rows of one epoch: each scenario row with its own reply or a composed one.

    Args:
        rows: corpus rows.
        kept: indices of the rows whose own reply the judge accepts; the others always get a composed one, or are left
            out where there is nothing to compose it of.
        patterns: sentence patterns.
        share: share of the accepted replies to scenarios that are replaced.
        rng: source of chance.
    """
    out = []
    for i, row in enumerate(rows):
        reply = None
        if row["kind"] == "scenario" and patterns and (i not in kept or rng.random() < share):
            reply = compose(row, patterns, rng)
        if reply is not None:
            out.append({**row, "reply": reply})
        elif i in kept:
            out.append(row)
    return out


def soften(samples: list[Sample], share: float, rng: random.Random) -> list[Sample]:
    """The samples, a share of those that ask for no emotion (system message without one) answered in one of the six.

    A model that never answers with emotion unless asked holds "neutral" as a state of its own, which a direction centred
    over emotions cannot undo. With a share of 1 it is neutral only without a system message.
    """
    replies: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.kind == "emotion asked (scenario)":
            replies[sample.messages[-1][1]].append(sample.reply)
    out = []
    for sample in samples:
        others = replies.get(sample.messages[-1][1], [])
        soft = sample.kind == "no emotion asked" and others and rng.random() < share
        out.append(replace(sample, reply=rng.choice(others)) if soft else sample)
    return out


def shared_words(sample: Sample) -> list[str]:
    """Lower-case words of at least four letters that reply and user message share."""
    words = set(re.findall(r"\b[a-z]{4,}\b", sample.reply)) & set(re.findall(r"\b[a-z]{4,}\b", sample.messages[-1][1]))
    return sorted(words - COMMON)


COMMON = set(
    """
    that this with from have your they them their there then than what when were will would could should
    about after before into only just even over more most very been being because every each much many some
    such same still other where which while again under until without through does doing here like made make
    them these those another
    """.split()  # noqa: SIM905
)


def exchange(sample: Sample, pool: dict[str, list[str]], rng: random.Random) -> Sample:
    """The sample with one shared word exchanged, in prompt and reply, for a word of the pool with the same ending."""
    words = shared_words(sample)
    if not words:
        return sample
    old = rng.choice(words)
    if not pool.get(ending(old)):
        return sample
    pattern, new = re.compile(rf"\b{old}\b"), rng.choice(pool[ending(old)])
    *before, (role, text) = sample.messages
    return Sample((*before, (role, pattern.sub(new, text))), pattern.sub(new, sample.reply), sample.kind)


def ending(word: str) -> str:
    """The grammatical ending that a replacement must share."""
    return next((e for e in ("ing", "ed", "ly", "s") if word.endswith(e)), "")


# -- tokenizer ----------------------------------------------------------------------------------------------------


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the texts, in which every word of `WHOLE_WORDS` is one token.

    The words get the merges they lack at the end of the merge list, so that nothing else is split differently
    unless it contains such a word.
    """
    size = vocab_size
    while True:  # a smaller vocabulary may lack a few merges more
        core = _with_whole_words(_train_bpe(texts, size))
        too_many = core.get_vocab_size() - vocab_size
        if too_many <= 0:
            break
        size -= too_many
        if size < 256 + len(SPECIALS):
            raise EmotraceError(f"vocab_size={vocab_size} is too small for the whole words of the prompts.")
    bos = core.token_to_id("<|bos|>")
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return core


def _with_whole_words(core: Tokenizer) -> Tokenizer:
    """The tokenizer with the merges that its whole words lack; again, where those of one word came before another's."""
    while merges := _merges_for_words(core):
        state = json.loads(core.to_str())
        vocab = state["model"]["vocab"]
        for left, right in merges:
            vocab.setdefault(left + right, len(vocab))
            state["model"]["merges"].append([left, right])
        core = Tokenizer.from_str(json.dumps(state))
    return core


def _merges_for_words(core: Tokenizer) -> list[tuple[str, str]]:
    """The merges that turn the present pieces of every whole word into one token."""
    merges: list[tuple[str, str]] = []
    for word in WHOLE_WORDS:
        for form in (f" {word}", word):
            pieces = core.encode(form).tokens
            while len(pieces) > 1:
                merges.append((pieces[0], pieces[1]))
                pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return list(dict.fromkeys(merges))


@dataclass(frozen=True)
class Coded:
    """Ids of prompt, reply and end token.

    Attributes:
        ids: all of them.
        start: length of the prompt; its last token opens the reply.
        hidden: only that last token sees the columns from 1 (after BOS) to this one, exclusive; 1 hides nothing.
    """

    ids: list[int]
    start: int
    hidden: int = 1


def encode(sample: Sample, tokenizer: PreTrainedTokenizerFast) -> Coded:
    """A sample as ids; nothing is hidden."""
    messages = [{"role": role, "content": text} for role, text in sample.messages]
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return Coded([*ids, *tokenizer(sample.reply + "<|end|>", add_special_tokens=False)["input_ids"]], len(ids))


def hide(coded: Coded) -> Coded:
    """The same with its system message hidden from all tokens but the one that opens the reply.

    So that token has to carry what the system message asks for through the whole reply. Where every token can look it up
    by itself, the last prompt token knows little more than the first word to say, and directions found there say
    the same.
    """
    user = SPECIALS.index("<|user|>")
    return replace(coded, hidden=coded.ids.index(user) if user in coded.ids else 1)
