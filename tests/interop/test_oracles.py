"""The published artefacts through our readers (specification §9). Rows 1, 4, 5 and 7 are tested on the raw files elsewhere."""

import json

import numpy as np
import pytest

from emotrace import directions, interop, replies
from emotrace.labels import EMOTIONS

E = "emotion_circuits"
ROUNDING = 2.0**-22
"""Of sums in float32."""


@pytest.fixture(scope="module")
def vectors(oracles):
    return interop.read_differences(oracles.path(f"{E}/attention_difference_vectors.npy"), n_heads=24, n_layers=28)["z"]


@pytest.fixture(scope="module")
def heads(oracles):
    return interop.read_heads([oracles.path(f"{E}/head_importance_{e}.csv") for e in EMOTIONS])


@pytest.fixture(scope="module")
def published(oracles):
    return interop.read_directions([oracles.path(f"{E}/directions_{p}.npy") for p in ("attention", "mlp")])


@pytest.fixture(scope="module")
def rows(oracles):
    return interop.read_replies(oracles.path(f"{E}/labeled_sev"))


def test_labelled_replies_give_the_published_table(oracles, rows):
    """Row 1: a judge that failed is unjudged here and rejected there."""
    theirs = oracles.json(f"{E}/labeled_sev/accuracy_stats.json")
    ours = replies.accuracy_table(rows, "verdict_target", n=10)
    assert ours["overall"]["n_unjudged"] == 2
    for part, key in (("by_emotion", "total"), ("by_valence", "total")):
        for name, leaf in ours[part].items():
            assert theirs[part][name][key] == leaf["n"] + leaf["n_unjudged"]
            assert round(100 * leaf["worst_case"], 2) == theirs[part][name]["accuracy"]
    assert [r["key"] for r in rows[:3]] == [f"work_00__positive__{e}" for e in EMOTIONS[:3]]
    assert rows[0]["meta"]["prompt_length"] == 82


def test_accepted_replies_give_the_complete_groups_and_denominators(oracles, rows):
    """Row 4: 448 complete groups, and sigmas that are means of 2688 fp16 figures."""
    keys = set(directions.accepted(rows, "verdict_target"))
    names, incomplete = directions.complete_groups([r for r in rows if r["key"] in keys])
    assert (len(names), len(names) + len(incomplete)) == (448, 480)
    sigma = interop.read_sigma(oracles.path(f"{E}/sigma_summary.json"))
    assert sigma.shape == (28, 2)
    off = {n: np.abs(s - np.round(s)).max() for n in (448 * 6, len(keys), 2880) for s in [sigma.values * n * 2**17]}
    assert off[2688] < 1e-6
    assert min(off[2847], off[2880]) > 0.1


def test_the_final_norm_shows_in_the_last_sigma(oracles):
    sigma = interop.read_sigma(oracles.path(f"{E}/sigma_summary.json"))
    (leak,) = sigma.attrs["after_final_norm"]
    assert leak == {"layer": 27, "sublayer": "resid_post"}
    steps = sigma.sel(sublayer="resid_post").values
    assert steps[27] / steps[26] > 2 > (steps[12:27] / steps[11:26]).max()


def test_relative_norms_of_the_directions(published):
    """Row 5: one positive linear relation per place, found again."""
    assert published.shape == (6, 28, 2, 3072)
    n = published["relative_norm"].values[..., None]
    assert n.min() > 0
    assert np.abs((published.values * n).sum(0)).max() < 1e-6
    assert published.attrs["after_final_norm"] == [{"layer": 27, "sublayer": "resid_post"}]


def test_the_published_matrix_through_both_readers(oracles, published):
    """Row 7: it came from a slightly different run."""
    theirs = interop.read_similarity(oracles.path(f"{E}/similarity_matrix_anger.npy"))
    ours = directions.sublayer_similarity(published.sel(emotion=["anger"]))
    assert theirs["place"].values.tolist() == ours["place"].values.tolist()
    gap = np.abs(theirs.values - ours.values)
    assert gap.max() < 0.04
    assert gap.mean() < 0.004


