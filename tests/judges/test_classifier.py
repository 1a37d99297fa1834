"""The classifier judge on tiny random checkpoints built offline."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from emotrace.judges.base import Judge
from emotrace.judges.classifier import ClassifierJudge, answers_of
from emotrace.labels import EmotraceError

WORDS = ["rage", "tears", "joyful", "spooky", "odd", "plain", "the", "a"]
LABELS = ["Anger", "sadness", "joy", "fear", "surprise", "disgust", "neutral"]


def build(path: Path, labels: list[str], *, plant: dict[str, int] | None = None, **config: Any) -> Path:
    """A one-layer BERT; with ``plant``, a word anywhere in the text wins for its label index."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # type: ignore[assignment]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, pad_token_id=0, **{"id2label": dict(enumerate(labels)), **config},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(settings)
    if plant:  # attention passes the mean of the values on; each planted word has a coordinate of its own
        _plant(model, {vocabulary[word]: index for word, index in plant.items()})
    model.save_pretrained(path)
    return path


@torch.no_grad()
def _plant(model: Any, words: dict[int, int]) -> None:
    for parameter in model.parameters():
        parameter.zero_()
    model.bert.embeddings.LayerNorm.weight.fill_(1)
    layer = model.bert.encoder.layer[0]
    layer.attention.output.LayerNorm.weight.fill_(1)
    layer.output.LayerNorm.weight.fill_(1)
    layer.attention.self.value.weight.copy_(torch.eye(32))
    layer.attention.output.dense.weight.copy_(torch.eye(32))
    model.bert.pooler.dense.weight.copy_(torch.eye(32))
    for token, index in words.items():
        model.bert.embeddings.word_embeddings.weight[token, index] = 5.0
        model.classifier.weight[index, index] = 20.0


PLANT = {"rage": 0, "tears": 1, "joyful": 2, "spooky": 3, "plain": 6}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("planted"), LABELS, plant=PLANT)


def test_known_labels_need_no_map_and_joy_is_happiness(planted: Path) -> None:
    judge = ClassifierJudge(planted)
    assert isinstance(judge, Judge)
    got = judge.judge(["the rage", "tears", "a joyful the a", "spooky", "plain"])
    assert [v["predicted"] for v in got] == ["anger", "sadness", "happiness", "fear", "neutral"]
    assert {v["judge"] for v in got} == {f"classifier:{planted}"}
    assert "best label 'joy'" in got[2]["reason"]


def test_answers_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    path = build(tmp_path, LABELS, initializer_range=1.0)
    texts = [" ".join(WORDS[(i * j) % 8] for j in range(1 + i % 7)) for i in range(20)]
    alone = ClassifierJudge(path, batch_size=1).judge(texts)
    assert len({v["predicted"] for v in alone}) > 1
    for size in (3, 20):
        assert [v["predicted"] for v in ClassifierJudge(path, batch_size=size).judge(texts)] == [
            v["predicted"] for v in alone
        ]


