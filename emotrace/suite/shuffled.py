"""Shuffled: control vectors from shuffled labels, by the method and from the activations that made the true ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr

from emotrace import directions
from emotrace.directions.shift import OVER
from emotrace.extraction import of_site
from emotrace.labels import EmotraceError
from emotrace.replies.controls import shuffled_labels
from emotrace.signatures import typed
from emotrace.store import open_activations


@typed
def relabelled(folder: str | Path, seed: int = 0, accepted: Iterable[str] | None = None) -> xr.DataArray:
    """The vectors of a folder of `emotrace.extraction`, made again after their labels were shuffled.

    The two answers to a query keep together, so that only the query's emotion is another one.

    Args:
        folder: with ``activations.zarr`` and ``vectors``, as `answer_vectors` and `text_vectors` leave it.
        seed: of the shuffle.
        accepted: keys of the rows to make vectors of; None for all.

    Returns:
        ``[emotion, layer, dim]`` of the same emotions and layers; of their own length.

    Raises:
        EmotraceError: for a folder without activations or vectors, or whose vectors come from neither answers nor texts.
    """
    place = Path(folder)
    if not (place / "activations.zarr").is_dir() or not (place / "vectors" / "directions.json").is_file():
        raise EmotraceError(
            f"{folder} has no activations.zarr with vectors/ beside it, so nothing can be made again from shuffled labels; "
            "give the folder that `emotrace vectors` wrote."
        )
    true = directions.load(place / "vectors")
    about: dict[str, Any] = true.attrs
    variable, site, label = (str(about.get(name, "")) for name in ("variable", "site", "label"))
    chosen: dict[str, Any] = {"sublayer": [site]} if variable == "residual" else {}
    acts = open_activations(place / "activations.zarr").sel(variable, layer=true["layer"].values.tolist(), **chosen)
    if about.get("over") in OVER:
        shuffled = shuffled_labels(acts, label, "query_id", seed)
        found = directions.paired_shift(shuffled, over=about["over"], variable=variable, accepted=accepted)
    elif "against" in about:
        names = [str(e) for e in true[label].values]
        found = directions.vectors(
            shuffled_labels(acts, label, seed=seed), about["method"], against=about["against"], values=names,
            accepted=accepted, seed=seed, variable=variable,
        )  # fmt: skip
    else:
        raise EmotraceError(f"{folder}: its vectors come from neither answers nor texts.")
    return of_site(found, site).sel({label: true[label].values})
