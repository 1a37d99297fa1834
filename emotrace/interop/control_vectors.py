"""Control vectors: of llama.cpp and repeng (GGUF), of steering-vectors and CAA (``.pt``), in and out.

All of them are added to the residual stream at the end of a block, at every token. They number blocks from 0, as here; where a
file counts states instead (0 is the embedding, as in ``hidden_states``), say ``offset=1``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import xarray as xr
from gguf import GGMLQuantizationType, GGUFWriter

from emotrace import gguf_files
from emotrace.edits import Add, Edit
from emotrace.edits.files import array_of
from emotrace.interop.files import load_numbers, save_numbers, write
from emotrace.interop.vectors import checked
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

SITE: Final = "resid_post"
LAYER_TYPES: Final = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
"""Places of the library steering-vectors → our sites."""
_FLOATS: Final = {GGMLQuantizationType.F32: np.dtype("<f4"), GGMLQuantizationType.F16: np.dtype("<f2")}
"""Types of tensors that are read; others are quantised, and of no use as vectors."""
_DIRECTION: Final = re.compile(r"direction\.(\d+)")
_CAA: Final = re.compile(r"layer_(\d+)(?!\d)")
Files = Mapping[str, str | Path | Sequence[str | Path]]


@typed
def read_control_vectors(
    files: Mapping[str, str | Path], *, offset: int = 0, model: LanguageModel | None = None
) -> xr.DataArray:
    """GGUF control vectors, one file per emotion: tensors ``direction.{block}``.

    Args:
        files: emotion → file.
        offset: what the file's first block is numbered; llama.cpp and repeng number from 0 (and leave block 0 out).
        model: a model of `emotrace.load` whose layers and width must fit.

    Returns:
        ``vector[emotion, layer, dim]`` float32 at ``resid_post``.

    Raises:
        EmotraceError: for a file that holds no control vector, files that disagree, layers that cannot be (with the
            offset that would fit), or a model that they do not fit.
    """
    found = {}
    for name, file in files.items():
        kind, tensors = _read(Path(file))
        layers = {int(m[1]): tensor for key, tensor in tensors.items() if (m := _DIRECTION.fullmatch(key))}
        if kind != "controlvector" or not layers:
            raise EmotraceError(f"{file}: architecture {kind!r}, {len(layers)} directions; that is no control vector.")
        found[name] = layers
    return _stacked(found, SITE, offset, model, "GGUF control vector")


@typed
def write_control_vector(edit: Edit, path: str | Path, *, model_hint: str, layers: int | None = None) -> Path:
    """An addition as a GGUF control vector, which ``llama-cli --control-vector`` adds with factor 1, exactly.

    Args:
        edit: an `Add` at ``resid_post`` of layers from 1 on, ``raw``, at all positions; its strength is multiplied in.
        path: ends in ``.gguf``.
        model_hint: llama.cpp's name of the architecture, e.g. ``llama`` or ``qwen2``.
        layers: blocks of the model, for ``controlvector.layer_count``; None for the last layer + 1.

    Raises:
        EmotraceError: naming what llama.cpp cannot do: layer 0, other sites, other positions (it adds at every token), a strength
            relative to the state, or a vector for each emotion.
    """
    where = f"write_control_vector({Path(path).name})"
    if not isinstance(edit, Add) or edit.site != SITE:
        what = type(edit).__name__ if not isinstance(edit, Add) else f"Add at {edit.site!r}"
        raise EmotraceError(f"{where}: {what}; llama.cpp adds a vector to {SITE!r}, and nothing else.")
    if edit.positions != "all":
        raise EmotraceError(
            f"{where}: positions={edit.positions!r}, but llama.cpp adds at every token, of prompt and reply alike. Say "
            "positions='all' if that is what you want."
        )
    if edit.scale != "raw":
        raise EmotraceError(f"{where}: scale={edit.scale!r}; a control vector is added as it is. Use scale='raw'.")
    chosen = [int(layer) for layer in edit.layers or ()]
    if 0 in chosen:
        raise EmotraceError(f"{where}: layer 0, which llama.cpp leaves out. Give layers from 1 on.")
    tensors = {f"direction.{layer}": _payload(edit, layer, where) for layer in chosen}
    last = max(chosen) + 1
    if layers is not None and layers < last:
        raise EmotraceError(f"{where}: layer {last - 1} of {layers} layers.")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "vector.gguf"
        writer = GGUFWriter(made, "controlvector")
        writer.add_string("controlvector.model_hint", model_hint)
        writer.add_uint32("controlvector.layer_count", layers or last)
        for name, vector in tensors.items():
            writer.add_tensor(name, vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write(path, made.read_bytes())
    return Path(path)


@typed
def read_steering(
    files: Files, *, offset: int, site: str | None = None, model: LanguageModel | None = None
) -> xr.DataArray:
    """Vectors in ``.pt`` files, read without pickle: of CAA, of steering-vectors, or any dict layer → vector.

    Args:
        files: emotion → a file with a dict layer → tensor (also under ``layer_activations``, with ``layer_type`` beside it), or
            several files of one tensor each whose names say ``layer_{n}`` (CAA: ``vec_layer_13_….pt``).
        offset: what a file's first block is numbered: 0 for CAA and steering-vectors, 1 where it counts states with the
            embedding as 0. There is no default, because the file does not say.
        site: where they belong; None takes the file's ``layer_type``, else ``resid_post``.
        model: a model of `emotrace.load` whose layers and width must fit.

    Raises:
        EmotraceError: as `read_control_vectors`, and for a pickled object (which is never loaded).
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    said: set[str] = set()
    for name, given in files.items():
        many = [given] if isinstance(given, (str, Path)) else list(given)
        layers = found.setdefault(name, {})
        for file in many:
            value = load_numbers(file)
            kind = value.get("layer_type") if isinstance(value, dict) else None
            said |= {str(kind)} if kind is not None else set()
            for layer, vector in _held(value, Path(file)).items():
                if layer in layers:
                    raise EmotraceError(f"{file}: a second vector of {name!r} for layer {layer}.")
                layers[layer] = vector
    for kind in said:
        if kind not in LAYER_TYPES:
            raise unknown("layer_type", kind, LAYER_TYPES, "read_steering")
    sites = {LAYER_TYPES[kind] for kind in said} or {SITE}
    if site is None and len(sites) > 1:
        raise EmotraceError(
            f"read_steering: the files belong to {' and '.join(sorted(sites))}; give those of one place."
        )
    return _stacked(found, site or sites.pop(), offset, model, "steering vectors")


