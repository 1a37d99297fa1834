"""Bake: additions written into a checkpoint's biases, so that it runs anywhere without emotrace.

A bias adds the same vector at every token, so only what does that can be baked: `Add` with ``scale="raw"`` and
``positions="all"``. With W the projection's matrix and c the residual scale, an addition δ becomes::

    z, neuron                      bias of o_proj, of down_proj    += W δ
    o_proj_out, attn_out, mlp_out  bias of that projection         += δ
    resid_mid, resid_post          bias of o_proj, of down_proj    += δ / c     (it then joins the residual stream)
"""

from __future__ import annotations

import copy
import itertools
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
import xarray as xr
from torch import nn

from emotrace import disk
from emotrace import edits as edits_
from emotrace.attribution.weights import output_projection
from emotrace.configs import text_config
from emotrace.datasets import Prompts, PromptsLike
from emotrace.edits import Add, Edit
from emotrace.forwards.capturing import capture
from emotrace.identity import versions
from emotrace.labels import PROJECTED, EmotraceError, value_dims
from emotrace.model import is_causal
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROJECTION: Final = {site: c for c in PROJECTED.values() for site in (c.site, c.projection, c.sublayer, c.residual)}
"""Site of an addition → the components whose projection has the bias that takes it."""
EXACT: Final = 1e-4
"""Largest deviation of the logits, relative to the largest; at most 1 % of what the edits change, beside rounding."""


