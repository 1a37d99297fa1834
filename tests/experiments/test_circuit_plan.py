"""What a run will cost: whole where it fits, every search cut alike; and what is fitted on where asking fails."""

import importlib
import re
import sys
from types import SimpleNamespace

import pytest

from emotrace import replies
from emotrace.datasets import sev
from tests.experiments.studies import ROOT


@pytest.fixture(scope="module")
def plan():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        yield importlib.import_module("circuit_plan")
    for name in [name for name in sys.modules if name.startswith("circuit_")]:
        sys.modules.pop(name, None)


def lines(places, doses):
    return [[{"place": p, "dose": d} for d in range(doses)] for p in range(places)]


def whole(plan, **more):
    searches = {"steer": plan.Search(lines(22, 11), 40, 8, 12), "circuit": plan.Search(lines(4, 11), 40, 8, 12)}
    return plan.Plan(searches, 18, {"training": 720, "test": 3600}, 1440, plan.Seconds(2.0, 0.5), 24, **more)


def test_replies_by_hand(plan):
    one = plan.Search(lines(22, 4), 5, 4, 2)  # `make demo`: 88 settings on 1, 10 on 4, 2 on 5, a line of 4 on 4
    assert one.replies(18) == 18 * (88 + 10 * 4 + 2 * 5 + 4 * 4)
    assert one.within(plan.SEARCH * 20 * 18, 18) == one
    single = plan.Search([[{"dose": 1}]], 40, 8, 12)
    assert (single.replies(18), single.further(18)) == (40 * 18, 0)
    assert one._replace(wide=5).replies(18) - one.replies(18) == 18 * 4, "a line of 4 on 5 instead of 4"
    assert one.further(18) == 18 * 3 * (5 + 4), "three steps beyond, on all and again for the line"


@pytest.mark.parametrize("most", [20_000, 5_000, 1_500, 300])
def test_a_cut_search_fits_and_keeps_its_ends(plan, most):
    cut = whole(plan).cut(most)
    assert all(one.replies(18) <= most for one in cut.searches.values())
    assert len({(one.skeletons, one.middle) for one in cut.searches.values()}) == 1
    for name, one in cut.searches.items():
        full = whole(plan).searches[name].lines
        assert all(line in ([s for s in f if s in line] for f in full) for line in one.lines)
        assert all({line[0]["dose"], line[-1]["dose"]} == {0, 10} for line in one.lines)
        assert [line[0]["place"] for line in one.lines] == list(range(len(one.lines))), "the likeliest places stay"
        assert min(map(len, one.lines)) >= plan.DOSES
    assert cut.replies == 4320 + sum(one.replies(18) + one.further(18) for one in cut.searches.values())


def test_a_budget_is_shared_equally_and_said_where_it_is_too_short(plan):
    minutes = 240.0
    cut = whole(plan, budget=minutes).cut(10**6)
    kept = sum(plan.SHARES.values())
    left = (minutes * 60 * (1 - kept) / plan.REST - 1440 * 2.0 - (4320 - 1440) * 0.5) / 0.5
    assert cut.minutes <= minutes * (1 - kept)
    assert [cut.allowed(part) for part in plan.SHARES] == [minutes * 60 * share for share in plan.SHARES.values()]
    assert whole(plan).allowed("curves") is None
    assert all(one.replies(18) <= left / 2 for one in cut.searches.values())
    assert "too short" not in cut.said
    assert "4,320" not in cut.said
    assert f"{cut.replies:,} replies" in cut.said
    assert "too short" in whole(plan, budget=3.0).cut(10**6).said


def test_the_study_makes_at_most_sixty_thousand_replies(plan):
    """As `make study` runs it, at 40 skeletons; elicitation and replies for the divergences come to a few hundred."""
    files = [sev(ROOT / "data" / name, limit=40) for name in ("sev.jsonl", "test_set.jsonl")]
    given = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "--out runs/study" in line)
    flags = {name: int(value) for name, value in re.findall(r"--([a-z-]+) (\d+)", given)}
    ours = importlib.import_module("circuit_protocol").ours(SimpleNamespace(sites=SimpleNamespace(n_layers=6)), 60)
    study = SimpleNamespace(protocol=ours, decoding_of=ours.decoding_of)
    arms = importlib.import_module("circuit_arms").NAMES
    made = plan.planned(
        study, plan.Seconds(1, 1), *files, arms,
        held=10, middle=8, finalists=12, wide=0, draws=flags["draws"], refits=flags["refits"], budget=None,
        asking=400,
    )  # fmt: skip
    assert 50_000 < made.replies < 59_000
    n = 3 + len(arms) + (flags["draws"] - 1) * 9
    assert made.fixed[f"test ({n} arms and draws)"] == n * 720
    assert made.fixed[f"test ({flags['refits']} refits)"] == flags["refits"] * 2 * 720


def test_curves_and_influence_take_what_their_share_of_a_budget_allows(plan, tmp_path):
    budget = importlib.import_module("circuit_budget")
    cost = lambda n, draws: n * (2.0 + draws)  # noqa: E731
    tried = [budget.fitting(seconds, 8, (5, 1), cost) for seconds in (56, 55, 24, 20, 0)]
    assert [(cut.skeletons, cut.more) for cut in tried] == [(8, 5), (8, 1), (8, 1), (4, 1), (1, 1)]
    assert tried[1].seconds == 24
    ran = []
    first, again = (budget.timed(tmp_path / "t.json", lambda: ran.append(1), 4) for _ in range(2))
    assert (first, ran) == (again, [1])


def test_an_emotion_that_asking_does_not_elicit_is_fitted_on_all_its_prompts(plan):
    fitted = importlib.import_module("circuit_protocol").fitted
    rows = [
        {"key": f"{s}__{v}__{e}", "skeleton_id": s, "valence": v, "emotion": e, "method": "prompt", "draw": 0,
         "verdict": {"predicted": e, "match": int(e != "surprise" and (e, s) != ("anger", "a"))}}
        for s in "abcd" for v in ("positive", "negative") for e in ("anger", "fear", "surprise")
    ]  # fmt: skip
    found = fitted(rows, {r["key"] for r in rows})
    assert found.by_emotion["surprise"] == {"n": 8, "of": 8, "accepted_only": False}
    assert found.by_emotion["anger"] == {"n": 6, "of": 8, "accepted_only": True}
    assert {k for k in found.keys if "surprise" in k} == {r["key"] for r in rows if r["emotion"] == "surprise"}
    assert "surprise 0 of 8" in found.notes[0]
    none = fitted([{**r, "verdict": {"predicted": "x", "match": 0}} for r in rows], {r["key"] for r in rows})
    assert len(none.keys) == len(rows)


@pytest.mark.parametrize("n_layers", [1, 8, 30])
def test_steering_begins_in_the_middle_layers_from_the_last_prompt_token_on(plan, n_layers):
    protocol = importlib.import_module("circuit_protocol")
    found = protocol.ours(SimpleNamespace(sites=SimpleNamespace(n_layers=n_layers)), 24).steering
    first = found[0][0]
    middle = range(round(n_layers / 4), max(round(n_layers / 4) + 1, round(3 * n_layers / 4)))
    assert (first["positions"], first["layers"]) == ("steer", list(middle))
    assert sorted((s["positions"], *s["layers"]) for s, *_ in found) == sorted(
        (p, *w) for p in protocol.POSITIONS for w in replies.layer_windows(n_layers)
    )
