"""What the tiny model reads: training samples from the corpus, and the tokenizer.

`samples_of` says which prompts a corpus row becomes. Two augmentations, drawn anew in every epoch, teach a model of
this size to speak of what it was told rather than of what it has seen:

* `exchange` replaces nouns that prompt and reply share, in both, by such nouns of other samples;
* `borrow` gives a sample the short reply of another one in the same emotion, with the nouns which that one shared
  with its own prompt replaced by nouns of this prompt.

What a noun is is read off the corpus (`nouns`): a word that mostly follows a determiner and ends its phrase.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from emotrace.datasets.sev import INSTRUCTION, SYSTEM
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import EMOTIONS, NEUTRAL, EmotraceError

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
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


DETERMINERS = frozenset(
    "a an the my your our his her their its that this these those no every each another".split()  # noqa: SIM905
)
PHRASE_ENDS = frozenset(". , ! ? ; of in on at to from for by with and is was".split())  # noqa: SIM905


@dataclass(frozen=True)
class Sample:
    """One training example: chat messages, the reply, its emotion, and what kind it is (for the counts of the card)."""

    messages: tuple[tuple[str, str], ...]
    reply: str
    emotion: str
    kind: str


# -- samples ------------------------------------------------------------------------------------------------------


def split(
    rows: Sequence[dict[str, Any]], held_out: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Corpus rows for training and for validation; scenarios stay whole, questions and statements all train."""
    ids = sorted({r["source_id"] for r in rows if r["kind"] == "scenario"})
    held = set(random.Random(seed).sample(ids, math.ceil(held_out * len(ids))))
    return [r for r in rows if r["source_id"] not in held], [r for r in rows if r["source_id"] in held]


def accepted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose reply the lexicon judge reads as the row's emotion, or as neutral where the row is neutral."""
    verdicts = LexiconJudge().judge([row["reply"] for row in rows])
    return [row for row, verdict in zip(rows, verdicts, strict=True) if verdict["predicted"] == row["emotion"]]


