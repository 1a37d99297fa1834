"""Made-up contributions, circuits, curves and patterns of a model of any depth."""

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.attribution import top
from emotrace.circuits.circuit import Circuit
from emotrace.labels import EMOTIONS

CURVES = ("neurons ablated", "heads ablated", "neurons added", "heads added")


def contributions(layers, size, feature, rng, n=478):
    """Grows with depth, a few large ones among many small ones; a third of them shared between emotions."""
    depth = np.exp(-0.5 * ((np.arange(layers) - 0.7 * layers) / (0.22 * layers)) ** 2)[None, :, None]
    own = rng.standard_t(2.5, size=(6, layers, size))
    shared = rng.standard_t(2.5, size=(1, layers, size))
    mean = depth * (own + 0.8 * np.abs(shared)) * 0.1
    dims = ("emotion", "layer", feature)
    values = {"mean": (dims, mean), "contrast": (dims, mean * 0.9 + rng.normal(size=mean.shape) * 0.002)}
    if feature == "unit":
        values |= {"positive": (dims, mean.clip(0)), "negative": (dims, mean.clip(None, 0))}
    return xr.Dataset(
        values | {"n": ("emotion", np.full(6, n) - np.arange(6))},
        {"emotion": list(EMOTIONS), "layer": range(layers), feature: range(size)},
    )


