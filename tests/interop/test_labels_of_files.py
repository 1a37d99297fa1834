"""Labels come from files of others: what a writer makes of them lies in the folder that it was given."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emotrace import interop
from emotrace.labels import EmotraceError

BAD = ("../../x", "/tmp/x", "a/b", "", "CON")


def array(labels, *dims):
    sizes = {"emotion": len(labels), "layer": 2, "unit": 4, "dim": 4, "head": 2, "head_dim": 2}
    coords = {"emotion": list(labels), "layer": [0, 1]}
    return xr.DataArray(np.ones([sizes[d] for d in dims], "float32"), dims=dims, coords=coords)


def circuit(labels, folder):
    table = pd.DataFrame(
        {"emotion": list(labels), "kind": "neuron", "layer": 0, "index": range(len(labels)), "rank": 0}
    )
    return interop.write_circuit(table, folder, n_layers=2)


WRITERS = {
    "circuit": circuit,
    "differences": lambda labels, folder: interop.write_differences(
        xr.Dataset({"neuron": array(labels, "emotion", "layer", "unit")}), folder
    ),
    "vectors": lambda labels, folder: interop.write_emotion_vectors(
        array(labels, "emotion", "layer", "dim"), folder, "p"
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_label_is_a_name_or_refused_before_anything_is_written(writer, tmp_path):
    folder = tmp_path / "deep" / "out"
    for label in BAD:
        with pytest.raises(EmotraceError, match="cannot be the name of a file"):
            WRITERS[writer](["joy", label], folder)
    with pytest.raises(EmotraceError, match="would be one file"):
        WRITERS[writer](["Joy", "joy"], folder)
    assert list(tmp_path.rglob("*")) == []
    WRITERS[writer](["Wut", "喜び"], folder)
    assert sum("喜び" in p.name for p in folder.rglob("*")) == 1


def test_a_prefix_is_a_name_too(tmp_path):
    with pytest.raises(EmotraceError, match=r"prefix=….*cannot be the name"):
        interop.write_emotion_vectors(array(["joy"], "emotion", "layer", "dim"), tmp_path, "../p")
