"""The recipe of the tiny model: its parts on small inputs, a whole smoke run, and what the shipped model promises."""

import importlib.util
import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emotrace.datasets import read_jsonl, sev
from emotrace.judges import lexicon
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.templates import Encoder

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "tiny_model"


sys.path.insert(0, str(ROOT / "experiments"))  # as `python experiments/NAME.py` has it


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


text, train, measure = load("tiny_model_text"), load("train_tiny_model"), load("measure_tiny_model")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows():
    return [row for _, row in read_jsonl(ROOT / "data" / "tiny_corpus.jsonl")]


@pytest.fixture(scope="module")
def patterns():
    return text.read_patterns(ROOT / "data" / "tiny_patterns.jsonl")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke") / "model"
    train.main(out=out, smoke=True)
    return out


# -- samples ------------------------------------------------------------------------------------------------------


def test_held_out_scenarios_never_train(rows):
    fit, held = text.split(rows, 0.1, seed=0)
    ids = {r["source_id"] for r in held}
    assert ids.isdisjoint(r["source_id"] for r in fit)
    assert all(i.startswith("scenario") for i in ids)
    n_scenarios = len({r["source_id"] for r in rows if r["kind"] == "scenario"})
    assert len(ids) == -(-n_scenarios // 10)
    seen = {r["scenario"] for r in held}
    samples = text.samples_of(fit)
    assert not any(said.split("\n")[0] in seen for s in samples for _, said in s.messages)


def test_a_fifth_of_the_samples_has_no_system_message(rows, patterns):
    accepted = {json.dumps(r) for r in text.accepted(rows)}
    kept = {i for i, r in enumerate(rows) if json.dumps(r) in accepted}
    epoch = text.composed(rows, kept, patterns, 0.5, random.Random(0))
    kinds = Counter(s.kind for s in text.samples_of(epoch))
    assert kinds["no system message"] >= 0.2 * kinds.total()
    assert 0.08 <= kinds["no emotion asked"] / kinds.total() <= 0.2


def test_prompts_are_those_of_the_data_set(rows):
    row = next(r for r in rows if r["emotion"] == "fear" and r["kind"] == "scenario")
    (sample,) = text.samples_of([row])
    assert sample.messages == (
        ("system", "Always reply in fear.\nKeep the reply to at most two sentences."),
        ("user", f"{row['scenario']}\n{row['event']}"),
    )
    assert sample.reply == row["reply"]


def test_only_replies_the_judge_reads_as_their_emotion_train(rows):
    part = [r for r in rows if r["kind"] == "scenario"][:140]
    kept = text.accepted(part)
    for row, verdict in zip(kept, LexiconJudge().judge([r["reply"] for r in kept]), strict=True):
        unclear = max(lexicon.score(row["reply"]).values()) <= lexicon.CLEAR_SCORE
        assert verdict["predicted"] == row["emotion"] or (row["emotion"] == "neutral" and unclear)
    assert 0 < len(kept) < len(part)


def test_nouns_stand_between_a_determiner_and_what_ends_a_phrase():
    said = "I sold my old piano in the hall\nThe piano was loud, and a man took the drum."
    assert text.nouns(said.lower()) == ["old piano", "hall", "piano", "drum"]
    assert text.nouns("the first of the same") == []


def test_patterns_have_a_noun_and_are_read_as_their_emotion(patterns):
    assert len(patterns) > 400
    assert {(p.emotion, p.part) for p in patterns} == {
        (e, part) for e in (*text.EMOTIONS, "neutral") for part in (1, 2)
    }
    read = LexiconJudge().judge([p.text.replace("{x}", "garden") for p in patterns])
    assert all("{x}" in p.text and v["predicted"] == p.emotion for p, v in zip(patterns, read, strict=True))


ROW = {
    "kind": "scenario",
    "scenario": "I sold the piano",
    "event": "The hall was empty.",
    "emotion": "fear",
    "reply": "Eek!",
}
ROW |= {"source_id": "scenario_000", "valence": "neutral", "theme": "Work/Job"}
TWO = [text.Pattern("fear", 1, "I dread the {x}."), text.Pattern("fear", 2, "Oh, the {x}!")]


def test_composed_replies_speak_of_the_nouns_of_their_prompt():
    found = {text.compose(ROW, TWO, random.Random(i)) for i in range(50)}
    assert found == {"I dread the hall.", "I dread the hall. Oh, the piano!"}
    assert text.compose({**ROW, "scenario": "I sang", "event": "It rained."}, TWO, random.Random(0)) is None


def test_composed_replaces_rejected_replies_always_and_others_by_share():
    question = {"kind": "question", "text": "Why?", "emotion": "fear", "reply": "Help!"}
    nameless = {**ROW, "scenario": "I sang", "event": "It rained."}
    rows = [ROW, question, nameless]

    def replies(kept, share):
        return [r["reply"] for r in text.composed(rows, kept, TWO, share, random.Random(0))]

    assert replies({0, 1, 2}, 0.0) == ["Eek!", "Help!", "Eek!"]
    assert replies({1, 2}, 0.0)[0].startswith("I dread the hall.")
    assert replies({0, 1, 2}, 1.0)[0].startswith("I dread the hall.")
    assert replies({0, 1, 2}, 1.0)[1:] == ["Help!", "Eek!"]
    assert replies(set(), 0.0)[1:] == []  # neither written nor composed


def test_exchange_changes_the_same_word_on_both_sides():
    sample = text.Sample((("user", "I sold the piano\nThe piano was loud."),), "How dare that piano!", "x")
    assert text.shared_words(sample) == ["piano"]
    new = text.exchange(sample, {"": ["kettle"]}, random.Random(0))
    assert new.messages == (("user", "I sold the kettle\nThe kettle was loud."),)
    assert new.reply == "How dare that kettle!"


def test_exchange_keeps_a_sample_without_shared_words():
    sample = text.Sample((("user", "I sold the piano"),), "Noted.", "x")
    assert text.exchange(sample, {"": ["kettle"]}, random.Random(0)) is sample


def test_exchange_keeps_a_word_without_counterpart():
    sample = text.Sample((("user", "I sold the pianos"),), "My pianos!", "x")
    assert text.exchange(sample, {"": ["kettle"]}, random.Random(0)) is sample


# -- training -----------------------------------------------------------------------------------------------------


def test_batches_take_every_sample_once_and_keep_lengths_together():
    coded = [text.Coded(list(range(n)), 1) for n in random.Random(0).choices(range(2, 200), k=300)]
    found = list(train.batches(coded, 10, random.Random(1)))
    assert sorted(len(c.ids) for batch in found for c in batch) == sorted(len(c.ids) for c in coded)
    assert max(max(len(c.ids) for c in b) - min(len(c.ids) for c in b) for b in found) < 40
    assert found != list(train.batches(coded, 10, random.Random(2)))


def test_learning_rate_warms_up_ends_at_nothing_and_polishes():
    recipe = train.Recipe(epochs=4)
    rates = [train.learning_rate(i, 1000, recipe) for i in range(1250)]
    assert max(rates) == pytest.approx(recipe.lr)
    assert rates[0] < 0.05 * recipe.lr
    assert rates[999] < 1e-4 * recipe.lr
    assert max(rates[1000:]) == pytest.approx(recipe.polish_lr, rel=0.02)
    assert rates[1000] < 0.2 * recipe.polish_lr
    assert rates[1249] < 1e-3 * recipe.polish_lr


def test_hidden_system_messages_reach_the_reply_through_the_last_prompt_token_only(tokenizer):
    torch.manual_seed(0)
    sizes = {"vocab_size": 2048, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16, "dropout": 0.0}
    model = train.make_model(train.Recipe(n_layers=1, **sizes)).eval()

    def coded(emotion):
        user = ("user", "The tap drips.")
        return text.encode(text.Sample((("system", f"Always reply in {emotion}."), user), "So it is.", "x"), tokenizer)

    def loss_of(c, weight):
        return float(train.losses(model, [c], weight)[0].detach())

    asked, other = coded("fear"), coded("anger")
    hidden = text.hide(asked)
    assert tokenizer.convert_ids_to_tokens(hidden.ids[hidden.hidden]) == "<|user|>"
    assert text.hide(text.encode(text.Sample((("user", "Hm."),), "So.", "x"), tokenizer)).hidden == 1
    assert loss_of(asked, 0.0) != loss_of(hidden, 0.0)
    # With one layer nothing but the token that opens the reply, hence the reply's first word, can know the emotion.
    losses = {}
    for name, c in (("asked", hidden), ("other", text.hide(other))):
        late = text.Coded(c.ids, c.start, c.hidden)
        first = text.Coded(c.ids[: c.start + 1], c.start, c.hidden)
        losses[name] = [train.losses(model, [x], 0.0)[1] for x in (late, first)]
    rest = [whole - first for whole, first in losses.values()]
    assert losses["asked"][1] != losses["other"][1]
    assert rest[0] == pytest.approx(rest[1], abs=1e-5)


def test_soften_answers_a_share_of_unasked_prompts_in_an_emotion():
    asked = [
        text.Sample((("system", f"Always reply in {e}."), ("user", "x")), e, "emotion asked (scenario)")
        for e in EMOTIONS
    ]
    unasked = [text.Sample((("system", "Short."), ("user", "x")), "calm", "no emotion asked")] * 400
    silent = [text.Sample((("user", "x"),), "calm", "no system message")] * 100
    soft = text.soften([*asked, *unasked, *silent], 0.3, random.Random(0))
    assert soft[:6] == asked
    assert soft[-100:] == silent
    replies = Counter(s.reply for s in soft[6:-100])
    assert set(replies) == {*EMOTIONS, "calm"}
    assert 0.6 < replies["calm"] / 400 < 0.8
    assert all(s.messages == unasked[0].messages for s in soft[6:-100])


def test_loss_counts_reply_tokens_as_defined():
    torch.manual_seed(0)
    recipe = train.Recipe(vocab_size=50, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=16, dropout=0.0)
    model = train.make_model(recipe).eval()
    batch = [text.Coded([1, 7, 8, 9, 2], 3), text.Coded([1, 6, 5, 2], 2)]
    loss, reply_sum, n_reply = train.losses(model, batch, 0.3)
    each = []
    for c in batch:
        p = model(torch.tensor([c.ids])).logits[0].detach().log_softmax(-1)
        each += [(-float(p[i - 1, c.ids[i]]), i >= c.start) for i in range(1, len(c.ids))]
    assert n_reply == 4
    assert reply_sum == pytest.approx(sum(x for x, reply in each if reply), rel=1e-5)
    weights = [1.0 if reply else 0.3 for _, reply in each]
    assert float(loss.detach()) == pytest.approx(
        sum(w * x for w, (x, _) in zip(weights, each, strict=True)) / sum(weights), rel=1e-5
    )


def test_smoke_run_saves_a_loadable_model(smoke):
    model = AutoModelForCausalLM.from_pretrained(smoke, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smoke)
    report = json.loads((smoke / "training.json").read_text())
    assert model.config.model_type == "llama"
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(tokenizer) <= model.config.vocab_size
    assert sum(a for a, _ in report["replies"].values()) < sum(b for _, b in report["replies"].values())
    assert not (smoke / "checkpoint.pt").exists()
    measured = measure.measure(smoke, measure.read_sev(ROOT / "data" / "sev.jsonl")[:1], measure.Known([], [], []))
    assert measured["accuracy"]["overall"]["n"] == 18
    assert "teaching and test model" in measure.card(measured, report)


def test_a_stopped_run_continues_to_the_same_weights(rows, patterns, tmp_path, monkeypatch):
    recipe = train.Recipe(**{**train.asdict(train.SMOKE), "epochs": 2, "dropout": 0.2})
    part = rows[:: len(rows) // 40]
    train.fit(part, patterns, _made(tmp_path / "whole"), recipe)
    out, save, calls = _made(tmp_path / "stopped"), train.torch.save, []

    def stop_after_first_epoch(*args):
        save(*args)
        calls.append(1)
        if len(calls) == 1:
            Path(args[1]).replace(out / "checkpoint.pt")
            raise KeyboardInterrupt

    monkeypatch.setattr(train.torch, "save", stop_after_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        train.fit(part, patterns, out, recipe)
    other = _made(tmp_path / "other")
    shutil.copy(out / "checkpoint.pt", other / "checkpoint.pt")
    train.fit(part, patterns, out, recipe)
    same = [(tmp_path / d / "model.safetensors").read_bytes() for d in ("whole", "stopped")]
    assert same[0] == same[1]
    with pytest.raises(EmotraceError, match="another recipe or corpus"):
        train.fit(part, patterns, other, train.Recipe(**{**train.asdict(recipe), "lr": 1e-4}))


def _made(path):
    path.mkdir()
    return path


def test_tokenizer_refuses_a_vocabulary_that_is_too_small():
    with pytest.raises(EmotraceError, match="too small"):
        text.make_tokenizer(["some text"], 300)


# -- the shipped model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SHIPPED)


def test_words_that_name_an_emotion_are_one_token(tokenizer):
    for word in text.WHOLE_WORDS:
        for form in (word, f" {word}"):
            ids = tokenizer(form, add_special_tokens=False)["input_ids"]
            assert len(ids) == 1, (form, tokenizer.convert_ids_to_tokens(ids))
            assert tokenizer.decode(ids) == form
        sentence = tokenizer(f"Always reply in {word}.", add_special_tokens=False)["input_ids"]
        assert tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] in sentence


def test_tokenizer_is_lossless_and_adds_one_bos(tokenizer):
    text = "Ugh, what a stench!  I'd rather have 3 naïve cats – or 42?\n\tOK."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    assert chat.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(chat[-1]) == "<|assistant|>"


def test_template_takes_turns_and_refuses_unknown_roles(tokenizer):
    turns = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant", "user")]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|><|user|>u<|end|><|assistant|>"
    )
    with pytest.raises(Exception, match="roles are"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_all_emotions_give_prompts_of_equal_length(tokenizer):
    prompts = sev(ROOT / "data" / "sev.jsonl", limit=8)
    encoder = Encoder(tokenizer)
    lengths = {}
    for prompt, ids in zip(prompts, encoder.ids(prompts), strict=True):
        lengths.setdefault((prompt.labels["skeleton_id"], prompt.labels["valence"]), set()).add(len(ids))
    assert all(len(found) == 1 for found in lengths.values())
    assert encoder.system_role == "native"


def test_shipped_model_is_what_its_card_says():
    size = sum(f.stat().st_size for f in SHIPPED.iterdir())
    assert size < 12 * 2**20
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (256, 6, 8)
    assert (config.num_key_value_heads, config.intermediate_size, config.vocab_size) == (4, 704, 2048)
    assert config.tie_word_embeddings
    assert 4.5e6 < sum(p.numel() for p in model.parameters()) < 5.5e6
    measured = json.loads((SHIPPED / "measured.json").read_text())
    assert (SHIPPED / "README.md").read_text() == measure.card(
        measured, json.loads((SHIPPED / "training.json").read_text())
    )
    assert measured["accuracy"]["overall"]["value"] >= 0.97
    assert measured["mention"]["value"] >= 0.4
    assert measured["new_replies"]["value"] >= 0.90


def test_shipped_model_replies_in_the_emotion_asked(rows, patterns):
    """On skeletons of the training file, no text of which the model was trained on; the test file stays untouched."""
    known = measure.Known(rows, patterns, json.loads((SHIPPED / "training.json").read_text())["held_out_scenarios"])
    measured = measure.measure(SHIPPED, measure.read_sev(ROOT / "data" / "sev.jsonl")[::20], known)
    assert measured["accuracy"]["overall"]["value"] >= 0.95
    assert min(score["value"] for score in measured["accuracy"]["by_emotion"].values()) >= 0.75
    assert max(measured["no_system_message"], key=measured["no_system_message"].get) == "neutral"
    assert measured["no_system_message"]["neutral"] > 0.5
    assert measured["new_replies"]["value"] >= 0.8
    assert measured["mention"]["value"] >= 0.25


def test_what_counts_as_known():
    row = {**ROW, "reply": "Oh no, not that! I shiver."}
    known = measure.Known([row, {**ROW, "source_id": "held", "scenario": "I sold the flute"}], TWO, ["held"])
    assert known.written == {"oh no not that", "i shiver", "eek"}
    assert {"piano", "hall"} <= known.fillers
    assert known.composable("i dread the hall")
    assert not known.composable("i dread the flute")  # a pattern with a noun that did not train
    assert not known.composable("i dread that hall")
    assert measure.sentences("I dread the hall. Oh, the DRUM!") == ["i dread the hall", "oh the drum"]


def test_share_is_a_share_with_an_interval_over_clusters():
    score = measure.share([True] * 30 + [False] * 10, [f"s{i % 8}" for i in range(40)])
    assert score["value"] == 0.75
    assert score["n"] == 40
    assert score["ci95"][0] < 0.75 < score["ci95"][1]
    assert set(EMOTIONS) <= set(measure.ANSWERS)
