"""Response statistics: small cases by hand, and those of the published responses (§C5)."""

import math

import pytest

from emotrace.labels import EmotraceError
from emotrace.replies import response_statistics
from emotrace.replies.texts import DISCLAIMER, WIDER, cleaned, distinct


def test_by_hand():
    found = response_statistics(["No no NO!!", "<bos>As an AI, I rest.<end_of_turn>", " "])
    assert (found["n"], found["n_empty"]) == (3, 1)
    assert found["words"] == pytest.approx((3 + 5 + 0) / 3)
    assert found["exclamations"] == pytest.approx(2 / 3)
    assert found["distinct_1"] == pytest.approx((2 / 3 + 1) / 2), (
        "'no!!' is another word than 'no'; empty ones have none"
    )
    assert found["distinct_2"] == pytest.approx((1 + 1) / 2)
    assert found["disclaimers"] == pytest.approx(1 / 3)
    assert response_statistics(["<s> </s>"])["distinct_1"] is None
    assert math.isnan(distinct("one", 2))
    assert distinct("ha ha ha ha") == 0.25
    assert cleaned(" <|eot_id|> a < b </s>") == "a < b"
    for wrong, words in (([], "at least one text"), ("text", "a list of names is due"), (["a", 1], "a text is due")):
        with pytest.raises(EmotraceError, match=words):
            response_statistics(wrong)


def test_disclaimers():
    for text in (
        "As an AI language model",
        "I don't have feelings",
        "I do not have personal emotions",
        "I'm just an AI",
    ):
        assert DISCLAIMER.search(text)
    assert not DISCLAIMER.search("I have feelings, as an aircraft pilot")
    assert WIDER.search("As a digital assistant, I help.")
    assert not DISCLAIMER.search("As a digital assistant, I help.")


PUBLISHED = {
    -1: (93.0, 0.799, 0.23, 0.888), 0: (136.5, 0.768, 0.45, 0.852), 1: (207.9, 0.700, 1.68, 0.640),
    2: (363.3, 0.493, 12.77, 0.136), 4: (338.3, 0.254, 2.00, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("dose", PUBLISHED)
def test_published_responses(oracles, dose):
    """§C5, Qwen2.5 under multiples of the base vector: words, variety and exclamation marks a row; disclaimers of rows 0–249."""
    texts = oracles.json(f"emotion_vectors/responses_base_qwen2.5/{dose}.json")
    assert len(texts) == 400
    words, variety, marks, disclaimers = PUBLISHED[dose]
    found = response_statistics(texts, clean=False)
    assert found["words"] == pytest.approx(words, abs=0.05)
    assert found["distinct_1"] == pytest.approx(variety, abs=6e-4)
    assert found["exclamations"] == pytest.approx(marks, abs=0.0051)
    assert response_statistics(texts[:250], clean=False)["disclaimers"] == pytest.approx(disclaimers, abs=6e-4)
