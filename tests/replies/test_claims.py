"""Claims about planted models: each is told from the others by what the same table of claims says of its replies."""

from __future__ import annotations

import numpy as np
import pytest

from emotrace import replies
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.replies import CLAIMS, Claim, Comparison
from emotrace.replies.claims import sentence_of

ARMS = {
    "none": {}, "prompt": {"asked": True}, "circuit": {"at": "own", "payload": "own"},
    "random_circuit": {"at": "random", "payload": "own"}, "random_tuned": {"at": "random", "payload": "own"},
    "shared_set": {"at": "shared", "payload": "own"}, "wrong_payload": {"at": "own", "payload": "other"},
    "prefill_4": {"begun": True}, "ablate": {"asked": True, "lacks": "own"}, "random_ablate": {"asked": True, "lacks": "random"},
}  # fmt: skip
"""What is done to the model in each arm: where something is added, whose payload it is, whether the reply is begun for it."""


def specific(emotion, other, at="", payload="", begun=False, asked=False, lacks=""):
    """A model in which an emotion's own components express it, whatever is added there; nothing else does."""
    whole = emotion if at == "own" or (asked and lacks != "own") else "neutral"
    return whole, whole


def by_payload(emotion, other, at="", payload="", begun=False, asked=False, lacks=""):
    """A model that expresses the emotion whose payload is added, at whichever components."""
    whole = {"own": emotion, "other": other}.get(payload, emotion if asked else "neutral")
    return whole, whole


def by_opening(emotion, other, at="", payload="", begun=False, asked=False, lacks=""):
    """A model that goes on as its reply begins, and what is added only lets it begin with the payload's emotion."""
    whole = {"own": emotion, "other": other}.get(payload, emotion if asked or begun else "neutral")
    return whole, whole


def replied(model, noise=0.1, skeletons=16, fluent=0.9):
    """Judged rows of all arms: what the model says, now and then something else; every arm loses fluency alike."""
    rng = np.random.default_rng(5)
    rows = []
    for method, done in ARMS.items():
        for s in range(skeletons):
            for i, emotion in enumerate(EMOTIONS):
                other = EMOTIONS[(i + 2) % len(EMOTIONS)]
                said = [str(rng.choice(EMOTIONS)) if rng.random() < noise else e for e in model(emotion, other, **done)]
                whole, third = ({"predicted": e, "match": int(e == emotion)} for e in said)
                row = {
                    "key": f"s{s}__{emotion}",
                    "skeleton_id": f"s{s}",
                    "emotion": emotion,
                    "valence": "neutral",
                    "method": method,
                }
                row |= {
                    "draw": 0,
                    "verdict": whole,
                    "verdict_from_third": third,
                    "meta": {"fluent": bool(rng.random() < fluent)},
                }
                rows.append(row | ({"payload_emotion": other} if method == "wrong_payload" else {}))
    return rows


def told(rows, **options):
    found, family = replies.claims(rows, permutations=2000, **options)
    return {claim["name"]: claim for claim in found}, family


@pytest.mark.parametrize(
    ("model", "components", "payload", "opening", "needed"),
    [
        (specific, True, False, True, True),
        (by_payload, False, True, True, False),
        (by_opening, False, True, False, False),
    ],
)
def test_planted_truths_are_told_apart(model, components, payload, opening, needed):
    found, family = told(replied(model))
    assert found["modulates"]["holds"] == (model is specific), "at the same strength, other components do it too"
    got = [found[name]["holds"] for name in ("components", "payload", "opening", "needed_zero")]
    assert got == [components, payload, opening, needed]
    for name in ("components", "payload", "opening", "needed_zero"):
        sentence, says = found[name]["sentence"], next(c.says for c in CLAIMS if c.name == name)
        assert sentence.startswith("not shown: " if not found[name]["holds"] else says[0].upper() + says[1:])
        assert all(f"{t['a']} − {t['b']}" in sentence for t in found[name]["tests"])
    assert len(family) == len({(t["a"], t["b"], t["score"]) for t in family}) == 8
    untested = found["needed_mean"]
    assert (untested["holds"], untested["missing"]) == (None, ["ablate_mean", "random_ablate_mean"])
    assert untested["sentence"].startswith("not tested: ")