@typed
def write_steering(vectors: xr.DataArray, path: str | Path, *, offset: int = 0) -> Path:
    """One emotion's vectors ``[layer, dim]`` as a dict ``{layer + offset: tensor}`` in a ``.pt`` that needs no pickle to read.

    Args:
        vectors: ``[layer, dim]``, perhaps with one emotion.
        path: of the file.
        offset: added to each layer's number.

    Raises:
        EmotraceError: for vectors of several emotions.
    """
    one = vectors.squeeze("emotion", drop=True) if vectors.sizes.get("emotion") == 1 else vectors
    if set(one.dims) != {"layer", "dim"}:
        raise EmotraceError(f"write_steering: dims {tuple(map(str, vectors.dims))}; a file holds one emotion's.")
    held = one.transpose("layer", "dim")
    rows = zip(held["layer"].values.tolist(), held.values.astype(np.float32), strict=True)
    save_numbers({int(layer) + offset: torch.from_numpy(row.copy()) for layer, row in rows}, path)
    return Path(path)


def _read(file: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The architecture and the tensors of a GGUF file."""
    header = gguf_files.header(file)
    for tensor in header.tensors:
        if tensor.kind not in _FLOATS:
            raise EmotraceError(
                f"{file}: tensor {tensor.name!r} is of type {tensor.kind.name}; only float32 and float16 are read."
            )
    return header.architecture, {
        t.name: np.frombuffer(header.bytes_of(t), _FLOATS[t.kind]).reshape(t.shape) for t in header.tensors
    }


def _held(value: object, file: Path) -> dict[int, np.ndarray]:
    if isinstance(value, torch.Tensor):
        said = _CAA.findall(file.stem)
        if len(said) != 1:
            raise EmotraceError(f"{file} holds one tensor, and its name does not say of which layer (layer_13).")
        return _held({int(said[0]): value}, file)
    if not isinstance(value, Mapping):
        raise EmotraceError(f"{file} holds a {type(value).__name__}, not layer → vector.")
    held: Mapping[object, object] = value
    inner = held.get("layer_activations", held)
    out = {}
    for layer, vector in inner.items() if isinstance(inner, Mapping) else ():
        if not str(layer).isdigit() or not isinstance(vector, (torch.Tensor, np.ndarray)):
            raise EmotraceError(f"{file}: {layer!r} is no layer with a vector.")
        array = vector.float().numpy() if isinstance(vector, torch.Tensor) else vector
        out[int(layer)] = np.squeeze(array)
    if not out:
        raise EmotraceError(f"{file} holds no vector.")
    return out


def _stacked(
    found: Mapping[str, dict[int, np.ndarray]], site: str, offset: int, model: LanguageModel | None, origin: str
) -> xr.DataArray:
    """``[emotion, layer, dim]`` with blocks numbered from 0, checked against each other and the model."""
    if not found:
        raise EmotraceError(f"{origin}: no file is given.")
    layers = sorted(next(iter(found.values())))
    for name, mine in found.items():
        if sorted(mine) != layers:
            raise EmotraceError(f"{origin} of {name!r}: layers {sorted(mine)}, of the first {layers}.")
        if len({v.shape for v in mine.values()}) > 1 or any(v.ndim != 1 for v in mine.values()):
            raise EmotraceError(f"{origin} of {name!r}: vectors of shapes {sorted({v.shape for v in mine.values()})}.")
    blocks = [layer - offset for layer in layers]
    if blocks[0] < 0:
        raise EmotraceError(f"{origin}: the file has a layer {layers[0]}, so it does not number blocks from {offset}.")
    if model is not None:
        n = len(model.sites.layers(site)) if model.sites.has(site) else 0
        if n and blocks[-1] >= n:
            hint = f" It counts states with the embedding as 0: offset={offset + 1}?" if blocks[-1] == n else ""
            raise EmotraceError(
                f"{origin}: layer {layers[-1]} with offset={offset}; the model's are 0 to {n - 1}.{hint}"
            )
    values = np.stack([[mine[layer] for layer in layers] for mine in found.values()]).astype(np.float32)
    return checked(values, list(found), blocks, site, model, origin, origin, whole=False)


def _payload(edit: Add, layer: int, where: str) -> np.ndarray:
    """Strength × vector of one layer, float32."""
    vector = edit.vector
    if isinstance(vector, xr.DataArray):
        for dim, wanted in (("layer", layer), ("sublayer", SITE)):
            vector = vector.sel({dim: wanted}) if dim in vector.dims else vector
        if vector.ndim != 1:
            raise EmotraceError(
                f"{where}: the payload has the dims {tuple(map(str, vector.dims))}; select one vector a layer."
            )
        vector = vector.values
    return (np.float64(edit.strength) * array_of(vector).astype(np.float64)).astype(np.float32)
