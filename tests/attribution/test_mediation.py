"""Logit mediation: through the directions where the answer is written along them, beside them where it is not; and by hand."""

from __future__ import annotations

import numpy as np
import pytest

import emotrace as et
from emotrace import attribution
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.testing.planted import planted


@pytest.fixture(scope="module")
def found():
    """The planted model, its directions, and edits along them in the last layer but one."""
    truth = planted("llama", skeletons=3)
    acts = et.capture(truth.model, truth.prompts, ("resid_mid", "resid_post"), positions="last", progress=False)
    dirs = et.directions.centered_mean(acts)
    goal = truth.plain.for_each(emotion=EMOTIONS)
    edits = [et.Add("resid_post", layers=[1], vector=dirs.sel(sublayer="resid_post"), strength=2.0, scale="rms")]
    return truth, dirs, goal, edits


def test_an_effect_along_the_directions_is_mediated_by_them_and_one_beside_them_is_not(found):
    truth, dirs, goal, edits = found
    words = {"replies": {e: [truth.answers[e]] for e in EMOTIONS}}
    told = attribution.logit_mediation(truth.model, goal, edits, dirs, words)
    assert told["replies"]["effect"] > 1
    assert told["replies"]["ci95"][0] > 0
    assert told["projection"]["effect"] > 0
    assert told["replies"]["mediated"] > 0.9
    assert told["replies"]["n"] == len(goal)
    wrong = dirs.copy(data=np.random.default_rng(0).normal(size=dirs.shape).astype(np.float32))
    beside = attribution.logit_mediation(truth.model, goal, edits, wrong, words)
    assert beside["replies"]["effect"] == pytest.approx(told["replies"]["effect"])
    assert beside["replies"]["mediated"] < 0.5


def test_it_is_what_plain_tensors_give(found):
    truth, dirs, goal, edits = found
    words = {"names": {e: [truth.answers[e], 30 + i] for i, e in enumerate(EMOTIONS)}}
    told = attribution.logit_mediation(truth.model, goal, edits, dirs, words)["names"]
    margins = []
    for some in ([], edits):
        acts = et.capture(truth.model, goal, "logits", positions="last", edits=some, progress=False)
        x = acts.sel("logits").values
        means = np.stack([x[:, words["names"][e]].mean(1) for e in EMOTIONS], 1)
        own = np.array([EMOTIONS.index(p.labels["emotion"]) for p in goal])
        margins.append([row[i] - np.delete(row, i).mean() for row, i in zip(means, own, strict=True)])
    assert told["effect"] == pytest.approx(np.mean(np.subtract(margins[1], margins[0])), abs=1e-5)
    assert told["held"] == pytest.approx(told["effect"] * (1 - told["mediated"]))
    nothing = attribution.logit_mediation(truth.model, goal, [], dirs, words)["names"]
    assert nothing["mediated"] is None


def test_what_tells_replies_apart_and_what_is_refused(found):
    truth, dirs, goal, edits = found
    rows = [
        {"key": f"{e}{i}", "emotion": e, "token_ids": [1, 10 + j, 20 + i], "verdict": {"match": int(i < 2)}}
        for j, e in enumerate(("fear", "anger")) for i in range(3)
    ]  # fmt: skip
    assert attribution.telling_tokens(rows, 1) == {"fear": [10], "anger": [11]}
    assert attribution.telling_tokens(rows, 1, without=[10])["fear"] == [1]
    with pytest.raises(EmotraceError, match="hold 4 tokens, 9 are asked for"):
        attribution.telling_tokens(rows, 9)
    with pytest.raises(EmotraceError, match="replies of one emotion alone"):
        attribution.telling_tokens(rows[:3], 1)
    with pytest.raises(EmotraceError, match="names has no token for the emotion 'sadness'"):
        attribution.logit_mediation(truth.model, goal, edits, dirs, {"names": {"anger": [3]}})
    for wrong, said in ((-1, "0 to"), (10**6, "0 to"), ("a", "whole number")):
        with pytest.raises(EmotraceError, match=said):
            attribution.logit_mediation(truth.model, goal, edits, dirs, {"names": {e: [wrong] for e in EMOTIONS}})
    with pytest.raises(EmotraceError, match="unknown layer"):
        attribution.logit_mediation(truth.model, goal, edits, dirs.sel(layer=[0]), {})
    with pytest.raises(EmotraceError, match="unknown emotion None"):
        attribution.logit_mediation(truth.model, truth.plain, edits, dirs, {"names": {e: [3] for e in EMOTIONS}})