def test_under_the_null_hypothesis_next_to_nothing_is_claimed():
    """Of 20 studies in which all arms do the same, each with a family of eight, at most a twentieth should claim anything."""
    rng, claimed = np.random.default_rng(0), 0
    for _ in range(20):
        rows = replied(lambda emotion, other, **done: (emotion, emotion), noise=0.5, skeletons=6, fluent=1)
        for row in rows:
            said = str(rng.choice(EMOTIONS[:3]))
            row["verdict"] = row["verdict_from_third"] = {"predicted": said, "match": int(said == row["emotion"])}
        found, _ = replies.claims(rows, permutations=200)
        claimed += any(claim["holds"] for claim in found)
    assert claimed <= 4  # P < .003 at .05


def test_p_is_corrected_over_the_family():
    _, family = told(replied(specific, noise=0.7))
    p = [t["p"] for t in family]
    order = np.argsort(p)
    expected, most = {}, 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[i]))
        expected[int(i)] = most
    assert [t["p_holm"] for t in family] == pytest.approx([expected[i] for i in range(len(p))])
    assert [t["holds"] for t in family] == [t["difference"] > 0 and t["p_holm"] < 0.05 for t in family]
    assert len({t["holds"] for t in family}) == 2, "all alike, so nothing is shown"


def test_a_judge_in_doubt_carries_no_claim():
    found, _ = told(replied(specific), doubt="macro-F1 of the judge is .61")
    assert not any(claim["holds"] for claim in found.values())
    assert found["components"]["sentence"].startswith("not shown: the circuit is emotion-specific")
    assert "macro-F1 of the judge is .61" in found["components"]["sentence"]


def test_the_draw_counts_that_is_hardest_to_beat():
    rows = replied(specific)
    drawn = [{**r, "draw": 1, "verdict": q["verdict"]} for r, q in zip(
        [r for r in rows if r["method"] == "random_tuned"], [r for r in rows if r["method"] == "circuit"], strict=True
    )]  # fmt: skip
    assert told(rows)[0]["components"]["holds"]
    assert not told([*rows, *drawn])[0]["components"]["holds"]
    lost = [{**r, "draw": 1, "verdict": q["verdict"]} for r, q in zip(
        [r for r in rows if r["method"] == "random_ablate"], [r for r in rows if r["method"] == "ablate"], strict=True
    )]  # fmt: skip
    assert not told([*rows, *lost])[0]["needed_zero"]["holds"]


def test_a_claim_that_is_not_one_is_refused():
    found, _ = told(replied(specific))
    assert sentence_of(found.values(), "payload") == found["payload"]["sentence"]
    with pytest.raises(EmotraceError, match="'loves' is no claim"):
        sentence_of(found.values(), "loves")
    odd = Claim("odd", "it is", (Comparison("circuit", "none", "charm"),), "nothing")
    with pytest.raises(EmotraceError, match="unknown score 'charm'"):
        replies.claims(replied(specific), wanted=[odd])


def test_another_judge_may_test_what_the_first_one_chose():
    deaf = [{**r, "verdict_second": {"predicted": "neutral", "match": 0}} for r in replied(specific)]
    assert told(deaf)[0]["components"]["holds"]
    second = told(deaf, verdict="verdict_second")[0]
    assert (second["components"]["holds"], second["payload"]["holds"]) == (False, False)
    assert second["opening"]["holds"], "it is judged from the third token on by whoever judged that"


def test_replies_are_read_anew_by_the_names_that_an_emotion_has():
    row = {"key": "a", "payload_emotion": "joy", "verdict": {"predicted": "happiness", "match": 0}}
    (found,) = replies.reread([row], "payload_emotion")
    assert (found["emotion"], found["verdict"]["match"]) == ("joy", 1)
    with pytest.raises(EmotraceError, match="has no 'mood'"):
        replies.reread([row], "mood")
    other = {"key": "b", "emotion": "joy", "verdict": {"predicted": "joy", "match": 1}}
    assert replies.emotion_matrix([other]).loc["joy", "happiness"] == 1
