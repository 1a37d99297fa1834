"""The answer that a model finds likeliest, against the likelihoods themselves."""

import numpy as np
import pytest
import torch

from emotrace import judges
from emotrace.datasets import Prompt
from emotrace.labels import EmotraceError
from tests.helpers import loaded

ASKED = "{text} : {answers} ?"


def test_scores_are_the_likelihoods_of_the_answers_less_those_after_no_text() -> None:
    model = loaded()
    judge = judges.LikelihoodJudge(model, choices=["happy", "very sad"], question=ASKED)
    found = judge.scores(["the cat", "a dog ran"])
    encoder = model.sites.encoder

    def literal(text: str, answer: str) -> float:
        prompt = Prompt("p", text=f"{text} : happy, very sad ?")
        start = encoder.ids([prompt])[0]
        ids = torch.tensor([encoder.continued(prompt, f" {answer}")])
        assert ids[0, : len(start)].tolist() == start
        with torch.no_grad():
            logits = model._module(ids).logits[0].double().log_softmax(-1)
        return float(sum(logits[t - 1, ids[0, t]] for t in range(len(start), ids.shape[1])))

    for i, text in enumerate(("the cat", "a dog ran")):
        for j, answer in enumerate(("happy", "very sad")):
            assert found[i, j] == pytest.approx(literal(text, answer) - literal("N/A", answer), abs=1e-4)
    verdicts = judge.judge(["the cat", " "])
    assert verdicts[0]["predicted"] == judge.choices[int(np.argmax(found[0]))]
    assert verdicts[1]["predicted"] is None


def test_what_it_depends_on_and_what_it_refuses() -> None:
    model = loaded()
    one, other = (judges.LikelihoodJudge(model, question=q) for q in (ASKED, "? {text}"))
    assert one.depends_on != other.depends_on
    assert isinstance(one, judges.Judge)
    for options, word in (({"choices": ["x"]}, "two answers"), ({"question": "what?"}, "{text}")):
        with pytest.raises(EmotraceError, match=word):
            judges.LikelihoodJudge(model, **options)
    with pytest.raises(EmotraceError, match="masked"):
        judges.LikelihoodJudge(loaded("bert"))
    with pytest.raises(EmotraceError, match="likelihood:ID_OR_DIR"):
        judges.make("likelihood:")
