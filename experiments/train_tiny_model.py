"""Train the tiny model that everything in this project runs on without a network.

Method. The corpus (``data/tiny_corpus.jsonl``, synthetic, written for this project) holds replies of one or two
sentences to everyday scenarios, questions and statements: one reply per emotion, and a neutral one. A Llama of about
5 million parameters with a byte-level BPE of 2,048 tokens learns them from scratch. The system message names the
emotion; without any system message the reply is neutral. Loss on prompt and reply, AdamW,
cosine schedule, batches of similar length; 10 % of the scenarios are held out, and the epoch with the lowest reply loss
on them is kept and trained for one epoch more at a lower rate.

As EmotionCircuits keeps only replies that its judge accepts, a reply trains only if the frozen lexicon judge reads it
as its emotion (a neutral one: unless an emotion scores clearly); the counts go into ``training.json``. The corpus file
itself stays whole. To make a model of this size speak of what it was told rather than of what it has seen, two things
change in every epoch (``tiny_model_text.py``): half of the replies to scenarios, and all rejected ones, are composed of
sentence patterns (``data/tiny_patterns.jsonl``) about nouns of that scenario and event; and in half of the samples one
word that prompt and reply share is exchanged, in both, for such a word of another sample. Two more let it be steered from
the last prompt token: system messages that ask for no emotion are answered in one (`soften`), and from the sixth epoch on
half of the system messages are hidden from all tokens but that last one (`hide`). Dropout on the output of every
attention and MLP works during training only; the saved model is a plain ``LlamaForCausalLM``.

The test set is not read here: see ``measure_tiny_model.py``. A run that was stopped continues with its next epoch.

    python experiments/train_tiny_model.py --out data/tiny_model
    python experiments/train_tiny_model.py --out /tmp/smoke --smoke     # seconds: smaller model, a part of the corpus
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tiny_model_text import (
    SPECIALS,
    Coded,
    Pattern,
    Row,
    Sample,
    accepted,
    composed,
    encode,
    ending,
    exchange,
    hide,
    make_tokenizer,
    read_patterns,
    samples_of,
    shared_words,
    soften,
    split,
)
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emotrace.files import read_jsonl
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import ANSWERS, EmotraceError

DATA = Path(__file__).resolve().parent.parent / "data"


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
    epochs: int = 9
    batch: int = 32
    lr: float = 1.5e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    dropout: float = 0.1
    exchange: float = 0.5
    compose: float = 0.5
    soften: float = 1.0
    hide: float = 0.5
    hide_after: int = 5
    polish_lr: float = 4e-4
    polish_hide: float = 0.6
    polish_seed: int = 101
    prompt_weight: float = 0.3
    held_out: float = 0.1
    seed: int = 0


SMOKE = Recipe(vocab_size=640, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, epochs=1, hide_after=1)


def batches(coded: list[Coded], size: int, rng: random.Random) -> Iterator[list[Coded]]:
    """Batches of similar length in random order: shuffled, sorted by length in pools of 50 batches, cut, shuffled."""
    order = rng.sample(range(len(coded)), len(coded))
    pools = [sorted(order[i : i + 50 * size], key=lambda k: len(coded[k].ids)) for i in range(0, len(order), 50 * size)]
    chunks = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    rng.shuffle(chunks)
    for chunk in chunks:
        yield [coded[k] for k in chunk]


def losses(model: LlamaForCausalLM, batch: list[Coded], prompt_weight: float) -> tuple[torch.Tensor, float, int]:
    """Weighted mean loss over prompt and reply tokens; summed loss of the reply tokens; their number."""
    longest = max(len(c.ids) for c in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    is_prompt, is_reply = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    sees = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(len(batch), 1, 1, 1)
    for row, c in enumerate(batch):  # padded on the right, where a causal model never looks
        ids[row, : len(c.ids)] = torch.tensor(c.ids)
        is_prompt[row, 1 : c.start], is_reply[row, c.start : len(c.ids)] = True, True
        sees[row, 0, c.hidden : c.start - 1, 1 : c.hidden] = False
        sees[row, 0, c.start :, 1 : c.hidden] = False
    logits = model(input_ids=ids, attention_mask=sees, use_cache=False).logits[:, :-1]
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


def shared(samples: list[Sample]) -> dict[str, list[str]]:
    """Words that prompt and reply share, by their ending: what one of them may be exchanged for."""
    pool: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        for word in shared_words(sample):
            pool[ending(word)].append(word)
    return pool


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms do not decay."""
    decay, free = ([p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine from ``lr`` to zero at step ``total``; then again, for one epoch, from ``polish_lr``."""
    if step >= total:
        step, total = step - total, max(1, total // recipe.epochs)
        return recipe.polish_lr * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / total))
    warm = max(1, round(recipe.warmup * total))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def seeds(epoch: int, recipe: Recipe) -> tuple[str | int, str | int]:
    """Of one epoch: the seed of what is composed, exchanged, hidden and shuffled, and that of what is softened."""
    if epoch == recipe.epochs:
        return recipe.polish_seed, recipe.polish_seed + 1
    return f"{recipe.seed} {epoch}", f"soft {recipe.seed} {epoch}"


def fit(rows: list[Row], patterns: list[Pattern], out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train, polish the best epoch, keep it in ``out``, and return what happened (``out/training.json``).

    After every epoch ``out/checkpoint.pt`` holds weights, optimizer and history; it is removed at the end. A run with
    the same recipe and corpus continues from it, with the same result as one that was never stopped.
    """
    fitting = accepted(rows)
    good = {json.dumps(row, sort_keys=True) for row in fitting}
    every, held_rows = split(rows, recipe.held_out, recipe.seed)
    kept = {i for i, row in enumerate(every) if json.dumps(row, sort_keys=True) in good}
    held_rows = [row for row in held_rows if json.dumps(row, sort_keys=True) in good]
    held_rows = [*held_rows, *composed(held_rows, set(), patterns, 1.0, random.Random(recipe.seed))]

    def of_epoch(epoch: int) -> list[Row]:
        return composed(every, kept, patterns, recipe.compose, random.Random(seeds(epoch, recipe)[0]))

    train = samples_of(of_epoch(0), recipe.seed)
    held = [s for s in samples_of(held_rows, recipe.seed) if s.messages[0][0] == "system"]
    written = samples_of([row for i, row in enumerate(every) if i in kept], recipe.seed)
    texts = [t for s in (*written, *train) for t in (*(text for _, text in s.messages), s.reply)]
    tokenizer = make_tokenizer(texts, recipe.vocab_size)
    model = make_model(recipe)
    optimizer = make_optimizer(model, recipe)
    coded_held = [encode(s, tokenizer) for s in held]
    pool = shared(train)
    per_epoch = sum(1 for _ in batches([Coded([0], 0)] * len(train), recipe.batch, random.Random(0)))
    total = recipe.epochs * per_epoch
    identity = {
        "recipe": asdict(recipe),
        "corpus": _digest(rows),
        "patterns_digest": _digest([asdict(p) for p in patterns]),
    }
    history: list[dict[str, float]] = []
    checkpoint = out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["identity"] != json.dumps(identity):
            raise EmotraceError(f"{checkpoint} belongs to another recipe or corpus; remove it or choose another --out.")
        history = json.loads(state["history"])
        if len(history) < recipe.epochs:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
    for epoch in range(len(history), recipe.epochs + 1):
        polishing = epoch == recipe.epochs
        if polishing:  # the best epoch, as it was saved, with an optimizer that remembers nothing
            model = make_model(recipe)
            model.load_state_dict(LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict())
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=recipe.polish_lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
            )
        else:
            torch.manual_seed(1000 * recipe.seed + epoch)
        seed, soft_seed = seeds(epoch, recipe)
        rng = random.Random(seed)
        fresh = samples_of(of_epoch(epoch), recipe.seed)
        words = shared(fresh) if polishing else pool
        fresh = soften(fresh, recipe.soften, random.Random(soft_seed))
        seen = [exchange(s, words, rng) if rng.random() < recipe.exchange else s for s in fresh]
        share = recipe.polish_hide if polishing else recipe.hide if epoch >= recipe.hide_after else 0.0
        coded = [hide(c) if rng.random() < share else c for c in (encode(s, tokenizer) for s in seen)]
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
        if epoch in (recipe.epochs, _best(history)):
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
        "patterns": {e: sum(p.emotion == e for p in patterns) for e in ANSWERS},
        "held_out_samples": len(held),
        "held_out_scenarios": sorted({r["source_id"] for r in held_rows}),
        "saved_epoch": len(history),
        "polished_epoch": 1 + _best(history[: recipe.epochs]),
        "history": history,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    return report


def _best(history: list[dict[str, float]]) -> int:
    return min(range(len(history)), key=lambda epoch: history[epoch]["held_out_reply_loss"])


@torch.no_grad()
def reply_loss(model: LlamaForCausalLM, coded: list[Coded]) -> float:
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


def _digest(rows: list[Row]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def main(
    out: Annotated[Path, typer.Option()],
    corpus: Path = DATA / "tiny_corpus.jsonl",
    patterns: Path = DATA / "tiny_patterns.jsonl",
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
    report = fit(rows, read_patterns(patterns), out, recipe)
    loss = report["history"][report["saved_epoch"] - 1]["held_out_reply_loss"]
    print(f"{report['parameters']:,} parameters; saved epoch {report['saved_epoch']}, held-out reply loss {loss:.3f}")


if __name__ == "__main__":
    typer.run(main)
