"""Binary tasks: what is in them, what is not, and the published draw."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace.datasets.goemotions import LabelledText
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning.tasks import PARTS, binary, parted


def rows(part, n, every=3):
    """Each ``every``-th text has joy; each twelfth joy and fear."""
    labels = [("joy", "fear") if i % 12 == 0 else ("joy",) if i % every == 0 else ("fear",) for i in range(n)]
    return [LabelledText(f"{part}{i}", f"text {part} {i}", label) for i, label in enumerate(labels)]


TEXTS = {part: rows(part, n) for part, n in zip(PARTS, (60, 30, 24), strict=True)}


@given(seed=st.integers(0, 99), ratio=st.sampled_from([0.5, 1.0, 1.5]))
def test_clean_negatives_lack_the_emotion_and_occur_once(seed, ratio):
    task = binary(TEXTS, "joy", seed, ratio=ratio)
    truth = {t.text_id: "joy" in t.labels for part in TEXTS.values() for t in part}
    for part, n in zip(PARTS, (60, 30, 24), strict=True):
        items = getattr(task, part)
        assert len(set(items.ids)) == len(items)
        assert [truth[i] for i in items.ids] == list(items.labels)
        assert sum(items.labels) == n // 3
        assert len(items) - sum(items.labels) == round(ratio * (n // 3))
        assert all(i.startswith(part) for i in items.ids)


def test_a_task_is_a_function_of_its_seed():
    assert binary(TEXTS, "joy", 1).digest == binary(TEXTS, "joy", 1).digest
    assert len({binary(TEXTS, "joy", s).digest for s in range(5)}) == 5
    few = binary(TEXTS, "joy", 1, limit=4)
    assert [sum(getattr(few, p).labels) for p in PARTS] == [4, 4, 4]
    assert set(few.train.ids[:4]) <= {t.text_id for t in TEXTS["train"] if "joy" in t.labels}


def test_a_text_of_an_earlier_part_is_left_out_of_a_later_one():
    again = LabelledText("x", "  TEXT train   0", ("joy",))  # equal but for case and blanks
    task = binary({**TEXTS, "dev": [again, *TEXTS["dev"]]}, "joy", 0)
    assert task.moved == 1
    assert "x" not in task.dev.ids


@pytest.mark.parametrize("seed", [1, 42])
def test_the_published_draw_is_with_replacement_over_all_rows(seed):
    task = binary(TEXTS, "joy", seed, negatives="contaminated")
    for part in PARTS:  # the literal twin: the global generator, seeded anew for every part
        data = TEXTS[part]
        positives = [i for i, t in enumerate(data) if "joy" in t.labels]
        np.random.seed(seed)  # noqa: NPY002
        drawn = np.random.choice(len(data), size=len(positives))  # noqa: NPY002
        expected = [data[i].text_id for i in [*positives, *drawn]]
        assert list(getattr(task, part).ids) == expected
    assert sum(task.train.labels) > len(task.train) / 2  # some negatives are positives
    assert max(Counter(task.train.ids).values()) > 1


@given(n=st.integers(20, 60), seed=st.integers(0, 9))
def test_parts_of_one_file_share_no_text_and_hold_all(n, seed):
    data = [*rows("a", n), LabelledText("again", "TEXT a 1", ("fear",))]
    out = parted(data, seed=seed)
    texts = [{t.text.casefold() for t in out[p]} for p in PARTS]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert sorted(t.text_id for p in PARTS for t in out[p]) == sorted(t.text_id for t in data)
    assert abs(len(out["train"]) / len(data) - 0.6) < 0.1


WRONG = {
    "emotion": ({"emotion": "jpy"}, "unknown emotion 'jpy'.*Did you mean 'joy'"),
    "part": ({"texts": {**TEXTS, "valid": []}}, "unknown part 'valid'"),
    "no dev": ({"texts": {"train": TEXTS["train"]}}, "dev is missing"),
    "negatives": ({"negatives": "dirty"}, "Choices: clean, contaminated"),
    "ratio": ({"ratio": 0}, "positive ratio"),
    "limit": ({"limit": 0}, "at least 1 positive"),
    "only positives": ({"texts": {**TEXTS, "dev": rows("d", 5, every=1)}}, r"dev: 5 texts with 'joy' and 0 without"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_task_is_refused(case):
    options, message = WRONG[case]
    with pytest.raises(EmotraceError, match=message):
        binary(**{"texts": TEXTS, "emotion": "joy"} | options)


def test_shares_that_are_none_are_refused():
    with pytest.raises(EmotraceError, match="sum to 1"):
        parted(TEXTS["train"], (0.5, 0.2, 0.2))
