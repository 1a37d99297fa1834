import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from emotrace import rsa
from emotrace.labels import EmotraceError

EMOTIONS, SEEDS, ATTRIBUTES, KS = (
    ["joy", "fear", "grief", "love"],
    [1, 3, 5],
    ["valence", "control", "novelty"],
    [10, 20],
)
HUMAN = {"valence": 0.5, "control": 0.2, "novelty": 0.0}


def accuracies(draws=4, effect=0.1, seed=0, shared=False):
    """Selective masks cost ``effect`` times the human weight more than random ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for e, s in itertools.product(EMOTIONS, SEEDS):
        rows.append((e, s, "", 0, "none", -1, 0.9))
        for a, k in itertools.product(ATTRIBUTES, KS):
            rows.append((e, s, a, k, "selective", -1, 0.7 - effect * HUMAN[a] + 0.01 * rng.normal()))
            if not shared:
                rows += [(e, s, a, k, "random", d, 0.7 + 0.01 * rng.normal()) for d in range(draws)]
        if shared:
            rows += [(e, s, "*", k, "random", d, 0.7 + 0.01 * rng.normal()) for k in KS for d in range(draws)]
    return pd.DataFrame(rows, columns=["emotion", "seed", "attribute", "k", "kind", "draw", "accuracy"])


def test_drops_by_hand():
    table = accuracies()
    got = rsa.drops(table)
    assert len(got) == 4 * 3 * 3 * 2
    cell = (table.emotion == "fear") & (table.seed == 3) & (table.attribute == "control") & (table.k == 20)
    mine = table[cell]
    row = got[(got.emotion == "fear") & (got.seed == 3) & (got.attribute == "control") & (got.k == 20)].iloc[0]
    expected = mine[mine.kind == "random"].accuracy.mean() - mine[mine.kind == "selective"].accuracy.iloc[0]
    assert row["drop"] == pytest.approx(expected)
    assert row["n_draws"] == 4
    assert row["loss"] == pytest.approx(0.9 - row["selective"])
    shuffled = rsa.drops(table.sample(frac=1, random_state=0))
    merged = got.merge(shuffled, on=["emotion", "seed", "attribute", "k"], suffixes=("", "_other"))
    np.testing.assert_allclose(merged["drop"], merged["drop_other"], atol=1e-12)


def test_shared_draws_and_what_has_no_partner():
    table = accuracies(shared=True)
    got = rsa.drops(table)
    assert len(got) == 72
    assert (
        np.ptp(got.pivot_table(index=["emotion", "seed", "k"], columns="attribute", values="random"), axis=1).max() == 0
    )
    assert rsa.draw_tests(table).n_draws.tolist() == [4] * 6
    own = accuracies()
    fewer = rsa.drops(own[~((own.kind == "random") & (own.k == 10))])
    assert fewer.attrs["left_out"] == {"selective": 36, "random": 0}
    assert set(fewer.k) == {20}


def test_paired_tests_by_hand():
    table = rsa.drops(accuracies())
    got = rsa.paired_tests(table, ("k", "attribute"), units=("emotion", "seed", "attribute"), rule="published")
    assert (got.n == 12).all()
    one = got[(got.k == 20) & (got.attribute == "valence")].iloc[0]
    d = table[(table.k == 20) & (table.attribute == "valence")]
    theirs = sps.ttest_rel(d.random, d.selective, alternative="greater")
    assert (one.t, one.p, one.df) == pytest.approx((theirs.statistic, theirs.pvalue, 11))
    interval = sps.ttest_rel(d.random, d.selective).confidence_interval(0.95)
    assert (one.lo, one.hi) == pytest.approx((interval.low, interval.high))
    np.testing.assert_allclose(got.q, got.p * 6 / sps.rankdata(got.p))
    by_emotion = rsa.paired_tests(table)
    assert (by_emotion.n == 4).all()
    means = d.groupby("emotion")[["random", "selective"]].mean()
    assert by_emotion[(by_emotion.k == 20) & (by_emotion.attribute == "valence")].p.item() == pytest.approx(
        sps.ttest_rel(means.random, means.selective, alternative="greater").pvalue
    )
    assert rsa.paired_tests(table, ("k", "emotion")).attrs["units"] == ["seed"]


def test_equal_drops():
    table = rsa.drops(accuracies()).assign(drop=0.0)
    assert (rsa.paired_tests(table).p == 1).all()
    same = rsa.paired_tests(table.assign(drop=0.1))
    assert (same.p < 1e-12).all()


def test_the_planted_effect_and_its_link_to_people():
    table = accuracies(draws=99, effect=0.2)
    tests = rsa.draw_tests(table).set_index(["k", "attribute"])
    assert tests.loc[(10, "valence")].p == pytest.approx(0.01)
    assert tests.loc[(10, "valence")].hurts_more == 1
    assert tests.loc[(10, "valence")]["drop"] == pytest.approx(0.1, abs=0.02)
    assert tests.loc[(10, "novelty")].p > 0.02
    by_k, each = rsa.human_link(rsa.drops(table), HUMAN)
    assert (by_k.r > 0.9).all()
    assert (by_k.p <= 2 / 6).all()  # of three attributes there are six orders
    assert len(each) == 8


def test_draw_tests_by_hand():
    table = accuracies(draws=9, effect=0.01)
    got = rsa.draw_tests(table, ("emotion", "k", "attribute"))
    for _, row in got.iterrows():
        cell = table[(table.emotion == row.emotion) & (table.k == row.k) & (table.attribute == row.attribute)]
        draws = cell[cell.kind == "random"].groupby("draw").accuracy.mean()
        assert row.p == (1 + (draws <= cell[cell.kind == "selective"].accuracy.mean()).sum()) / 10
        assert row.sd == pytest.approx(draws.std())


def test_human_link_by_hand():
    table = rsa.drops(accuracies(seed=3))
    by_k, each = rsa.human_link(table, HUMAN)
    published, same = rsa.human_link(table, HUMAN, over="emotion")
    pd.testing.assert_frame_equal(each, same)
    shuffled = []
    for order in itertools.permutations(HUMAN.values()):
        z = []
        for emotion in EMOTIONS:
            d = table[(table.k == 10) & (table.emotion == emotion)].groupby("attribute")["drop"].mean()
            z.append(np.arctanh(np.corrcoef(d[ATTRIBUTES], order)[0, 1]))
        shuffled.append(z)
    z = shuffled[0]
    np.testing.assert_allclose(np.arctanh(each[each.k == 10].r), z)
    one = by_k[by_k.k == 10].iloc[0]
    assert one.p == np.mean([abs(np.mean(s)) >= abs(np.mean(z)) - 1e-12 for s in shuffled])
    assert (one.r, one.p_floor, one.n, one.n_attributes) == (pytest.approx(np.tanh(np.mean(z))), 0, 4, 3)
    theirs = sps.ttest_1samp(z, 0)
    one = published[published.k == 10].iloc[0]
    assert (one.t, one.p, one.r) == pytest.approx((theirs.statistic, theirs.pvalue, np.tanh(np.mean(z))))
    assert (one.lo, one.hi) == pytest.approx(tuple(np.tanh(theirs.confidence_interval(0.95))))


def test_emotions_that_share_masks_are_no_independent_observations():
    """What one attribute's mask happens to do to all emotions is a link by the published test, and chance by ours."""
    rng = np.random.default_rng(0)
    names = [f"a{i}" for i in range(8)]
    human = dict(zip(names, rng.normal(size=8), strict=True))
    few = []
    for _ in range(40):
        shared = dict(zip(names, rng.normal(size=8), strict=True))
        table = pd.DataFrame(
            [(e, a, 10, shared[a] + 0.3 * rng.normal()) for e in "abcdef" for a in names],
            columns=["emotion", "attribute", "k", "drop"],
        )
        few.append(
            [rsa.human_link(table, human, over=over, permutations=199)[0].p[0] for over in ("attribute", "emotion")]
        )
    ours, theirs = (np.array(few) < 0.05).mean(0)
    assert ours <= 0.125 < 0.5 < theirs


