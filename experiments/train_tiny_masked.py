"""Train the tiny masked model of the study of emotion knowledge, and write the labelled texts that it is studied with.

Texts. ``data/emotion_phrases.json`` (synthetic, written for this project) holds situations, and phrases for 27 emotions and
neutral. A text joins one of each in either order; every tenth has a second phrase of another emotion, and so two labels. Pairs
of situation and phrase are dealt out to train, dev and test: no pair is in two parts, but its members are. The texts of
``data/goemotions_sample.csv`` are added, parted by `prompt_tuning.parted`. Written as ``train.csv``, ``dev.csv`` and ``test.csv``
in the format of GoEmotions.

Model. A RoBERTa of about 300,000 parameters with a byte-level BPE learns to fill in masked tokens of the training texts,
before each of which stands the name of an emotion that it has, masked nine times in ten, and between them eight mask
tokens, where a soft prompt of eight vectors will stand. So it has met the emotions as words and in
use, and knows nothing else. AdamW, one cycle. For trying out methods only.

    python experiments/train_tiny_masked.py --out runs/tiny_masked
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from emotrace.bundles import replace_file
from emotrace.datasets.goemotions import LABELS, LabelledText, read_goemotions
from emotrace.prompt_tuning import parted
from emotrace.prompt_tuning.tasks import PARTS

DATA = Path(__file__).resolve().parent.parent / "data"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS = ("negative", "positive", "no", "yes", *LABELS)
"""Words that are one token each."""


@dataclass(frozen=True)
class Recipe:
    """Everything the model depends on besides the texts."""

    vocab_size: int = 2048
    d_model: int = 64
    n_layers: int = 3
    n_heads: int = 4
    d_ff: int = 256
    init_std: float = 0.06
    max_positions: int = 160
    room: int = 8
    epochs: int = 20
    batch: int = 32
    lr: float = 2e-3
    masked: float = 0.15
    name_masked: float = 0.9
    seed: int = 0


SMOKE = Recipe(vocab_size=1024, d_model=32, n_layers=2, n_heads=2, d_ff=48, epochs=1)


def compose(
    phrases: Path, sample: Path, counts: tuple[int, int, int] = (60, 15, 20), seed: int = 0
) -> dict[str, list[LabelledText]]:
    """Labelled texts of the three parts: ``counts`` composed ones of every label, and those of the sample."""
    described = json.loads(phrases.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    out = parted(read_goemotions(sample), seed=seed)
    for label, mine in described["phrases"].items():
        kinds = [kind for kind, fitting in described["fit"].items() if label in fitting]
        pairs = [(kind, s, p) for kind in kinds for s in described["situations"][kind] for p in mine]
        rng.shuffle(pairs)
        for part, count in zip(PARTS, counts, strict=True):
            now, pairs = pairs[:count], pairs[count:]
            for i, (kind, situation, phrase) in enumerate(now):
                labels, sentences = {label}, [situation, phrase]
                if i % 10 == 9 and label != "neutral":
                    other = rng.choice([e for e in described["fit"][kind] if e not in (label, "neutral")])
                    labels.add(other)
                    sentences.append(rng.choice(described["phrases"][other]))
                rng.shuffle(sentences)
                text = " ".join(f"{s[0].upper()}{s[1:]}." for s in sentences)
                names = tuple(n for n in LABELS if n in labels)
                out[part].append(LabelledText(f"{part}_{label}_{i:03}", text, names))
    return out


def write(texts: dict[str, list[LabelledText]], out: Path) -> None:
    """One file for each part, in the format of GoEmotions."""
    for part, rows in texts.items():
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "classes", "ids", *LABELS])
        for t in rows:
            ids = ",".join(str(LABELS.index(n)) for n in t.labels)
            writer.writerow([t.text, ids, t.text_id, *(int(n in t.labels) for n in LABELS)])
        replace_file(out / f"{part}.csv", file.getvalue().encode())


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Lower-case byte-level BPE; every word of `WORDS` is seen so often that it becomes one token."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    core.train_from_iterator([*texts, *[" ".join(WORDS)] * len(texts)], trainer)
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="<s>", sep_token="</s>", model_max_length=128,
        clean_up_tokenization_spaces=False, **names,
    )  # fmt: skip


def make_model(recipe: Recipe) -> RobertaForMaskedLM:
    """A RoBERTa with random weights."""
    torch.manual_seed(recipe.seed)
    config = RobertaConfig(
        vocab_size=recipe.vocab_size, hidden_size=recipe.d_model, num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads, intermediate_size=recipe.d_ff, max_position_embeddings=recipe.max_positions,
        type_vocab_size=1, initializer_range=recipe.init_std, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return RobertaForMaskedLM(config)


def batch(
    rows: list[tuple[list[int], int]], recipe: Recipe, rng: torch.Generator, mask_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids with some of them masked, the true ids (padding: 1), and where they are masked.

    A row is the ids of a text, and the id of the name that is put before it.
    """
    n = recipe.room
    whole = [torch.tensor([name, *[mask_id] * n, *ids]) for ids, name in rows]
    truth = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=1)
    chance = torch.full(truth.shape, recipe.masked)
    chance[truth < len(SPECIALS)] = 0.0
    chance[:, 0] = recipe.name_masked
    hidden = torch.rand(truth.shape, generator=rng) < chance
    return truth.masked_fill(hidden, mask_id), truth, hidden