def circuit(heads, neurons, per_head=2, per_neuron=20, rng=None):
    """The best of each layer, with random difference vectors."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for kind, data, k in (("neuron", neurons, per_neuron), ("head", heads, per_head)):
        best = top(data, k)
        feature = "unit" if kind == "neuron" else "head"
        for e in EMOTIONS:
            for layer in best["layer"].values:
                for rank, i in enumerate(best.sel(emotion=e, layer=layer).values):
                    score = float(data["contrast"].sel({"emotion": e, "layer": layer, feature: i}))
                    rows.append((e, kind, int(layer), int(i), rank, score))
    table = pd.DataFrame(rows, columns=["emotion", "kind", "layer", "index", "rank", "score"])
    layers, units, n_heads = neurons.sizes["layer"], neurons.sizes["unit"], heads.sizes["head"]
    coords = {"emotion": list(EMOTIONS), "layer": range(layers)}
    payload = xr.Dataset(
        {
            "neuron": (("emotion", "layer", "unit"), rng.normal(size=(6, layers, units)).astype(np.float32)),
            "z": (
                ("emotion", "layer", "head", "head_dim"),
                rng.normal(size=(6, layers, n_heads, 4)).astype(np.float32),
            ),
        },
        coords,
    )
    return Circuit(table, payload, {"by": "contrast", "model_id": "tiny-emotion"})


def curve(ks, sign, size, rng, draws=5):
    """A top set that saturates, a low set that does nothing, random ones in between."""
    k = np.array(ks)
    reach = sign * size * (1 - np.exp(-k / 4))
    scale = np.linspace(0.6, 1.4, 6)[:, None]
    random = 0.12 * reach[None, None] * scale[:, None] + rng.normal(size=(6, draws, len(k))) * 0.04 * size
    delta = np.stack([reach * scale, 0.01 * reach * scale, random.mean(1)], axis=1)
    half = 0.03 * size + 0.06 * np.abs(delta)
    grid = ("emotion", "which", "k")
    return xr.Dataset(
        {
            "delta": (grid, delta),
            "ci_low": (grid, delta - half),
            "ci_high": (grid, delta + half),
            "random": (("emotion", "draw", "k"), random),
            "size": (("emotion", "k"), np.tile(6 * k, (6, 1))),
            "n": ("emotion", np.full(6, 478)),
        },
        {"emotion": list(EMOTIONS), "which": ["top", "low", "random"], "k": list(ks), "draw": range(draws)},
        {"method": "ablation_curve", "how": "zero", "per": "layer", "readout_layer": 5},
    )


def influence(layers, rng, doses=(0.1, 0.3, 0.5, 0.7)):
    """Nothing early, a peak at three quarters of the stack; finite doses a little off."""
    x = np.arange(layers)[None, :, None]
    exact = 2.2 / (1 + np.exp(-(x - 0.5 * layers) / (0.08 * layers))) * np.linspace(0.8, 1.1, 6)[:, None, None]
    exact = exact * (1 - 0.3 * (x > 0.8 * layers)) + rng.normal(size=(6, layers, 2)) * 0.04
    grid = ("emotion", "layer", "sublayer")
    data = {
        "influence": (grid, exact),
        "std": (grid, 0.1 + 0.1 * np.abs(exact)),
        "sigma": (grid[1:], 0.5 + np.zeros((layers, 2))),
        "n": ("emotion", np.full(6, 480)),
    }
    coords = {"emotion": list(EMOTIONS), "layer": range(layers), "sublayer": ["attn_out", "mlp_out"]}
    coords["read_at"] = (grid[1:], np.array([["resid_mid", "resid_post"]] * layers))
    if doses:
        bent = 1 - 0.15 * np.array(doses) ** 2
        data["finite"] = (("dose", *grid), bent[:, None, None, None] * exact[None])
        coords["dose"] = list(doses)
    return xr.Dataset(data, coords, {"method": "sublayer_influence", "readout": "resid_post of the last layer"})


def patterns(length, rng, count=6):
    """Causal patterns of a prompt with awkward tokens."""
    words = ["<s>", " Keep", " the", " reply", "\n", " $5", " and $", "日本", "é", " sentences", ".", " smithy"]
    tokens = [words[i % len(words)] for i in range(length)]
    out = []
    for i in range(count):
        logits = rng.normal(size=(length, length)) * 2
        logits[:, 0] += 3
        logits[np.triu_indices(length, 1)] = -np.inf
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out.append(
            xr.DataArray(
                weights / weights.sum(1, keepdims=True),
                dims=("query", "key"),
                coords={"query": range(length), "key": range(length), "key_token": ("key", tokens)},
                attrs={"layer": 3 + i // 3, "head": i, "emotion": EMOTIONS[i % 6]},
            )
        )
    return out


def tokens(layers):
    """Six tokens for each direction of each layer, some of them markup."""
    words = [" angry", " fury", "<b>", "rage", " &amp;", "\n"]
    rows = [
        (e, i, r, f"{w}{i}" if r == 0 else w, 5.0 - r)
        for e in EMOTIONS
        for i in range(layers)
        for r, w in enumerate(words)
    ]
    return pd.DataFrame(rows, columns=["emotion", "layer", "rank", "token", "logit"])


def top_prompts():
    """Four neurons per emotion, four prompts each."""
    rows = [
        (
            e,
            3 + u,
            40 * u,
            r,
            f"work_{r:02d}__positive",
            f"I built <i>a</i> new anvil stand for the smithy. {'x ' * 150}",
            3.0 / (r + 1),
        )
        for e in EMOTIONS
        for u in range(4)
        for r in range(4)
    ]
    return pd.DataFrame(rows, columns=["emotion", "layer", "unit", "rank", "key", "text", "activation"])


def reply_tokens():
    """Two neurons per emotion, four tokens each, some of them awkward."""
    rows = [
        (
            e,
            u,
            7 * u,
            r,
            4.0 - r,
            f"work_{r:02d}",
            3 + r,
            "so <i>the</i>\n",
            ("\n", " <b>")[r % 2],
            " smithy.",
            (-1) ** u,
        )
        for e in EMOTIONS
        for u in range(2)
        for r in range(4)
    ]
    names = "emotion layer unit rank activation key position_from_end before token_text after beta"
    return pd.DataFrame(rows, columns=names.split())


def make_parts(layers=6, heads=8, units=704, seed=0, per_head=2, per_neuron=20, length=60):
    """Everything that `report.CircuitParts` holds, as the mapping."""
    rng = np.random.default_rng(seed)
    by_head, by_neuron = contributions(layers, heads, "head", rng), contributions(layers, units, "unit", rng)
    most = {
        "neurons ablated": (1, 2, 4, 8, 16),
        "heads ablated": (1, 2, 4, 8),
        "neurons added": (1, 2, 4, 8, 16, 32, 64),
    }
    size = {"neurons ablated": 3.0, "heads ablated": 9.0, "neurons added": 12.0, "heads added": 4.0}
    return {
        "circuit": circuit(by_head, by_neuron, per_head, per_neuron, rng),
        "influence": influence(layers, rng),
        "curves": {n: curve(most.get(n, (1, 2, 4)), -1 if "ablated" in n else 1, size[n], rng) for n in CURVES},
        "heads": by_head,
        "neurons": by_neuron,
        "tokens": tokens(layers),
        "attention": patterns(length, rng),
        "top_prompts": top_prompts(),
        "reply_tokens": reply_tokens(),
    }
