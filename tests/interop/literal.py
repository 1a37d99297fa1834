"""What the authors' scripts do with their files, from the specification, in the plainest words; no check, as they have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

EMOTIONS = ["anger", "sadness", "happiness", "fear", "surprise", "disgust"]


def directions(folder):
    """Steps 03/1 and 06/1: both dicts, then for each emotion 2·layers rows in the order attn0, mlp0, attn1, …."""
    attention = torch.load(Path(folder) / "emo_directions_attention.pt", weights_only=False)
    mlp = torch.load(Path(folder) / "emo_directions_mlp.pt", weights_only=False)
    assert (attention["type"], mlp["type"]) == ("attention", "mlp")
    rows = {}
    for emotion in mlp["emotions"]:
        rows[emotion] = np.empty((2 * mlp["layers"], mlp["hidden"]), dtype=np.float32)
        for layer in range(mlp["layers"]):
            rows[emotion][2 * layer] = attention["dirs"][emotion][layer]
            rows[emotion][2 * layer + 1] = torch.from_numpy(mlp["dirs"][emotion][layer]).numpy()
    return rows


def direction_dump(groups):
    """Step 02/2: ``{group: {emotion: [layer, dim] float16}}`` → unit directions, group by group."""
    total = dict.fromkeys(EMOTIONS, 0.0)
    for held in groups.values():
        x = {e: np.asarray(held[e], dtype=np.float32) for e in EMOTIONS}
        mean = sum(x.values()) / len(EMOTIONS)
        for e in EMOTIONS:
            total[e] = total[e] + (x[e] - mean)
    c = {e: total[e] / len(groups) for e in EMOTIONS}
    mean = sum(c.values()) / len(EMOTIONS)
    return {e: (c[e] - mean) / (np.linalg.norm(c[e] - mean, axis=-1, keepdims=True) + 1e-12) for e in EMOTIONS}


def injection(circuit_folder, attention, mlp, emotion, layer, head_dim, width):
    """Step 07: what is added to the inputs of o_proj and down_proj in one layer; a missing file is silently zero."""
    entry = json.loads((Path(circuit_folder) / f"{emotion}.json").read_text())["layers"][layer]
    assert entry["layer"] == layer
    file = Path(mlp) / "emo_diff" / emotion / f"layer{layer}.npy"
    delta = np.load(file) if file.exists() else np.zeros(width)
    neurons = np.zeros(width)
    for index in entry["mlp"]["neurons"][: entry["mlp"]["k"]]:
        neurons[index] += delta[index]
    file = Path(attention) / "emo_diff" / emotion / f"L{layer}.npy"
    z = np.load(file) if file.exists() else np.zeros(8)
    heads = np.zeros_like(z)
    for head in entry["attention"]["heads"]:
        heads[head * head_dim : (head + 1) * head_dim] = z[head * head_dim : (head + 1) * head_dim]
    return neurons, heads


def ranked(file, unit, score):
    """Step 06/5: the components of each layer, best score first."""
    table = pd.read_csv(file)
    return {layer: mine.sort_values(score, ascending=False)[unit].tolist() for layer, mine in table.groupby("layer")}


def accuracy(folder):
    """Step 01/3: counts of both files."""
    rows = {
        n: [json.loads(x) for x in (Path(folder) / f"{n}.jsonl").read_text(encoding="utf-8").splitlines()]
        for n in ("accepted", "rejected")
    }
    out = {}
    for name in ("emotion", "valence"):
        for value in {r[name] for part in rows.values() for r in part}:
            hit = sum(r[name] == value for r in rows["accepted"])
            n = hit + sum(r[name] == value for r in rows["rejected"])
            out[value] = {"total": n, "accepted": hit, "rejected": n - hit, "accuracy": round(100 * hit / n, 2)}
    return out


def complete_groups(folder):
    """Step 02/1: (skeleton, valence) with all six emotions accepted."""
    seen: dict[str, set[str]] = {}
    with open(Path(folder) / "accepted.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["judge"]["match"] == 1:
                seen.setdefault(f"{row['skeleton_id']}__{row['valence']}", set()).add(row["emotion"])
    return {group for group, emotions in seen.items() if emotions == set(EMOTIONS)}
