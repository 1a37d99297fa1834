"""What is fitted on is not tested on."""

import pytest

from emotrace.datasets import Prompt, Prompts, Query, Skeleton, refuse_shared, sev, shared, split
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
        fit, held = split(sev(same, instruction=False), 0.5, seed)
        assert fit | held == {s.skeleton_id for s in same}
        assert not {name[2:] for name in fit} & {name[2:] for name in held}
    with pytest.raises(EmotraceError, match="1 skeleton cannot be split"):
        split(Prompts(sev(same[:2], instruction=False)), 0.5)


def themed(themes=4, each=5):
    return Prompts(
        Prompt(f"{t}_{i}_{v}", text="x", labels={"skeleton_id": f"{t}_{i}", "theme": f"t{t}"})
        for t in range(themes)
        for i in range(each)
        for v in "ab"
    )


@pytest.mark.parametrize("share", [0.01, 0.2, 0.25, 0.5, 0.99])
def test_split_is_disjoint_whole_and_spread_over_themes(share):
    prompts = themed()
    fit, held = split(prompts, share, seed=3)
    assert not fit & held
    assert fit | held == {p.labels["skeleton_id"] for p in prompts}
    assert len(held) == min(19, max(1, round(share * 20)))
    counts = [sum(name.startswith(f"{t}_") for name in held) for t in range(4)]
    assert max(counts) - min(counts) <= 1
    assert split(prompts, share, seed=3) == (fit, held)


def test_split_depends_on_the_seed_and_not_on_the_order_of_prompts():
    prompts = themed()
    splits = {tuple(sorted(split(prompts, 0.25, seed=s)[1])) for s in range(6)}
    assert len(splits) > 3
    assert split(Prompts(list(prompts)[::-1]), 0.25, 0) == split(prompts, 0.25, 0)
    for wrong, message in (
        ((themed(1, 1), 0.2), "1 skeleton cannot"),
        ((prompts, 0), "share=0"),
        ((prompts, 1.0), "share=1"),
    ):
        with pytest.raises(EmotraceError, match=message):
            split(*wrong)
    with pytest.raises(EmotraceError, match="skeleton_id"):
        split(Prompts.of(["a", "b"]), 0.5)
