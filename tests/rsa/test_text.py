import numpy as np
import pytest

from emotrace import rsa
from emotrace.labels import EmotraceError
from emotrace.rsa.text import text_control, text_rdm

TEXTS = {
    "joy": ["what a happy day", "so happy and glad"],
    "love": ["a happy glad heart"],
    "grief": "a sad and dark day",
    "fear": "dark night, afraid",
    "anger": "hot and dark and loud",
}


def noise(seed, n=9, like=None, weight=0.0):
    values = np.random.default_rng(seed).random(n * (n - 1) // 2)
    return rsa.labelled(values + (0 if like is None else weight * like.values), [f"c{i}" for i in range(n)])


def test_bags_of_words_by_hand():
    got = text_rdm(TEXTS, tfidf=False)
    a = {"what": 1, "a": 1, "happy": 2, "day": 1, "so": 1, "and": 1, "glad": 1}
    b = {"a": 1, "happy": 1, "glad": 1, "heart": 1}
    dot = sum(a.get(w, 0) * b[w] for w in b)
    assert got.values[0] == pytest.approx(1 - dot / np.sqrt(10 * 4))
    weighed = rsa.square(text_rdm(TEXTS)).sel(concept="joy")
    assert weighed.sel(concept_other="love") < weighed.sel(concept_other="fear")
    letters = rsa.square(text_rdm({w: w for w in ("approval", "disapproval", "grief")}, kind="characters"))
    assert letters.sel(concept="approval", concept_other="disapproval") < 0.6 < letters.values[0, 2]


def literal_partial(x, y, z):
    """Correlation of residuals."""
    design = np.column_stack([np.ones(len(x)), *z])
    rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    return np.corrcoef(*rest)[0, 1]


def r2(y, columns):
    design = np.column_stack([np.ones(len(y)), *columns])
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return 1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum()


def test_partial_correlation_and_shares_by_regression():
    z1, z2 = noise(1), noise(2)
    x, y = noise(3, like=z1, weight=0.7), noise(4, like=z1, weight=0.5)
    got = text_control(x, y, {"words": z1, "letters": z2}, "pearson", permutations=50)
    vx, vy, *vz = (v.values for v in (x, y, z1, z2))
    assert got.partial.item() == pytest.approx(literal_partial(vx, vy, vz))
    assert got.r2_controls.item() == pytest.approx(r2(vy, vz))
    assert got.unique.item() == pytest.approx(r2(vy, [vx, *vz]) - r2(vy, vz))
    assert got.shared.item() == pytest.approx(r2(vy, [vx]) - got.unique.item())
    assert got.explained.item() == pytest.approx(got.shared.item() / r2(vy, [vx]))


def test_kendall_is_pearson_of_signs():
    z, x, y = noise(1, 6), noise(2, 6), noise(3, 6)
    i, j = np.triu_indices(15, 1)
    signs = [np.sign(v.values[i] - v.values[j]) for v in (x, y, z)]
    both = [np.concatenate([s, -s]) for s in signs]  # every pair of pairs in both directions: mean 0
    got = text_control(x, y, {"words": z}, "kendall", permutations=5)
    assert got.partial.item() == pytest.approx(literal_partial(both[0], both[1], [both[2]]))


def test_a_fit_that_is_all_words_is_explained_away():
    words = noise(1, 12)
    model, human = noise(5, 12, words, 3.0), noise(6, 12, words, 3.0)
    real, people = noise(7, 12), noise(7, 12).copy()
    people.values[:] += 0.3 * np.random.default_rng(0).random(66)
    spurious = text_control(model, human, {"words": words}, "spearman", permutations=500)
    assert spurious.correlation > 0.5
    assert spurious.p_partial > 0.05
    assert spurious.explained > 0.9
    true = text_control(real, people, {"words": words}, "spearman", permutations=500)
    assert true.p_partial < 0.01
    assert abs(true.explained) < 0.2


def test_p_of_the_partial_by_hand():
    x, y, z = noise(1, 6), noise(2, 6, noise(1, 6), 0.5), noise(3, 6)
    got = text_control(x, y, {"z": z}, "pearson", permutations=60, seed=8)
    rng, square, (i, j) = np.random.default_rng(8), rsa.square(x).values, np.triu_indices(6, 1)
    orders = [rng.permutation(6) for _ in range(60)]
    null = [literal_partial(square[np.ix_(o, o)][i, j], y.values, [z.values]) for o in orders]
    assert got.p_partial.item() == (1 + sum(n >= got.partial.item() - 1e-9 for n in null)) / 61


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: text_rdm({"a": "x", "b": "y", "c": "z"}), "share no words.*characters"),
        (lambda: text_rdm({"a": "x y", "b": "", "c": "x"}), "text of 'b' has no words"),
        (lambda: text_rdm({"a": "", "b": "", "c": ""}), "no words in any"),
        (lambda: text_rdm({"a": "x", "b": "x y"}), "at least 3"),
        (lambda: text_rdm(TEXTS, kind="word"), "Did you mean 'words'"),
        (lambda: text_control(noise(1), noise(2), {}), "no controls"),
        (lambda: text_control(noise(1), noise(2), {"w": noise(3, 8)}), "'w' is not an RDM"),
        (lambda: text_control(noise(1), noise(2), {"w": noise(3) * 0}), "constant"),
        (lambda: text_control(noise(1), noise(2), {"w": noise(3), "v": 2 * noise(3)}), "determine each other"),
        (lambda: text_control(noise(1), noise(2), {"w": 2 * noise(1)}), "determine the RDM"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call()
