"""Vectors from shuffled labels: the same formula over the same rows, and what a shuffle cannot change."""

import numpy as np
import pytest

import emotrace as et
from emotrace import extraction
from emotrace.labels import EmotraceError
from emotrace.suite import relabelled
from tests.helpers import loaded
from tests.test_extraction import QUERIES, TEXTS, TOKENS


def test_texts_under_shuffled_labels(tmp_path):
    true = extraction.text_vectors(loaded(), TEXTS, layers=[0, 2], out=tmp_path, progress=False).vectors
    found = relabelled(tmp_path, seed=3)
    acts = et.open_activations(tmp_path / "activations.zarr").sel(layer=[0, 2], sublayer="resid_post")
    labels = acts["emotion"].values
    _, first = np.unique(np.arange(len(labels)), return_index=True)
    mixed = labels[first][np.random.default_rng(3).permutation(len(labels))]
    for e in ("anger", "fear"):
        wanted = acts.values[:, mixed == e].astype(float).mean(1) - acts.values[:, mixed == "neutral"].astype(
            float
        ).mean(1)
        np.testing.assert_allclose(found.sel(emotion=e).values, wanted, atol=1e-5)
    assert found.dims == true.dims
    assert found["emotion"].values.tolist() == true["emotion"].values.tolist()
    assert np.abs(found.values - true.values).max() > 1e-3


def test_answers_stay_in_pairs_so_the_mean_over_queries_stays(tmp_path):
    true = extraction.answer_vectors(loaded(), QUERIES, decoding=TOKENS, out=tmp_path, progress=False)
    found = relabelled(tmp_path, seed=1)
    assert found["n"].values.tolist() == [3, 3]
    np.testing.assert_allclose(found.mean("emotion").values, true.mean("emotion").values, atol=1e-5)
    assert np.abs(found.values - true.values).max() > 1e-3


def test_a_folder_without_activations_is_refused(tmp_path):
    with pytest.raises(EmotraceError, match="has no activations"):
        relabelled(tmp_path)