@typed
def bake(model: LanguageModel, edits: Sequence[Edit], out: str | Path, *, probe: PromptsLike | None = None) -> Path:
    """A Hugging Face checkpoint that does of itself what additions do to a model, at every token.

    A circuit's edits are baked for one emotion at a time::

        edits = circuit.edits(neuron_positions="all", head_positions="all")
        bake(model, [replace(e, vector=e.vector.sel(emotion="anger")) for e in edits], "anger-model")

    Modules without bias (Llama's) get one by a setting of their configuration (``attention_bias``, ``mlp_bias``), where it has
    such a setting; other biases that come with it are zero. The checkpoint is loaded again by transformers alone, and
    its logits on the probe must be those of the edited model, else nothing is left behind.

    Args:
        model: from `emotrace.load`, with its weights here.
        edits: `Add` with ``scale="raw"``, ``positions="all"`` and no label dim left in the vector; heads, units and layers
            as anywhere.
        out: a folder that does not exist yet, or is empty.
        probe: prompts to compare on; None takes two fixed sequences of token ids.

    Returns:
        ``out``: safetensors, configuration, tokenizer, and in ``emotrace/`` the edits and what was compared.

    Raises:
        EmotraceError: for what a bias cannot do exactly (with the reason, and what would work), a model whose
            configuration gives the module no bias, an ``out`` in use, or logits that deviate.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EmotraceError(f"bake(out={str(out)!r}): this exists already; give a new folder.")
    root = model._module
    if any(p.is_meta for p in root.parameters()):
        raise EmotraceError("bake: the weights are not here; load the model with its weights.")
    if not edits:
        raise EmotraceError("bake: no edits; without them the checkpoint is the model itself.")
    edits_.check(edits, model.sites)
    biases: dict[str, torch.Tensor] = {}
    for number, edit in enumerate(edits):
        for path, delta in _biases(model, edit, f"edits[{number}]"):
            biases[path] = biases[path] + delta if path in biases else delta
    lacking = [path for path in biases if not isinstance(_bias(root, path), torch.Tensor)]
    config, settings = _config(root, lacking)
    probe = Prompts.of(_probe(model.sites.vocab_size) if probe is None else probe)
    out.parent.mkdir(parents=True, exist_ok=True)
    disk.clear_leftovers(out.parent, out.name)
    partial = disk.partial(out)
    partial.mkdir()
    try:
        _save(model, config, biases, partial)
        error, changed = _compare(model, edits, probe, partial)
        edits_.save_edits(edits, partial / "emotrace")
        disk.write_json(
            partial / "emotrace" / "bake.json",
            {
                "from": {k: v for k, v in model.sites.identity.items() if k not in ("device", "threads")},
                "edits": edits_.edits_digest(edits), "biases": sorted(biases), "settings": list(settings),
                "probe_tokens": [list(ids) for ids in model.sites.encoder.ids(probe)],
                "largest_deviation_of_logits": error, "largest_change_of_logits": changed, "versions": versions(),
            },
        )  # fmt: skip
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _biases(model: LanguageModel, edit: Edit, place: str) -> list[tuple[str, torch.Tensor]]:
    """(module path, float64 ``[d_model]`` that its bias takes) for every layer of an edit."""
    if not isinstance(edit, Add):
        raise EmotraceError(
            f"{place}: a bias adds a constant, so {type(edit).__name__} cannot be baked; only Add can. Keep it as an edit."
        )
    if edit.site not in PROJECTION:
        raise EmotraceError(
            f"{place}: an addition at {getattr(edit.site, 'name', edit.site)!r} is no bias of a projection; choose among "
            f"{', '.join(PROJECTION)}."
        )
    if edit.positions != "all":
        raise EmotraceError(
            f"{place}: positions={edit.positions!r}, but a bias acts on every token, prompt and reply alike. Say "
            "positions='all' (and check that it does what you want), or keep it as an edit."
        )
    if edit.scale != "raw":
        what = "depends on the state it is added to" if edit.scale == "rms" else "is not what a bias holds"
        raise EmotraceError(
            f"{place}: scale={edit.scale!r} {what}. Use scale='raw' with a vector of the length that is meant"
            + (", e.g. strength × the mean RMS (emotrace.directions.mean_rms)." if edit.scale == "rms" else ".")
        )
    left = _label_dims(edit.vector)
    if left and isinstance(edit.vector, xr.DataArray):
        name = left[0]
        raise EmotraceError(
            f"{place}: a checkpoint holds one vector, but the payload has one per {name}; select one: "
            f"vector.sel({name}={edit.vector[name].values.tolist()[0]!r})."
            if name in edit.vector.coords
            else f"{place}: a checkpoint holds one vector, but the payload has the dim {name!r} too."
        )
    return [_bias_at(model, edit, layer, f"{place}, layer {layer}") for layer in edit.layers or ()]


def _bias_at(model: LanguageModel, edit: Add, layer: int, place: str) -> tuple[str, torch.Tensor]:
    sites, site, written = model.sites, str(edit.site), PROJECTION[str(edit.site)]
    before = written.site
    try:
        path, map_ = sites.address(before, layer).path, output_projection(model, before, layer)
    except EmotraceError as error:
        raise EmotraceError(f"{place}: {site!r} is baked into the projection after {before!r}: {error}") from error
    lowered = edits_.lower([replace(edit, layers=[layer])], sites, [{}], [1], [1], 1, False)
    (op,) = lowered.groups[0].operations
    delta = torch.zeros(op.width, dtype=torch.float64)
    delta[slice(None) if op.columns is None else op.columns] = float(op.strength) * op.payload.double()
    if site == before:
        return path, delta @ map_.matrix.double().cpu()
    if site == "o_proj_out":
        return path, delta
    proof = sites.proofs.get(layer)
    if site.startswith("resid") and (proof is None or proof.form == "post-ln"):
        raise EmotraceError(
            f"{place}: a norm lies between the projection and {site!r} (post-LN). Use {written.sublayer!r}."
        )
    if map_.norm is not None:
        raise EmotraceError(
            f"{place}: {sites.model_class} normalises the projection's output before {site!r}, so no bias adds a constant "
            f"there. Before that norm lies {before!r}{' (and o_proj_out)' if before == 'z' else ''}: add there instead."
        )
    return path, delta / map_.scale if site.startswith("resid") else delta


def _label_dims(vector: object) -> list[str]:
    """Dims of a payload that are neither place nor feature."""
    if not isinstance(vector, xr.DataArray):
        return []
    rest = [str(d) for d in vector.dims if d not in ("layer", "sublayer")]
    return [d for d in rest if d not in value_dims(rest)]


def _bias(root: nn.Module, path: str) -> object:
    return getattr(root.get_submodule(path), "bias", None)


def _config(root: PreTrainedModel, lacking: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    """A configuration under which the modules have biases and all else is as before, and the settings changed.

    No family is known by name: every boolean setting with ``bias`` in its name that is off is tried, and what it does is
    read off a model built without weights.
    """
    if not lacking:
        return copy.deepcopy(root.config), ()
    before = {name: t.shape for name, t in root.state_dict().items()}
    wanted = {f"{path}.bias" for path in lacking}
    names = sorted(k for k, v in text_config(root.config).to_dict().items() if v is False and "bias" in k)
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            config = copy.deepcopy(root.config)
            for name in chosen:
                setattr(text_config(config), name, True)
            after = {name: t.shape for name, t in _hollow(root, config).state_dict().items()}
            new = set(after) - set(before)
            same = all(after.get(name) == shape for name, shape in before.items())
            if same and wanted <= new and all(name.endswith(".bias") for name in new):
                return config, chosen
    tried = f"its settings {', '.join(names)} do not" if names else "it has no such setting"
    raise EmotraceError(
        f"bake: {lacking[0]} has no bias, and {type(root.config).__name__} cannot give it one ({tried}), so a checkpoint that "
        "transformers loads cannot hold this. Use a site whose projection has a bias, or keep the edits and generate with them."
    )


def _hollow(root: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """A model of the same class without weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(root)(config)


