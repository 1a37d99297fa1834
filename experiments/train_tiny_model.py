"""Train the tiny model that everything in this project runs on without a network.

Method. The corpus (``data/tiny_corpus.jsonl``, synthetic, written for this project) holds replies of one or two
sentences to everyday scenarios, questions and statements: one reply per emotion, and a neutral one. A Llama of about
5 million parameters with a byte-level BPE of 2,048 tokens learns them from scratch. The system message names the
emotion; without that sentence, or without any system message, the reply is neutral. Loss on prompt and reply, AdamW,
cosine schedule, batches of similar length; 10 % of the scenarios are held out and the epoch with the lowest reply loss
on them is kept.

To make a model of this size speak of what it was told rather than of what it has seen, half of the samples have one
word that prompt and reply share exchanged, in both, for such a word of another sample (new in every epoch). Dropout on
the output of every attention and MLP works during training only; the saved model is a plain ``LlamaForCausalLM``.

As EmotionCircuits keeps only replies that its judge accepts, a reply trains only if the frozen lexicon judge reads it
as its emotion (a neutral one: if no emotion scores clearly); the counts go into ``training.json``. The corpus file
itself stays whole.

The test set is not read here: see ``measure_tiny_model.py``. A run that was stopped continues with its next epoch.

    python experiments/train_tiny_model.py --out data/tiny_model
    python experiments/train_tiny_model.py --out /tmp/smoke --smoke     # seconds: smaller model, a part of the corpus
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emotrace.datasets.sev import INSTRUCTION, SYSTEM, read_jsonl
from emotrace.judges import lexicon
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import ANSWERS, EMOTIONS, NEUTRAL, EmotraceError

DATA = Path(__file__).resolve().parent.parent / "data"
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
class Recipe:
    """Everything the result depends on besides the corpus."""

    vocab_size: int = 2048
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 8
    n_kv_heads: int = 4
    d_ff: int = 704
    max_positions: int = 512
    epochs: int = 7
    batch: int = 32
    lr: float = 1.5e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    dropout: float = 0.1
    exchange: float = 0.5
    prompt_weight: float = 0.3
    held_out: float = 0.1
    seed: int = 0


SMOKE = Recipe(vocab_size=640, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, epochs=1)


@dataclass(frozen=True)
class Sample:
    """One training example: chat messages, the reply, and what kind it is (for the counts of the card)."""

    messages: tuple[tuple[str, str], ...]
    reply: str
    kind: str


# -- samples ------------------------------------------------------------------------------------------------------


def split(rows: list[dict[str, Any]], recipe: Recipe) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Corpus rows for training and for validation; scenarios stay whole, questions and statements all train."""
    ids = sorted({r["source_id"] for r in rows if r["kind"] == "scenario"})
    held = set(random.Random(recipe.seed).sample(ids, math.ceil(recipe.held_out * len(ids))))
    return [r for r in rows if r["source_id"] not in held], [r for r in rows if r["source_id"] in held]


def accepted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose reply the lexicon judge reads as the row's emotion; neutral ones unless an emotion scores clearly."""
    texts = [row["reply"] for row in rows]
    kept = []
    for row, verdict in zip(rows, LexiconJudge().judge(texts), strict=True):
        read = verdict["predicted"]
        unclear = row["emotion"] == NEUTRAL and max(lexicon.score(row["reply"]).values()) <= lexicon.CLEAR_SCORE
        if read == row["emotion"] or unclear:
            kept.append(row)
    return kept


def samples_of(rows: list[dict[str, Any]], seed: int = 0) -> list[Sample]:
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
    """The sample with one shared word exchanged, in prompt and reply, for a shared word with the same ending."""
    words = shared_words(sample)
    if not words:
        return sample
    old = rng.choice(words)
    pattern, new = re.compile(rf"\b{old}\b"), rng.choice(pool[_ending(old)])
    *before, (role, text) = sample.messages
    return Sample((*before, (role, pattern.sub(new, text))), pattern.sub(new, sample.reply), sample.kind)


