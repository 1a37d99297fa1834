"""The published artefacts of arXiv 2302.09582 through our functions (specification §3 to §6)."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emotrace import rsa

E = "emotion_knowledge"


@pytest.fixture(scope="module")
def scores(oracles):
    table = oracles.csv(f"{E}/attribute_scores.csv")
    emotions = oracles.path(f"{E}/emotions.csv").read_text().split()
    assert tuple(emotions) == rsa.EMOTIONS_27
    assert tuple(table.columns) == rsa.ATTRIBUTES
    coords = {"emotion": emotions, "attribute": list(table.columns)}
    return xr.DataArray(table.to_numpy(), dims=("emotion", "attribute"), coords=coords)


@pytest.fixture(scope="module")
def distances(oracles):
    table = oracles.csv(f"{E}/attribute_distances.csv")
    return rsa.labelled(table.to_numpy().T, rsa.EMOTIONS_27, ["attribute"], {"attribute": np.array(table.columns)})


@pytest.fixture(scope="module")
def people(oracles):
    return rsa.labelled(oracles.csv(f"{E}/human_dissimilarity_mean.csv").to_numpy()[:, 0], rsa.EMOTIONS_27)


@pytest.fixture(scope="module")
def sample(oracles):
    file = oracles.npz(f"{E}/neuron_sample.npz")
    coords = {n: file[n] for n in ("seed", "emotion", "neuron")}
    x = xr.DataArray(file["activations"], dims=("seed", "emotion", "neuron"), coords=coords)
    return x, file["published_rank"], file["attribute"].tolist()


@pytest.fixture(scope="module")
def found(sample, distances):
    return rsa.searchlight(sample[0], distances, ties="exact")  # as published: compared to the last bit


@pytest.fixture(scope="module")
def masked(oracles):
    file = oracles.npz(f"{E}/masking_accuracy.npz")
    parts = []
    for kind, name in (("selective", "masked"), ("random", "random")):
        values = file[name].astype(np.float64)
        index = np.indices(values.shape).reshape(4, -1)
        axes = ("emotion", "seed", "attribute", f"{name}_k")
        columns = {a.removeprefix(f"{name}_"): file[a][i] for a, i in zip(axes, index, strict=True)}
        parts.append(
            pd.DataFrame({**columns, "kind": kind, "draw": -int(kind == "selective"), "accuracy": values.ravel()})
        )
    seed, emotion = np.meshgrid(file["seed"], file["emotion"])
    parts.append(
        pd.DataFrame(
            {
                "emotion": emotion.ravel(), "seed": seed.ravel(), "attribute": "", "k": 0, "kind": "none", "draw": -1,
                "accuracy": file["unmasked"].ravel().astype(np.float64),
            }
        )
    )  # fmt: skip
    table = pd.concat(parts, ignore_index=True)
    return table, rsa.drops(table)


def test_attribute_distances_are_those_of_the_scores(scores, distances):
    """Scores are the ratings scaled to 0 … 1, so the distances are the same but for the range of each attribute."""
    ours = rsa.attribute_rdms(scores, decimals=None)
    scaled = ours / ours.max("pair") * distances.max("pair")
    assert np.abs(scaled.values - distances.values).max() <= 2e-14


def test_how_much_people_weigh_each_attribute(people, distances, scores):
    """§4, plain τ of the averaged RDM, and the order of the published figures; §3 for the spaces."""
    tau = rsa.compare(people, distances, ties="exact").correlation.to_series()
    expected = [
        -0.0027, 0.5860, 0.6052, 0.3843, 0.3623, 0.2646, 0.0456, 0.3827, 0.0687, 0.4234, 0.0675, 0.0084, 0.0822, 0.0291,
    ]  # fmt: skip
    np.testing.assert_allclose(tau, expected, atol=1e-4)
    assert tau.sort_values(ascending=False).index.tolist() == [
        "happy-face", "valence", "fairness", "anger-face", "disgust-face", "sad-face", "fear-face", "expectedness", "control",
        "self-relativity", "surprise-face", "novelty", "other-relativity", "arousal",
    ]  # fmt: skip
    spaces = rsa.compare(people, rsa.reference_rdms(scores, "3Spaces")).correlation
    np.testing.assert_allclose(spaces, [0.5547, 0.6387, 0.2664, 0.6415], atol=1e-4)


def test_rounding_the_scores_moves_tau_a_little(found, sample, scores):
    """§3: at most 1.3e-3, and only where the scores are means of ratings."""
    gap = np.abs(rsa.searchlight(sample[0], rsa.reference_rdms(scores), ties="exact").tau - found.tau).max("neuron")
    assert 1e-4 < gap.max() < 1.4e-3
    assert gap.isel(attribute=slice(8, None)).max() == 0


def test_order_of_the_sampled_neurons(found, sample):
    """The sign of τ_g − τ_h against that of the published ranks, over all 2.1 million pairs of each attribute, ties included."""
    _, rank, attributes = sample
    assert found["attribute"].values.tolist() == attributes
    same = reversed_ = 0
    pairs = 14 * 2048 * 2047 // 2
    for tau, theirs in zip(found.tau.values, rank.T, strict=True):
        dense = [np.unique(v, return_inverse=True)[1].astype(np.int16) for v in (tau, -theirs)]
        ours, published = (np.sign(d[:, None] - d) for d in dense)
        same += (int((ours == published).sum()) - len(tau)) // 2
        reversed_ += int((ours * published < 0).sum()) // 2
    assert same / pairs >= 0.999999  # 0.9999997: the published ones come from distances rounded to 15 digits
    assert reversed_ <= 1


def test_false_discovery_rate(found):
    """§5: both rules find the same neurons here; the published q passes 1 and is not in the order of p."""
    bh, published = rsa.fdr(found.p), rsa.fdr(found.p, "published")
    assert ((bh < 0.01) == (published < 0.01)).all()
    assert published.max() > 1 >= bh.max()
    order = np.argsort(found.p.values.ravel())
    assert (np.diff(bh.values.ravel()[order]) >= 0).all()
    assert (np.diff(published.values.ravel()[order]) < 0).any()
    # of all 516,096 tests 61,956 were significant, down to τ = .1086; the sample holds 2,048 of the 36,864 neurons
    share = float((found.tau >= 0.1086).mean())
    assert share == pytest.approx(61956 / 516096, abs=0.005)
    edge = found.p.values.ravel()[np.abs(found.tau.values.ravel() - 0.1086).argmin()]
    assert edge * 516096 / 61956 == pytest.approx(0.01, abs=5e-4)


def test_accuracies_with_masks(masked):
    _, drops = masked
    assert drops.attrs["left_out"] == {"selective": 0, "random": 2 * 27 * 12 * 14}
    means = drops.groupby("k")[["selective", "random"]].mean()
    np.testing.assert_allclose(means.selective, [0.7727, 0.7588, 0.7472, 0.7363, 0.6993, 0.6580, 0.6349], atol=5e-4)
    np.testing.assert_allclose(means.random, [0.7855, 0.7854, 0.7691, 0.7363, 0.7280, 0.6780, 0.6617], atol=5e-4)
    assert drops.unmasked.mean() == pytest.approx(0.8318, abs=5e-5)


def test_drops_follow_what_matters_to_people(masked, people, distances):
    """§6, the table: mean r over emotions (with the opposite sign there), t(26) and p at each k."""
    human = rsa.compare(people, distances, ties="exact").correlation
    by_k, each = rsa.human_link(masked[1], human, over="emotion")
    assert by_k.k.tolist() == [1500, 2000, 2500, 3000, 4000, 5000, 6000]
    assert (by_k.df == 26).all()
    np.testing.assert_allclose(by_k.r, [0.165, 0.341, 0.397, 0.326, 0.474, 0.199, 0.145], atol=5e-3)
    np.testing.assert_allclose(by_k.t, [5.81, 10.17, 16.55, 11.07, 16.92, 4.12, 3.38], atol=5e-3)
    np.testing.assert_allclose(by_k.p, [4e-6, 1.5e-10, 2.5e-15, 2.5e-11, 1.5e-15, 3.5e-4, 2.3e-3], rtol=0.03)
    assert len(each) == 7 * 27
    ours, _ = rsa.human_link(masked[1], human)
    np.testing.assert_allclose(ours.r, by_k.r)
    at = ours[ours.k == 4000].iloc[0]
    assert (at.n, at.n_attributes) == (27, 14)
    assert 0.04 < at.p < 0.12  # fourteen attributes, not twenty-seven emotions, are what there is many of
    drop = masked[1][masked[1].k == 4000].groupby("attribute")["drop"].mean()
    assert np.corrcoef(drop[human["attribute"].values], human)[0, 1] == pytest.approx(0.527, abs=5e-4)


def test_drops_by_attribute_and_emotion(masked):
    """§6 at k = 4000, tested as published: every row a unit, q = p · N / rank."""
    whole = ("emotion", "seed", "attribute")
    attributes = rsa.paired_tests(masked[1], ("k", "attribute"), units=whole, rule="published")
    at = attributes[attributes.k == 4000].set_index("attribute")
    assert (at.n == 324).all()
    expected = {
        "happy-face": 0.190, "valence": 0.123, "control": 0.118, "fairness": 0.090, "fear-face": 0.072, "novelty": 0.067,
        "expectedness": 0.026, "other-relativity": 0.002, "anger-face": -0.003, "sad-face": -0.006, "surprise-face": -0.030,
        "self-relativity": -0.036, "disgust-face": -0.060, "arousal": -0.151,
    }  # fmt: skip
    np.testing.assert_allclose(at.loc[list(expected)]["drop"], list(expected.values()), atol=6e-4)
    assert set(at.index[at.q < 0.05]) == set(list(expected)[:7])
    assert attributes.q.max() > 1
    emotions = rsa.paired_tests(masked[1], ("k", "emotion"), units=whole, rule="published")
    at = emotions[emotions.k == 4000].set_index("emotion")
    assert (at.n == 168).all()
    assert set(at.index[at.q >= 0.05]) == {
        "realization", "surprise", "relief", "desire", "grief", "nervousness", "embarrassment",
    }  # fmt: skip
    largest = at["drop"].sort_values(ascending=False).iloc[:5]
    assert largest.index.tolist() == ["remorse", "annoyance", "confusion", "disgust", "amusement"]
    np.testing.assert_allclose(largest, [0.081, 0.058, 0.050, 0.045, 0.038], atol=6e-4)


def test_one_random_mask_says_little(masked):
    """The published baseline is one mask per attribute and k, so its rank among draws has p = 1/2 at best."""
    got = rsa.draw_tests(masked[0][masked[0].k == 4000])
    assert (got.n_draws == 1).all()
    assert set(got.p) == {0.5, 1.0}


def test_masks_of_the_sample(sample, distances, found):
    """The best of the sample are those of the smallest published ranks; the tie rule decides inside ties only."""
    _, rank, _ = sample
    tau = found.tau.expand_dims(layer=[0]).rename(neuron="unit")
    masks = rsa.select_neurons(tau, [100, 500], draws=2, match="none")
    for n, attribute in enumerate(distances["attribute"].values):
        for k in (100, 500):
            chosen = masks.sel(attribute=attribute, k=k, kind="selective").masked.values.ravel()
            worst, best_left = rank[chosen, n].max(), rank[~chosen, n].min()
            assert worst <= best_left