def test_norms_of_the_difference_vectors_are_those_of_their_summary(oracles, vectors):
    """Row 8: norm, mean and standard deviation in float32, to its rounding: the last bit of a sum is the processor's."""
    summary = oracles.json(f"{E}/attention_difference_summary.json")
    assert vectors.sizes == {"emotion": 6, "layer": 28, "head": 24, "head_dim": 128}
    for e in EMOTIONS:
        for layer in range(28):
            told = summary[e]["layers"][str(layer)]
            vector = vectors.sel(emotion=e, layer=layer).values.ravel()
            assert told["count"] == 448
            assert told["norm"] == pytest.approx(float(np.linalg.norm(vector)), rel=ROUNDING)
            assert told["mean"] == pytest.approx(float(vector.mean()), rel=ROUNDING)
            assert told["std"] == pytest.approx(float(vector.std()), rel=ROUNDING)


def test_difference_vectors_are_centred(vectors):
    """Row 9, attention: the emotions of a layer sum to zero, to 2e-6 of the layer's longest vector (2.01e-6 in layer 0)."""
    x = vectors.values.astype(np.float64).reshape(6, 28, -1)
    rest = np.linalg.norm(x.sum(0), axis=-1) / np.linalg.norm(x, axis=-1).max(0)
    assert rest.max() == pytest.approx(2e-6, rel=0.02)


def test_a_written_summary_is_the_published_one(oracles, vectors, tmp_path):
    data = vectors.isel(layer=slice(0, 2)).assign_attrs(n_groups=448).to_dataset(name="z")
    (folder,) = interop.write_differences(data, tmp_path)
    ours, theirs = (
        json.loads((folder / "summary.json").read_text()),
        oracles.json(f"{E}/attention_difference_summary.json"),
    )
    for e in EMOTIONS:
        assert list(ours[e]["layers"]) == ["0", "1"]
        for i, layer in ours[e]["layers"].items():
            assert layer == pytest.approx(theirs[e]["layers"][i], rel=ROUNDING)


def test_published_heads(heads, rows):
    """Row 11: whole tables, samples = accepted replies, the ranking of the published circuits."""
    assert dict(heads.sizes) == {"emotion": 6, "layer": 28, "head": 24}
    counts = {e: sum(r["emotion"] == e and r["verdict_target"]["match"] == 1 for r in rows) for e in EMOTIONS}
    assert dict(zip(EMOTIONS, heads["n"].values.tolist(), strict=True)) == counts
    order = np.argsort(-heads["mean"].values, axis=-1)
    anger = {0: [12, 21], 4: [23, 1], 9: [23, 22], 13: [19, 11, 21, 12, 7], 16: [9, 16, 5, 18, 1, 8, 19]}
    for layer, chosen in anger.items():
        assert order[0, layer, : len(chosen)].tolist() == chosen
    best = {
        "anger": (13, 19, 2.379), "sadness": (14, 20, 1.097), "happiness": (13, 19, 1.149), "fear": (13, 19, 2.024),
        "surprise": (13, 11, 1.472), "disgust": (13, 19, 1.466),
    }  # fmt: skip
    for e, (layer, head, score) in best.items():
        mean = heads["mean"].sel(emotion=e)
        assert mean.argmax(("layer", "head"))["layer"].item() == layer
        assert mean.max().item() == pytest.approx(score, abs=6e-4)
        assert mean.sel(layer=layer, head=head) == mean.max()


def test_published_heads_written_and_read_again(heads, tmp_path):
    interop.write_heads(heads, tmp_path)
    back = interop.read_heads(tmp_path)
    for name in ("mean", "std", "baseline", "n"):
        np.testing.assert_array_equal(back[name].values, heads[name].values)
