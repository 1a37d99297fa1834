"""rsatoolbox: RDMs there and back, for the models, crossvalidated distances and plots of that library (extra ``[rsa]``)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import xarray as xr

from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.matrices import concepts, labelled
from emotrace.signatures import typed

CONCEPT = "concept"


@typed
def to_rsatoolbox(rdms: xr.DataArray) -> Any:
    """``rsatoolbox.rdm.RDMs`` of labelled RDMs.

    Args:
        rdms: ``[…, pair]``; the labels of the other dims become descriptors of the RDMs, the concepts' names the pattern
            descriptor ``concept``.

    Raises:
        EmotraceError: where rsatoolbox is not installed.
    """
    try:
        module: Any = importlib.import_module("rsatoolbox.rdm")
    except ImportError as error:
        raise EmotraceError("rsatoolbox is not installed: pip install 'emotrace[rsa]'.") from error
    names = concepts(rdms)
    lead = [str(d) for d in rdms.dims if d != "pair"]
    rdms = rdms.transpose(*lead, "pair")
    labels = {d: (rdms[d].values if d in rdms.coords else np.arange(rdms.sizes[d])) for d in lead}
    grids = np.meshgrid(*labels.values(), indexing="ij") if lead else []
    return module.RDMs(
        np.asarray(rdms.values, dtype=np.float64).reshape(-1, rdms.sizes["pair"]),
        dissimilarity_measure=rdms.attrs.get("metric"),
        rdm_descriptors={d: g.ravel().tolist() for d, g in zip(lead, grids, strict=True)},
        pattern_descriptors={CONCEPT: names},
    )


@typed
def from_rsatoolbox(rdms: Any, concept: str = CONCEPT, dim: str = "rdm") -> xr.DataArray:
    """Labelled RDMs ``[rdm, pair]`` of an ``rsatoolbox.rdm.RDMs``.

    Args:
        rdms: the object.
        concept: its pattern descriptor with the names of the concepts.
        dim: name of the dim of the RDMs; its labels are the descriptor of that name, where there is one. Other descriptors stay
            beside it.

    Raises:
        EmotraceError: for a missing descriptor.
    """
    known = rdms.pattern_descriptors
    if concept not in known:
        raise unknown("pattern descriptor", concept, known, "these RDMs")
    values = np.asarray(rdms.dissimilarities, dtype=np.float64)
    out = labelled(values, [str(n) for n in known[concept]], [dim])
    for name, labels in rdms.rdm_descriptors.items():
        if len(labels) == len(values):
            out = out.assign_coords({name: (dim, np.asarray(labels))})
    return out.assign_attrs(metric=rdms.dissimilarity_measure or "")