def loss_of(model: RobertaForMaskedLM, ids: torch.Tensor, truth: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the masked ids; the unembedding is computed where it is needed only."""
    h = model.roberta(input_ids=ids, attention_mask=(truth != 1).long()).last_hidden_state
    return torch.nn.functional.cross_entropy(model.lm_head(h[hidden]), truth[hidden])


def fit(texts: dict[str, list[LabelledText]], out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train on the training part and save model, tokenizer and ``training.json``; returns the latter."""
    train = [(t.text, t.labels) for t in texts["train"]]
    tokenizer = make_tokenizer([text for text, _ in train], recipe.vocab_size)
    recipe = replace(recipe, vocab_size=len(tokenizer))
    names = {label: tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS}
    many = [label for label, ids in names.items() if len(ids) != 1]
    assert not many, f"{many} are several tokens each"
    coded = [(ids, [names[n][0] for n in labels]) for ids, (_, labels) in
             zip(tokenizer([text for text, _ in train])["input_ids"], train, strict=True)]  # fmt: skip
    model = make_model(recipe)
    steps = recipe.epochs * math.ceil(len(coded) / recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.1)
    rng, masking = random.Random(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    history: list[float] = []
    model.train()
    bar = tqdm(total=steps, desc="masked model", unit="batch")
    for _ in range(recipe.epochs):
        rows = [(ids, rng.choice(n)) for ids, n in coded]
        rng.shuffle(rows)
        total = 0.0
        for start in range(0, len(rows), recipe.batch):
            ids, truth, hidden = batch(rows[start : start + recipe.batch], recipe, masking, 4)
            loss = loss_of(model, ids, truth, hidden)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(ids)
            bar.update(1)
        history.append(total / len(rows))
        bar.set_postfix(loss=f"{history[-1]:.3f}")
    bar.close()
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    report = {
        "recipe": asdict(recipe), "parameters": sum(p.numel() for p in model.parameters()), "texts": len(train),
        "loss": history,
        "names_recovered": {part: named(model, tokenizer, texts[part], recipe.room) for part in PARTS},
    }  # fmt: skip
    replace_file(out / "training.json", (json.dumps(report, indent=1) + "\n").encode())
    return report


@torch.no_grad()
def named(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, texts: list[LabelledText], room: int) -> float:
    """Share of texts before which the model fills the masked name with one of their own labels, of all labels."""
    every = torch.tensor([tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in LABELS])
    head = [tokenizer.mask_token_id] * (1 + room)
    coded = [torch.tensor([*head, *ids]) for ids in tokenizer([t.text for t in texts])["input_ids"]]
    order = sorted(range(len(texts)), key=lambda i: len(coded[i]))
    right = 0
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        ids = torch.nn.utils.rnn.pad_sequence([coded[i] for i in rows], batch_first=True, padding_value=1)
        h = model.roberta(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
        best = model.lm_head(h[:, 0])[:, every].argmax(1)
        right += sum(LABELS[n] in texts[i].labels for i, n in zip(rows, best.tolist(), strict=True))
    return right / len(texts)


def main(
    out: Annotated[Path, typer.Option()],
    phrases: Path = DATA / "emotion_phrases.json",
    sample: Path = DATA / "goemotions_sample.csv",
    epochs: int | None = None,
    seed: int = 0,
    threads: int = 1,
    smoke: bool = False,
) -> None:
    """Compose the texts, train the model, and save both in OUT."""
    torch.set_num_threads(threads)
    recipe = replace(SMOKE if smoke else Recipe(), seed=seed)
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    texts = compose(phrases, sample, seed=seed)
    write(texts, out)
    report = fit(texts, out, recipe)
    print(
        f"{report['parameters']:,} parameters, {report['texts']:,} texts, loss {report['loss'][-1]:.3f}; "
        f"names an emotion of {report['names_recovered']['train']:.1%} of the training texts, "
        f"{report['names_recovered']['test']:.1%} of the test texts"
    )


if __name__ == "__main__":
    typer.run(main)