def _save(model: LanguageModel, config: PretrainedConfig, biases: dict[str, torch.Tensor], folder: Path) -> None:
    root = model._module
    state = dict(root.state_dict())
    baked = _hollow(root, config)
    for name, hollow in baked.state_dict().items():
        if name not in state:
            like = root.get_submodule(name.rpartition(".")[0]).weight
            state[name] = torch.zeros(hollow.shape, dtype=like.dtype, device=like.device)
    for path, delta in biases.items():
        old = state[f"{path}.bias"]
        state[f"{path}.bias"] = (old.double() + delta.to(old.device)).to(old.dtype)
    baked.load_state_dict(state, strict=True, assign=True)
    baked.tie_weights()
    with suppress(AttributeError):  # a masked model has none
        baked.generation_config = copy.deepcopy(root.generation_config)
    try:
        baked.save_pretrained(folder)
        tokenizer = model.sites.encoder.tokenizer
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise EmotraceError(f"bake: the checkpoint cannot be written to {folder.parent}: {error}.") from error


def _compare(model: LanguageModel, edits: Sequence[Edit], probe: Prompts, folder: Path) -> tuple[float, float]:
    """(largest deviation of the baked logits from the edited ones, largest change by the edits).

    Raises:
        EmotraceError: if transformers cannot load the checkpoint as it is, or the deviation is more than rounding.
    """
    root = model._module
    auto: Any = transformers.AutoModelForCausalLM if is_causal(root) else transformers.AutoModelForMaskedLM
    try:
        baked, info = auto.from_pretrained(
            folder, dtype=root.dtype, attn_implementation=root.config._attn_implementation, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise EmotraceError(f"bake: transformers does not load what was written ({error}).") from error
    wrong = [f"{k}: {sorted(map(str, v))[0]}" for k, v in info.items() if k != "error_msgs" and v]
    if wrong or type(baked) is not type(root):
        raise EmotraceError(
            f"bake: transformers loads {type(baked).__name__} with {'; '.join(wrong) or 'another class'}."
        )
    device = next(root.parameters()).device
    baked = baked.to(device).eval()
    found: list[torch.Tensor] = []
    head = baked.get_submodule(model.sites.address("logits").path)  # before what some families do to logits later on
    head.register_forward_hook(lambda _module, _args, out: found.append(out[0].double().cpu()))
    with torch.no_grad():
        for ids in model.sites.encoder.ids(probe):
            baked(input_ids=torch.tensor([ids], device=device))
    got = torch.cat(found)
    plain, want = (
        torch.tensor(
            capture(model, probe, ["logits"], positions="all", edits=e, progress=False).sel("logits").values
        ).double()
        for e in (None, list(edits))
    )
    error, changed = float((got - want).abs().max()), float((want - plain).abs().max())
    largest = float(want.abs().max())
    rounding = 8 * torch.finfo(root.dtype).eps * largest
    if not error <= min(EXACT * largest, 0.01 * changed) + rounding:
        raise EmotraceError(
            f"bake: the checkpoint's logits deviate by {error:.1e} from the edited model's (the edits change them by up to "
            f"{changed:.1e}, the largest is {largest:.1e}): it is not written. In low precision, load the model in float32."
        )
    return error, changed


def _probe(vocab: int) -> list[list[int]]:
    """Two sequences of ids spread over the vocabulary."""
    return [[(7919 * i + 11) % vocab for i in range(n)] for n in (12, 7)]
