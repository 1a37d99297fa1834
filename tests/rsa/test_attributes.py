import numpy as np
import pytest
import xarray as xr

from emotrace import rsa
from emotrace.labels import EmotraceError


@pytest.fixture
def scores():
    values = np.random.default_rng(0).integers(10, 90, (27, 14)) / 10
    return xr.DataArray(
        values,
        dims=("emotion", "attribute"),
        coords={"emotion": list(rsa.EMOTIONS_27), "attribute": list(rsa.ATTRIBUTES)},
    )


def test_vocabulary():
    assert len(set(rsa.EMOTIONS_27)) == 27
    assert [len(s) for s in rsa.SPACES.values()] == [2, 6, 6]
    assert len(set(rsa.ATTRIBUTES)) == 14
    assert set(rsa.OLD_NAMES.values()) < set(rsa.ATTRIBUTES)


def test_fourteen_properties(scores):
    mixed = scores.isel(attribute=np.random.default_rng(1).permutation(14)).assign_coords(note=1)
    got = rsa.reference_rdms(mixed)
    assert got["attribute"].values.tolist() == list(rsa.ATTRIBUTES)
    v = scores.sel(attribute="control").values
    assert got.sel(attribute="control").values[30] == pytest.approx(abs(v[1] - v[6]), abs=1e-9)  # pair (1, 6)
    old = {new: name for name, new in rsa.OLD_NAMES.items()}
    renamed = mixed.assign_coords(attribute=[old.get(a, a) for a in mixed["attribute"].values])
    xr.testing.assert_identical(rsa.reference_rdms(renamed), got)


def test_equal_differences_are_ties_after_rounding(scores):
    """2.3 − 2.1 and 0.3 − 0.1 differ in the last bit."""
    got = rsa.attribute_rdms(scores, ["valence"])
    raw = rsa.attribute_rdms(scores, ["valence"], decimals=None)
    exact = len(
        {
            abs(a - b)
            for a in np.rint(scores.sel(attribute="valence").values * 10)
            for b in np.rint(scores.sel(attribute="valence").values * 10)
        }
        - {0.0}
    )
    assert len(np.unique(got.values[got.values > 0])) == exact < len(np.unique(raw.values[raw.values > 0]))
    np.testing.assert_allclose(got.values, raw.values, atol=1e-9)


def test_three_spaces(scores):
    got = rsa.reference_rdms(scores, "3Spaces")
    assert got["space"].values.tolist() == ["Affective", "Basic Emotions", "Appraisal", "Combined"]
    v = scores.values
    v = (v - v.min(0)) / (v.max(0) - v.min(0))
    affective = np.hypot(*(v[0, :2] - v[1, :2]))
    assert got.sel(space="Affective").values[0] == pytest.approx(affective, abs=1e-9)
    assert got.sel(space="Combined").values[0] == pytest.approx(np.linalg.norm(v[0] - v[1]), abs=1e-9)
    own = rsa.space_rdms(scores, {"mine": ["novelty", "control"]}, combined=False)
    assert own["space"].values.tolist() == ["mine"]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x: rsa.reference_rdms(x, "14properties"), "Did you mean '14Properties'"),
        (lambda x: rsa.reference_rdms(x.isel(attribute=slice(13))), "unknown attribute 'novelty'"),
        (
            lambda x: rsa.reference_rdms(
                x.assign_coords(attribute=[a.replace("valence", "valance") for a in x.attribute.values])
            ),
            "unknown attribute 'valence'.*Did you mean 'valance'",
        ),
        (lambda x: rsa.attribute_rdms(x, ["self"]), "unknown attribute"),
        (
            lambda x: rsa.attribute_rdms(x.where((x.emotion != "joy") | (x.attribute != "control"))),
            "'joy' for 'control'",
        ),
        (lambda x: rsa.attribute_rdms(x.expand_dims(subject=2)), "average raters first"),
        (lambda x: rsa.attribute_rdms(x * (x.attribute != "control")), "'control' does not tell"),
        (lambda x: rsa.attribute_rdms(x.isel(attribute=[0, 0])), "twice"),
        (lambda x: rsa.space_rdms(x, {}), "at least one space"),
        (lambda x: rsa.space_rdms(x, {"a": []}), "none of them empty"),
    ],
)
def test_bad_input(scores, call, word):
    with pytest.raises(EmotraceError, match=word):
        call(scores)