def test_the_interval_is_that_of_attributes_drawn_again():
    from emotrace.rsa import link

    rng = np.random.default_rng(2)
    drops, w = rng.normal(size=(3, 9)), rng.normal(size=9)
    counts = rng.multinomial(9, np.full(9, 1 / 9), size=30)
    slow = []
    for count in counts:
        at = np.repeat(np.arange(9), count)
        slow.append(np.mean([np.arctanh(np.corrcoef(d[at], w[at])[0, 1]) for d in drops]))
    np.testing.assert_allclose(link._weighted(drops, w, counts.astype(float)), slow, rtol=1e-9)


def test_two_modes_are_found():
    table = rsa.drops(accuracies())
    rng = np.random.default_rng(0)
    rows = [
        {"emotion": f"e{i}", "seed": 1, "attribute": a, "k": 10, "drop": rng.normal() + (8 * (i % 2) if a == "two" else 0)}
        for i in range(40) for a in ("one", "two")
    ]  # fmt: skip
    got = rsa.unimodality(pd.DataFrame(rows), draws=500).set_index("attribute")
    assert got.loc["two"].p < 0.01 < 0.05 < got.loc["one"].p
    assert (rsa.unimodality(table, draws=20).n == 4).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.drop(columns="draw"), "unknown column 'draw'"),
        (lambda t: t.replace({"kind": {"selective": "selected"}}), "Did you mean 'selective'"),
        (lambda t: t.assign(accuracy=t.accuracy * 100), "holds 90"),
        (lambda t: t.assign(accuracy=np.nan), "holds nan"),
        (lambda t: pd.concat([t, t[t.kind == "random"].iloc[:1]]), "two rows"),
        (lambda t: pd.concat([t, t[t.kind == "selective"].iloc[:1].assign(draw=4)]), "two rows"),
        (lambda t: t[t.kind != "random"], "no selective mask has a random"),
        (lambda t: t[(t.kind != "none") | (t.emotion != "joy")], "no unmasked accuracy of 'joy'"),
    ],
)
def test_bad_tables(change, word):
    with pytest.raises(EmotraceError, match=word):
        rsa.drops(change(accuracies()))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda t: rsa.paired_tests(rsa.drops(t), ["layer"]), "unknown column 'layer'"),
        (lambda t: rsa.paired_tests(rsa.drops(t), rule="holm"), "unknown rule"),
        (lambda t: rsa.paired_tests(rsa.drops(t[t.emotion == "joy"])), "1 emotion"),
        (lambda t: rsa.human_link(rsa.drops(t), {"valence": 1.0, "control": 0.0}), "unknown attribute 'novelty'"),
        (lambda t: rsa.human_link(rsa.drops(t), HUMAN | {"novelty": np.nan}), "'novelty' .*nan"),
        (lambda t: rsa.human_link(rsa.drops(t[t.attribute.isin(["valence", "control"])]), HUMAN), "at least 3"),
        (lambda t: rsa.human_link(rsa.drops(t), HUMAN, over="seed"), "unknown over"),
        (lambda t: rsa.human_link(rsa.drops(t[(t.emotion != "joy") | (t.attribute != "novelty")]), HUMAN), "'novelty'"),
        (lambda t: rsa.draw_tests(t, ["k"]), "'attribute'"),
        (lambda t: rsa.draw_tests(t[~((t.draw == 2) & (t.emotion == "joy"))]), "draw 2 .* has 9 accuracies"),
    ],
)
def test_bad_calls(call, word):
    with pytest.raises(EmotraceError, match=word):
        call(accuracies())
