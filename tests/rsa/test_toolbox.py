import importlib.util
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from emotrace import rsa
from emotrace.labels import EmotraceError

INSTALLED = importlib.util.find_spec("rsatoolbox") is not None


@pytest.mark.skipif(INSTALLED, reason="rsatoolbox is installed")
def test_it_says_what_to_install(plant):
    with pytest.raises(EmotraceError, match=r"emotrace\[rsa\]"):
        rsa.to_rsatoolbox(rsa.rdm(plant()[0], over="seed"))


@pytest.mark.skipif(not INSTALLED, reason="rsatoolbox, the extra [rsa], is not installed")
@pytest.mark.filterwarnings("ignore")
def test_there_and_back(plant):
    with warnings.catch_warnings(action="ignore"):
        import rsatoolbox

    x, _ = plant()
    ours = rsa.rdm(x, "correlation", features="unit")
    theirs = rsa.to_rsatoolbox(ours)
    assert theirs.rdm_descriptors["seed"] == [1, 1, 3, 3, 5, 5]
    assert theirs.pattern_descriptors["concept"] == x.emotion.values.tolist()
    back = rsa.from_rsatoolbox(theirs)
    np.testing.assert_array_equal(back.values, ours.values.reshape(6, -1))
    assert rsa.concepts(back) == rsa.concepts(ours)
    data = rsatoolbox.data.Dataset(
        x.values[1, :, 0].astype(float), obs_descriptors={"concept": x.emotion.values.tolist()}
    )
    made = rsatoolbox.rdm.calc_rdm(data, method="correlation", descriptor="concept")
    made = rsa.matched(rsa.from_rsatoolbox(made), rsa.concepts(ours))  # it sorts the concepts
    np.testing.assert_allclose(made.values[0], ours.sel(seed=3, layer=0), atol=1e-12)
    for method in ("pearson", "spearman"):
        lower, upper = rsatoolbox.inference.boot_noise_ceiling(
            theirs, method={"pearson": "corr"}.get(method, method), rdm_descriptor="index"
        )
        got = rsa.noise_ceiling(back, "rdm", method)
        assert (got.lower.item(), got.upper.item()) == pytest.approx((lower, upper), abs=1e-9)
    tau = rsatoolbox.rdm.compare(theirs[0], theirs[1], "tau-b").item()
    assert rsa.compare(ours[0, 0], ours[0, 1]).correlation.item() == pytest.approx(tau, abs=1e-12)


def test_a_missing_descriptor():
    with pytest.raises(EmotraceError, match="unknown pattern descriptor 'concept'"):
        rsa.from_rsatoolbox(SimpleNamespace(pattern_descriptors={"index": [0, 1, 2]}))