def test_blank_texts_are_unjudged_and_long_ones_cut(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = ClassifierJudge(planted).judge(["", "rage " * 500, " \n"], progress=True)
    assert [v["predicted"] for v in got] == [None, "anger", None]
    assert got[0]["reason"] == "empty text"
    assert "1/1" in capsys.readouterr().err
    assert ClassifierJudge(planted).judge([]) == []


def test_label_map_joins_labels_and_leaves_labels_out(tmp_path: Path) -> None:
    path = build(tmp_path, ["LABEL_0", "love", "fear"], plant={"rage": 0, "joyful": 1, "spooky": 2})
    judge = ClassifierJudge(path, label_map={"LABEL_0": "anger", "love": None})
    assert [v["predicted"] for v in judge.judge(["rage", "spooky"])] == ["anger", "fear"]
    (left_out,) = judge.judge(["joyful"])
    assert left_out["predicted"] in ("anger", "fear")
    assert "best label 'love'" in left_out["reason"]
    joined = ClassifierJudge(path, label_map={"LABEL_0": "anger", "love": "joy"})
    assert joined.judge(["joyful"])[0]["predicted"] == "happiness"


def test_labels_of_one_answer_are_added_up() -> None:
    judge = ClassifierJudge.__new__(ClassifierJudge)
    judge.name, judge.labels = "classifier:x", {0: "annoyance", 1: "anger", 2: "fear"}
    judge.answers, judge._multi = {0: "anger", 1: "anger", 2: "fear"}, False
    assert judge._verdict([0.3, 0.3, 0.4])["predicted"] == "anger"
    judge._multi = True
    assert judge._verdict([0.3, 0.3, 0.4])["predicted"] == "fear"


def test_a_multi_label_checkpoint_is_read_with_sigmoids(tmp_path: Path) -> None:
    plant = {"rage": 0, "spooky": 1}
    path = build(tmp_path, ["anger", "fear"], plant=plant, problem_type="multi_label_classification")
    (verdict,) = ClassifierJudge(path).judge(["the"])
    assert "0.500" in verdict["reason"]


def test_unmapped_labels_are_an_error_that_lists_all_labels(tmp_path: Path) -> None:
    path = build(tmp_path, ["anger", "love", "fear", "remorse"])
    with pytest.raises(
        EmotraceError, match=r"\['love', 'remorse'\]. All its labels: 'anger', 'love', 'fear'"
    ) as caught:
        ClassifierJudge(path)
    assert "surprise" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "label_map", "message"),
    [
        (["anger", "fear"], {"angr": "anger"}, r"label_map names \['angr'\].*'anger', 'fear'"),
        (["anger", "x"], {"x": "rage"}, r"unknown emotion 'rage' in label_map\['x'\]"),
        (["anger", "x"], {"x": None}, "at least two needed"),
        (["LABEL_0", "LABEL_1"], {}, "no answer known for the labels"),
    ],
)
def test_bad_label_maps(labels: list[str], label_map: dict[str, str | None], message: str) -> None:
    with pytest.raises(EmotraceError, match=message):
        answers_of(dict(enumerate(labels)), label_map, "classifier:x")


def test_a_checkpoint_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path, ["anger", "fear"])
    transformers.BertForMaskedLM(
        transformers.BertConfig.from_pretrained(path, id2label={0: "anger", 1: "fear"})
    ).save_pretrained(path)
    with pytest.raises(EmotraceError, match=r"lacks .*classifier.*untrained"):
        ClassifierJudge(path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere", "a/b/c", "not an id"])
def test_a_missing_directory_is_named(name: str) -> None:
    with pytest.raises(EmotraceError, match="no directory"):
        ClassifierJudge(name)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmotraceError, match="no model there"):
        ClassifierJudge(tmp_path)
    with pytest.raises(EmotraceError, match="batch_size=0"):
        ClassifierJudge(tmp_path, batch_size=0)


def test_odd_texts_are_judged_and_scores_that_are_no_numbers_are_not(tmp_path: Path) -> None:
    judge = ClassifierJudge(build(tmp_path, LABELS, plant=PLANT))
    odd = ["rage \ud83d", "rage \x00", "😱", "\u200b", "rage " * 50_000, " \n"]
    assert [v["predicted"] for v in judge.judge(odd)][::4] == ["anger", "anger"]
    assert judge.judge(odd)[5]["reason"] == "empty text"
    assert judge._classifier._loaded is not None
    with torch.no_grad():
        judge._classifier._loaded[1].classifier.bias.fill_(float("nan"))
    (verdict,) = judge.judge(["rage"])
    assert verdict["predicted"] is None
    assert "not finite" in verdict["reason"]


def test_a_text_without_a_token_is_unjudged(tmp_path: Path) -> None:
    judge = ClassifierJudge(build(tmp_path, LABELS, plant=PLANT))
    assert judge._classifier._loaded is not None
    bare: Any = judge._classifier._loaded[0].backend_tokenizer
    bare.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    bare.normalizer = Replace("~", "")
    assert [v["predicted"] for v in judge.judge(["~", "rage", "~~"])] == [None, "anger", None]
    assert [v["predicted"] for v in judge.judge(["~"])] == [None]