def samples_of(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[Sample]:
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
            samples.append(Sample((user,), reply, emotion, "no system message"))
            if row["kind"] == "scenario":
                samples.append(Sample((("user", row["event"]),), reply, emotion, "no system message"))
                samples.append(Sample((("system", SYSTEM), user), reply, emotion, "no emotion asked"))
            elif rng.random() < 0.5:
                samples.append(Sample((("system", SYSTEM), user), reply, emotion, "no emotion asked"))
            continue
        name = "joy" if emotion == "happiness" and row["kind"] != "scenario" and rng.random() < 0.5 else emotion
        system = INSTRUCTION.format(emotion=name)
        if row["kind"] != "scenario" and rng.random() < 0.5:
            system = system.split("\n")[0]
        samples.append(Sample((("system", system), user), reply, emotion, f"emotion asked ({row['kind']})"))
    return samples


def nouns(texts: Iterable[str]) -> frozenset[str]:
    """Lower-case words that follow a determiner in 30 %, and end a phrase in 50 %, of at least two occurrences."""
    total: Counter[str] = Counter()
    after: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for text in texts:
        tokens = re.findall(r"[A-Za-z']+|[.,!?;]", text)
        for before, word, then in zip([".", *tokens], tokens, [*tokens[1:], "."], strict=False):
            if re.fullmatch("[a-z]{3,}", word):
                total[word] += 1
                after[word] += before.lower() in DETERMINERS
                ends[word] += then in PHRASE_ENDS
    return frozenset(w for w, n in total.items() if n >= 2 and after[w] >= 0.3 * n and ends[w] >= 0.5 * n)


class Augmentation:
    """Exchanged and borrowed nouns for a set of training samples.

    Args:
        samples: all training samples.
        exchange: share of samples in which each shared noun is exchanged with a probability of 0.7.
        borrow: share of scenario samples that borrow their reply.
    """

    def __init__(self, samples: Sequence[Sample], exchange: float, borrow: float) -> None:
        self.share_exchange, self.share_borrow = exchange, borrow
        self.nouns = nouns(dict.fromkeys(t for s in samples for t in (s.messages[-1][1], s.reply)))
        self.pool: dict[str, list[str]] = defaultdict(list)
        self.donors: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            shared = self.shared(sample)
            for word in shared:
                self.pool[ending(word)].append(word)
            if sample.kind == "emotion asked (scenario)" and shared and len(sample.reply.split()) <= 22:
                self.donors[sample.emotion].append(sample)

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """The sample as one epoch sees it."""
        if sample.kind == "emotion asked (scenario)" and rng.random() < self.share_borrow:
            sample = self.borrow(sample, rng)
        return self.exchange(sample, rng) if rng.random() < self.share_exchange else sample

    def shared(self, sample: Sample) -> list[str]:
        """Nouns that reply and user message share."""
        return sorted(_words(sample.reply) & _words(sample.messages[-1][1]) & self.nouns)

    def exchange(self, sample: Sample, rng: random.Random) -> Sample:
        """The sample with shared nouns exchanged, in prompt and reply, for shared nouns with the same ending."""
        swap = {w: rng.choice(self.pool[ending(w)]) for w in self.shared(sample) if rng.random() < 0.7}
        *before, (role, text) = sample.messages
        return Sample((*before, (role, _swap(text, swap))), _swap(sample.reply, swap), sample.emotion, sample.kind)

    def borrow(self, sample: Sample, rng: random.Random) -> Sample:
        """The sample with another one's reply about this one's nouns; itself if the nouns do not suffice."""
        donor = rng.choice(self.donors[sample.emotion] or [sample])
        own = sorted(_words(sample.messages[-1][1]) & self.nouns)
        rng.shuffle(own)
        swap: dict[str, str] = {}
        for word in self.shared(donor):
            fitting = [w for w in own if ending(w) == ending(word) and w not in swap.values()]
            if not fitting:
                return sample
            swap[word] = fitting[0]
        return Sample(sample.messages, _swap(donor.reply, swap), sample.emotion, sample.kind)


def ending(word: str) -> str:
    """The grammatical ending that a replacement must share."""
    return next((e for e in ("ing", "ed", "ly", "s") if word.endswith(e)), "")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b[a-z]{3,}\b", text))


def _swap(text: str, swap: Mapping[str, str]) -> str:
    if not swap:
        return text
    return re.sub(rf"\b({'|'.join(map(re.escape, swap))})\b", lambda found: swap[found[0]], text)


# -- tokenizer ----------------------------------------------------------------------------------------------------


def make_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the texts, in which every word of `WHOLE_WORDS` is one token.

    The words get the merges they lack at the end of the merge list, so that nothing else is split differently
    unless it contains such a word.
    """
    size = vocab_size
    while True:  # a smaller vocabulary may lack a few merges more
        core = _train_bpe(texts, size)
        extra = _merges_for_words(core)
        missing = len({a + b for a, b in extra} - set(core.get_vocab()))
        too_many = len(core.get_vocab()) + missing - vocab_size
        if too_many <= 0:
            break
        size -= too_many
        if size < 256 + len(SPECIALS):
            raise EmotraceError(f"vocab_size={vocab_size} is too small for the whole words of the prompts.")
    state = json.loads(core.to_str())
    for left, right in extra:
        state["model"]["vocab"].setdefault(left + right, len(state["model"]["vocab"]))
        state["model"]["merges"].append([left, right])
    bos = state["model"]["vocab"]["<|bos|>"]
    core = Tokenizer.from_str(json.dumps(state))
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


def _train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
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


def encode(sample: Sample, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Ids of prompt, reply and end token, and the length of the prompt; every text begins with a blank."""
    messages = [{"role": role, "content": text} for role, text in sample.messages]
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return [*ids, *tokenizer(f" {sample.reply}<|end|>", add_special_tokens=False)["input_ids"]], len(ids)