def _ending(word: str) -> str:
    return next((e for e in ("ing", "ed", "ly", "s") if word.endswith(e)), "")


# -- tokenizer ----------------------------------------------------------------------------------------------------


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
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
        model_max_length=Recipe.max_positions,
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


# -- training -----------------------------------------------------------------------------------------------------


def encode(sample: Sample, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Ids of prompt, reply and end token, and the length of the prompt."""
    messages = [{"role": role, "content": text} for role, text in sample.messages]
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return [*ids, *tokenizer(sample.reply + "<|end|>", add_special_tokens=False)["input_ids"]], len(ids)


def batches(coded: list[tuple[list[int], int]], size: int, rng: random.Random) -> Iterator[list[tuple[list[int], int]]]:
    """Batches of similar length in random order: shuffled, sorted by length in pools of 50 batches, cut, shuffled."""
    order = rng.sample(range(len(coded)), len(coded))
    pools = [sorted(order[i : i + 50 * size], key=lambda k: len(coded[k][0])) for i in range(0, len(order), 50 * size)]
    chunks = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    rng.shuffle(chunks)
    for chunk in chunks:
        yield [coded[k] for k in chunk]


def losses(
    model: LlamaForCausalLM, batch: list[tuple[list[int], int]], prompt_weight: float
) -> tuple[torch.Tensor, float, int]:
    """Weighted mean loss over prompt and reply tokens; summed loss of the reply tokens; their number."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    is_prompt, is_reply = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, (sequence, start) in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        is_prompt[row, 1:start], is_reply[row, start : len(sequence)] = True, True
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # padded on the right: causal attention needs no mask
    each = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
    is_prompt, is_reply = is_prompt[:, 1:], is_reply[:, 1:]
    weight = is_reply + prompt_weight * is_prompt
    return (each * weight).sum() / weight.sum(), float(each.detach()[is_reply].sum()), int(is_reply.sum())


def make_model(recipe: Recipe) -> LlamaForCausalLM:
    """A Llama with random weights, and with dropout on every attention and MLP output while it trains."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_ff,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=recipe.max_positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=SPECIALS.index("<|bos|>"),
        eos_token_id=SPECIALS.index("<|end|>"),
        pad_token_id=SPECIALS.index("<|pad|>"),
    )
    model = LlamaForCausalLM(config)

    def drop(module: torch.nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (functional.dropout(output[0], recipe.dropout, module.training), *output[1:])
        return functional.dropout(output, recipe.dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith((".self_attn", ".mlp")):
            module.register_forward_hook(drop)
    return model


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine from ``lr`` to zero."""
    warm = max(1, round(recipe.warmup * total))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def fit(rows: list[dict[str, Any]], out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train, keep the best epoch in ``out``, and return what happened (also in ``out/training.json``).

    After every epoch ``out/checkpoint.pt`` holds weights, optimizer and history; it is removed at the end. A run with
    the same recipe and corpus continues from it, with the same result as one that was never stopped.
    """
    fitting = accepted(rows)
    train_rows, held_rows = split(fitting, recipe)
    train = samples_of(train_rows, recipe.seed)
    held = [s for s in samples_of(held_rows, recipe.seed) if s.messages[0][0] == "system"]
    texts = [t for s in train for t in (*(text for _, text in s.messages), s.reply)]
    tokenizer = make_tokenizer(texts, recipe.vocab_size)
    model = make_model(recipe)
    decay = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.95),
    )
    coded_held = [encode(s, tokenizer) for s in held]
    pool: dict[str, list[str]] = defaultdict(list)
    for sample in train:
        for word in shared_words(sample):
            pool[_ending(word)].append(word)
    per_epoch = sum(1 for _ in batches([([0], 0)] * len(train), recipe.batch, random.Random(0)))
    total = recipe.epochs * per_epoch
    identity = {"recipe": asdict(recipe), "corpus": _digest(rows)}
    history: list[dict[str, float]] = []
    checkpoint = out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["identity"] != json.dumps(identity):
            raise EmotraceError(f"{checkpoint} belongs to another recipe or corpus; remove it or choose another --out.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = json.loads(state["history"])
    for epoch in range(len(history), recipe.epochs):
        rng = random.Random(f"{recipe.seed} {epoch}")
        torch.manual_seed(1000 * recipe.seed + epoch)
        seen = [exchange(s, pool, rng) if rng.random() < recipe.exchange else s for s in train]
        coded = [encode(s, tokenizer) for s in seen]
        model.train()
        loss_sum, n_tokens = 0.0, 0
        bar = tqdm(batches(coded, recipe.batch, rng), total=per_epoch, desc=f"epoch {epoch + 1}", unit="batch")
        for i, batch in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * per_epoch + i, total, recipe)
            loss, reply_sum, n_reply = losses(model, batch, recipe.prompt_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss_sum, n_tokens = loss_sum + reply_sum, n_tokens + n_reply
            if i % 20 == 19:
                bar.set_postfix(reply_loss=f"{loss_sum / n_tokens:.3f}")
        history.append({"train_reply_loss": loss_sum / n_tokens, "held_out_reply_loss": reply_loss(model, coded_held)})
        tqdm.write(f"epoch {epoch + 1}: " + ", ".join(f"{k} {v:.4f}" for k, v in history[-1].items()))
        if history[-1]["held_out_reply_loss"] == min(h["held_out_reply_loss"] for h in history):
            save(model, tokenizer, out)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "history": json.dumps(history), "identity": json.dumps(identity)}, out / "checkpoint.tmp")
        (out / "checkpoint.tmp").replace(checkpoint)
    report = {
        **identity,
        "parameters": sum(p.numel() for p in model.parameters()),
        "judge": LexiconJudge.name,
        "replies": {e: [sum(r["emotion"] == e for r in part) for part in (fitting, rows)] for e in ANSWERS},
        "samples": dict(Counter(s.kind for s in train)),
        "held_out_samples": len(held),
        "held_out_scenarios": sorted({r["source_id"] for r in held_rows}),
        "best_epoch": 1 + min(range(len(history)), key=lambda e: history[e]["held_out_reply_loss"]),
        "history": history,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    return report


@torch.no_grad()
def reply_loss(model: LlamaForCausalLM, coded: list[tuple[list[int], int]]) -> float:
    """Mean loss per reply token, in nats."""
    model.eval()
    parts = [losses(model, batch, 0.0)[1:] for batch in batches(coded, 32, random.Random(0))]
    return sum(p[0] for p in parts) / sum(p[1] for p in parts)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights (safetensors, bfloat16), config, generation config and tokenizer; training goes on in float32."""
    copy = LlamaForCausalLM(model.config).bfloat16()
    copy.load_state_dict(model.state_dict())
    copy.generation_config.update(max_new_tokens=60, do_sample=False)
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def main(
    out: Annotated[Path, typer.Option()],
    corpus: Path = DATA / "tiny_corpus.jsonl",
    epochs: int | None = None,
    lr: float | None = None,
    dropout: float | None = None,
    seed: int = 0,
    threads: int = 1,
    smoke: bool = False,
) -> None:
    """Train the tiny model and save it in OUT."""
    torch.set_num_threads(threads)
    recipe = SMOKE if smoke else Recipe()
    given = {"epochs": epochs, "lr": lr, "dropout": dropout, "seed": seed}
    recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})
    rows = [row for _, row in read_jsonl(corpus)]
    if smoke:
        rows = rows[:: max(1, len(rows) // 200)]
    out.mkdir(parents=True, exist_ok=True)
    report = fit(rows, out, recipe)
    best = report["history"][report["best_epoch"] - 1]["held_out_reply_loss"]
    print(f"{report['parameters']:,} parameters; best epoch {report['best_epoch']}, held-out reply loss {best:.3f}")


if __name__ == "__main__":
    typer.run(main)
