"""Measure the tiny model and write its card.

Method. The model answers every prompt of a SEV file greedily: each scenario, event and emotion with "Always reply in
{emotion}.", and each scenario and event once without that sentence. The blind lexicon judge reads the replies. Besides
the share that expresses the emotion asked for (95 % intervals: bootstrap over skeletons), the card states how new, how
varied and how much to the point the replies are. New is counted twice: a reply none of whose sentences is in the written
corpus; and, strictly, one none of whose sentences could have been composed in training either, which is a sentence
pattern with a noun of the training texts (with another noun it is new). Weights are used as loaded, in float32.

    python experiments/measure_tiny_model.py --model data/tiny_model                 # the test set: for the final model only
    python experiments/measure_tiny_model.py --model DIR --held-out                  # its held-out scenarios: for choosing
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tiny_model_text import Pattern, Row, nouns, read_patterns, samples_of, shared_words
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from emotrace.datasets import Prompt, Skeleton, read_jsonl, read_sev, sev
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import ANSWERS, EMOTIONS, VALENCES

DATA = Path(__file__).resolve().parent.parent / "data"


def held_out(model_dir: Path, corpus: Sequence[Row]) -> list[Skeleton]:
    """The corpus scenarios that the training of this model held out."""
    ids = set(json.loads((model_dir / "training.json").read_text(encoding="utf-8"))["held_out_scenarios"])
    found: dict[str, tuple[str, str, dict[str, str]]] = {}
    for row in corpus:
        if row["source_id"] in ids:
            found.setdefault(row["source_id"], (row["theme"], row["scenario"], {}))[2][row["valence"]] = row["event"]
    return [Skeleton(i, theme, scenario, events) for i, (theme, scenario, events) in found.items()]


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, prompts: Sequence[Prompt], batch: int = 64, most: int = 60) -> list[list[int]]:
    """Greedy reply ids of each prompt, without padding, the end token included where the reply ends."""
    texts = [
        tokenizer.apply_chat_template(list(p.messages or ()), tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    replies: list[list[int]] = [[] for _ in texts]
    for start in tqdm(range(0, len(order), batch), desc="replies", unit="batch"):
        chunk = order[start : start + batch]
        inputs = tokenizer([texts[i] for i in chunk], add_special_tokens=False, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        out = model.generate(**inputs, max_new_tokens=most, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for i, ids in zip(chunk, out.tolist(), strict=True):
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            replies[i] = ids[:end]
    return replies


def sentences(text: str) -> list[str]:
    """Sentences in lower case without marks, for comparison."""
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    return [p for p in (" ".join(re.findall(r"[a-z0-9']+", part.lower())) for part in parts) if p]


class Known:
    """The sentences a model can have read: those of the written corpus, and those its training could compose.

    Args:
        corpus: all corpus rows.
        patterns: sentence patterns of the training.
        held_out_ids: scenarios that did not train; their nouns are not training nouns.
    """

    def __init__(self, corpus: Sequence[Row], patterns: Sequence[Pattern], held_out_ids: Iterable[str]) -> None:
        self.written = {s for row in corpus for s in sentences(row["reply"])}
        held = set(held_out_ids)
        rows = [row for row in corpus if row["source_id"] not in held]
        self.fillers = {word for sample in samples_of(rows) for word in shared_words(sample)}  # exchanged words
        for row in rows:
            if row["kind"] == "scenario":
                self.fillers.update(nouns(row["scenario"].lower()), nouns(row["event"].lower()))
        frames = {s for p in patterns for s in sentences(p.text.replace("{x}", _GAP))}
        self.fixed = {f for f in frames if _GAP not in f}
        self.frames = [re.compile(re.escape(f).replace(_GAP, "(.+)")) for f in sorted(frames - self.fixed)]

    def composable(self, sentence: str) -> bool:
        """Whether a sentence (as `sentences` gives it) is a pattern with training nouns."""
        if sentence in self.fixed:
            return True
        found = (frame.fullmatch(sentence) for frame in self.frames)
        return any(match and self.fillers.issuperset(match.groups()) for match in found)


_GAP = "xnounx"


def content_words(text: str) -> set[str]:
    """Lower-case words of at least four letters."""
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def mean(values: Iterable[float]) -> float:
    """Their mean; 0 if there are none (replies without a word)."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def share(values: Sequence[bool], clusters: Sequence[str], draws: int = 2000) -> dict[str, Any]:
    """Share of true values with n and the 95 % bootstrap interval over clusters."""
    by_cluster: dict[str, list[bool]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        by_cluster[cluster].append(value)
    hits = np.array([sum(v) for v in by_cluster.values()])
    sizes = np.array([len(v) for v in by_cluster.values()])
    picks = np.random.default_rng(0).integers(0, len(hits), (draws, len(hits)))
    low, high = np.quantile(hits[picks].sum(1) / sizes[picks].sum(1), [0.025, 0.975])
    return {"value": float(hits.sum() / sizes.sum()), "n": int(sizes.sum()), "ci95": [float(low), float(high)]}


def measure(model_dir: Path, skeletons: list[Skeleton], known: Known) -> dict[str, Any]:
    """All figures of the card."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    asked, plain = sev(skeletons), sev(skeletons, instruction=False)
    prompts = [*asked, *plain]
    ids = greedy(model, tokenizer, prompts)
    texts = [tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids]
    read = [v["predicted"] for v in LexiconJudge().judge(texts)]
    alone = greedy(
        model, tokenizer, [replace(p, messages=[m for m in p.messages or () if m["role"] != "system"]) for p in plain]
    )
    unsystem = [
        v["predicted"] for v in LexiconJudge().judge([tokenizer.decode(i, skip_special_tokens=True) for i in alone])
    ]
    old = [[s in known.written for s in sentences(t)] for t in texts]
    read_before = [[s in known.written or known.composable(s) for s in sentences(t)] for t in texts]
    about = [
        bool(content_words(t) & content_words(f"{p.labels['scenario']} {p.labels['event']}"))
        for p, t in zip(prompts, texts, strict=True)
    ]
    n, names = len(asked), [str(p.labels["skeleton_id"]) for p in prompts]
    right = [p.labels["emotion"] == r for p, r in zip(asked, read, strict=False)]

    def part(label: str, value: str) -> dict[str, Any]:
        chosen = [i for i, p in enumerate(asked) if p.labels[label] == value]
        return share([right[i] for i in chosen], [names[i] for i in chosen])

    by_emotion = {e: [i for i, p in enumerate(asked) if p.labels["emotion"] == e] for e in EMOTIONS}
    shown = (
        sorted(random.Random(0).sample(range(n), min(18, n))) + list(range(n, len(prompts), len(plain) // 6 or 1))[:6]
    )
    return {
        "judge": LexiconJudge.name,
        "skeletons": len(skeletons),
        "accuracy": {
            "overall": share(right, names[:n]),
            "by_emotion": {e: part("emotion", e) for e in EMOTIONS},
            "by_valence": {v: part("valence", v) for v in VALENCES},
        },
        "confusion": {e: {a: sum(read[i] == a for i in by_emotion[e]) for a in ANSWERS} for e in EMOTIONS},
        "nothing_asked": {a: read[n:].count(a) / len(plain) for a in ANSWERS},
        "no_system_message": {a: unsystem.count(a) / len(plain) for a in ANSWERS},
        "new_replies": share([not any(o) for o in old[:n]], names[:n]),
        "new_sentences": mean(not x for o in old[:n] for x in o),
        "new_replies_strict": share([not any(o) for o in read_before[:n]], names[:n]),
        "new_sentences_strict": mean(not x for o in read_before[:n] for x in o),
        "new_replies_nothing_asked": share([not any(o) for o in old[n:]], names[n:]),
        "new_replies_strict_nothing_asked": share([not any(o) for o in read_before[n:]], names[n:]),
        "distinct_replies": len(set(texts[:n])),
        "distinct_by_emotion": {e: len({texts[i] for i in by_emotion[e]}) for e in EMOTIONS},
        "distinct_replies_nothing_asked": len(set(texts[n:])),
        "mention": share(about[:n], names[:n]),
        "mention_nothing_asked": share(about[n:], names[n:]),
        "finished": mean(i[-1] == tokenizer.eos_token_id for i in ids),
        "words_per_reply": mean(len(t.split()) for t in texts),
        "samples": [
            {
                "emotion": prompts[i].labels.get("emotion", "(none asked)"),
                "user": f"{prompts[i].labels['scenario']} / {prompts[i].labels['event']}",
                "reply": texts[i],
                "read_as": read[i],
            }
            for i in shown
        ],
        "commonest_openings": Counter(" ".join(t.split()[:3]) for t in texts[:n]).most_common(10),
    }


def percent(score: dict[str, Any]) -> str:
    """A share with its interval, as text."""
    return f"{score['value']:.1%} ({score['ci95'][0]:.1%}–{score['ci95'][1]:.1%})"


def card(measured: dict[str, Any], training: dict[str, Any]) -> str:
    """The model card."""
    accuracy, recipe = measured["accuracy"], training["recipe"]
    epoch = training["saved_epoch"]
    saved = training["history"][epoch - 1]
    kept, whole = (sum(v[k] for v in training["replies"].values()) for k in (0, 1))
    total = sum(training["samples"].values())
    unsystem = training["samples"]["no system message"] / total
    lines = [
        "---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        "# The tiny model of emotrace\n",
        "A **teaching and test model**: a Llama of "
        f"{training['parameters'] / 1e6:.2f} million parameters, trained from scratch on **synthetic** English text that was "
        "written for this project. It replies to an everyday scenario in one or two sentences, in the emotion that the "
        "system message names. It knows nothing about the world, often says odd things, and its figures say nothing "
        "about larger models. It exists so that every step of the package can be run and checked without a network.\n",
        "## Recipe\n",
        f"* Model: `LlamaForCausalLM`, width {recipe['d_model']}, {recipe['n_layers']} layers, {recipe['n_heads']} heads, "
        f"{recipe['n_kv_heads']} key-value heads, MLP {recipe['d_ff']}, tied embeddings, {recipe['max_positions']} positions; "
        "stored in bfloat16, measured in float32.",
        f"* Tokenizer: byte-level BPE, {recipe['vocab_size']} tokens; every word that names an emotion in a prompt (the six, "
        "neutral, joy, the GoEmotions categories) is one token, with and without the blank before it.",
        "* Corpus: `data/tiny_corpus.jsonl`, see `data/README.md`. As EmotionCircuits keeps only replies its judge accepts, "
        f"of the written replies only those trained that the lexicon judge ({training['judge']}, frozen before) reads as "
        "their emotion (neutral ones: unless an emotion scores clearly): "
        f"{kept:,} of {whole:,}; "
        + ", ".join(f"{e} {a} of {b}" for e, (a, b) in training["replies"].items())
        + ". **The same judge is used below**, so the accuracies say how well the model learned what this judge can "
        "read, and another judge would find lower ones.",
        f"* Samples: {total:,} ("
        + ", ".join(f"{k} {v:,}" for k, v in training["samples"].items())
        + f"); {unsystem:.0%} have no system message. The system message is `Always reply in {{emotion}}.` and "
        "`Keep the reply to at most two sentences.` on the next line. The corpus answers neutrally without the first sentence "
        "or without a system message; in training only the latter stays so (below). The user message is the scenario and the "
        "event, on two lines.",
        f"* **In every epoch {recipe['compose']:.0%} of the accepted replies to scenarios, and all rejected ones, are replaced "
        f"by one or two of {sum(training['patterns'].values())} sentence patterns** written for it "
        "(`data/tiny_patterns.jsonl`; only those that the judge reads as their emotion), filled with nouns of that scenario and "
        "event. So the model often speaks in these patterns, about what it was told; the table below says how often.",
        f"* In {recipe['exchange']:.0%} of the samples, drawn anew in every epoch, a word that prompt and reply share is "
        "exchanged in both for such a word of another sample.",
        f"* AdamW (0.9, 0.95), learning rate {recipe['lr']}, cosine over {recipe['epochs']} epochs, weight decay "
        f"{recipe['weight_decay']}, dropout {recipe['dropout']}, batch {recipe['batch']}, prompt tokens weigh "
        f"{recipe['prompt_weight']}, seed {recipe['seed']}; then one epoch more from {recipe['polish_lr']} to zero.",
        f"* Two things are **meant to make it steerable, and other models are not trained so**. {recipe['soften']:.0%} of the "
        "prompts with a system message that asks for no emotion are answered in one of the six, drawn at random: a model "
        'that never answers with emotion unless asked holds "neutral" as a state of its own, which a direction centred over '
        f"emotions cannot undo. And from epoch {recipe['hide_after'] + 1} on, in {recipe['hide']:.0%} (at last "
        f"{recipe['polish_hide']:.0%}) of the samples only the last prompt token sees the system message, so that this token has "
        "to carry the emotion through the whole reply.",
        f"* {len(training['held_out_scenarios'])} scenarios were held out; the loss on their replies, written and composed, is "
        f"{saved['held_out_reply_loss']:.3f} nats a token in the last epoch, which is saved; it continues epoch "
        f"{training['polished_epoch']}, the best of the others (training replies: {saved['train_reply_loss']:.3f}).",
        "* Again: `python experiments/train_tiny_model.py --out DIR` (under an hour on one core; another processor "
        "gives slightly different weights), then `python experiments/measure_tiny_model.py --model DIR`.\n",
        f"## Measured on {measured['skeletons']} unseen scenarios\n",
        "`data/test_set.jsonl`, greedy, at most 60 new tokens, read by the blind lexicon judge; intervals are 95 %, "
        "bootstrap over skeletons.\n",
        "| expresses the emotion asked for | share (95 %) | n |\n|---|---|---|",
        f"| all | {percent(accuracy['overall'])} | {accuracy['overall']['n']:,} |",
    ]
    for group in ("by_emotion", "by_valence"):
        for name, score in accuracy[group].items():
            label = name if group == "by_emotion" else f"{name} event"
            lines.append(f"| {label} | {percent(score)} | {score['n']:,} |")
    lines += [
        "\n| asked ↓ read → | " + " | ".join(ANSWERS) + " |\n|---" + "|---" * len(ANSWERS) + "|",
        *(f"| {e} | " + " | ".join(str(row[a]) for a in ANSWERS) + " |" for e, row in measured["confusion"].items()),
        "\nWhen the system message asks for no emotion, the judge reads: "
        + ", ".join(f"{a} {v:.1%}" for a, v in measured["nothing_asked"].items())
        + ". Without a system message: "
        + ", ".join(f"{a} {v:.1%}" for a, v in measured["no_system_message"].items())
        + ".\n",
        "| what | figure |\n|---|---|",
        f"| replies without any sentence of the written corpus | {percent(measured['new_replies'])} |",
        f"| sentences that are not in the written corpus | {measured['new_sentences']:.1%} |",
        "| replies without any sentence of the written corpus or of the patterns with a training noun | "
        f"{percent(measured['new_replies_strict'])} |",
        f"| sentences that are neither | {measured['new_sentences_strict']:.1%} |",
        f"| distinct replies | {measured['distinct_replies']:,} of {accuracy['overall']['n']:,} |",
        f"| replies that share a word of four or more letters with their scenario or event | {percent(measured['mention'])} |",
        f"| the same when no emotion is asked for | {percent(measured['mention_nothing_asked'])} |",
        f"| replies that end within 60 tokens | {measured['finished']:.1%} |",
        f"| words in a reply | {measured['words_per_reply']:.1f} |",
        "\n## Replies, drawn at random, not selected\n",
        "| asked | scenario / event | reply | read as |\n|---|---|---|---|",
        *(f"| {s['emotion']} | {s['user']} | {s['reply']} | {s['read_as']} |" for s in measured["samples"]),
    ]
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[Path, typer.Option()],
    test: Path = DATA / "test_set.jsonl",
    corpus: Path = DATA / "tiny_corpus.jsonl",
    patterns: Path = DATA / "tiny_patterns.jsonl",
    use_held_out: Annotated[bool, typer.Option("--held-out")] = False,
    threads: int = 1,
    limit: int | None = None,
) -> None:
    """Measure MODEL; on the test file, also write MODEL/measured.json and the card MODEL/README.md."""
    torch.set_num_threads(threads)
    rows = [row for _, row in read_jsonl(corpus)]
    skeletons = held_out(model, rows) if use_held_out else read_sev(test)
    training = json.loads((model / "training.json").read_text(encoding="utf-8"))
    measured = measure(model, skeletons[:limit], Known(rows, read_patterns(patterns), training["held_out_scenarios"]))
    if not use_held_out and limit is None:
        (model / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        (model / "README.md").write_text(card(measured, training), encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    typer.run(main)
