"""What is fitted on is not tested on."""

import pytest

from emotrace import evaluation
from emotrace.datasets import Prompts, Query, Skeleton, refuse_shared, sev, shared
from emotrace.labels import EmotraceError


def skeletons(*names, text="{} came late."):
    return [Skeleton(name, "Work/Job", text.format(name), {"neutral": "It rained."}) for name in names]


def test_ids_and_texts_of_whatever_kind_are_compared():
    fit = skeletons("work_00", "work_01", "work_02")
    assert shared(skeletons("work_09", text="{} sang."), fit) == []
    assert shared(skeletons("work_01", text="Other words of {}."), fit) == ["work_01"], "the same id"
    copied = [Skeleton("mine", "x", "WORK_02  came late!", {"neutral": "Well."})]
    assert shared(copied, fit) == ["mine"], "the same scenario under another id, event and marks"
    assert shared(sev(fit[:2], instruction=True), fit) == ["work_00", "work_01"], "each skeleton once"
    assert shared(sev(fit, instruction=False), sev(fit, instruction=True)) == ["work_00", "work_01", "work_02"]
    queries = [Query("anger_000", "Why me?", "anger"), Query("anger_001", "Who?", "anger")]
    assert shared(queries, [Query("anger_000", "What now?", "anger")]) == [], "numbers of queries are places in a file"
    assert shared(queries, ["why me"]) == ["anger_000"]
    assert shared(["Who?"], queries) == ["'Who?'"]
    with pytest.raises(EmotraceError, match="int is no skeleton"):
        shared([3], fit)


def test_the_refusal_says_how_many_and_which():
    fit = skeletons(*(f"work_{i:02}" for i in range(6)))
    with pytest.raises(
        EmotraceError, match=r"--test b and --train a share 5 of 5: work_01, work_02, work_03, …\. What is"
    ):
        refuse_shared(fit[1:], fit, "--test b", "--train a")
    with pytest.raises(EmotraceError, match=r"share 1 of 2: work_05\."):
        refuse_shared([fit[5], *skeletons("work_77")], fit)
    refuse_shared(skeletons("work_77"), fit)


def test_a_scenario_under_two_ids_stays_in_one_part():
    same = [Skeleton(f"{n}_{i}", "x", f"Scenario {i}.", {"neutral": "Well."}) for i in range(6) for n in ("a", "b")]
    for seed in range(5):
        fit, held = evaluation.split(sev(same, instruction=False), 0.5, seed)
        assert fit | held == {s.skeleton_id for s in same}
        assert not {name[2:] for name in fit} & {name[2:] for name in held}
    with pytest.raises(EmotraceError, match="1 skeleton cannot be split"):
        evaluation.split(Prompts(sev(same[:2], instruction=False)), 0.5)
