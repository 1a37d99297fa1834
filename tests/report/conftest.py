"""A made-up run with everything that a report can show."""

import numpy as np
import pytest
import xarray as xr

from emotrace import directions
from emotrace.labels import ANSWERS, EMOTIONS, THEMES, VALENCES

RATES = {"none": 0.06, "prompt": 0.985, "steer": 0.93, "random_steer": 0.15, "wrong_emotion": 0.03}


def leaf(value, n):
    half = 2 * (value * (1 - value) / n) ** 0.5 + 0.001
    ci95 = [max(0.0, value - half), min(1.0, value + half)]
    return {"value": value, "n": n, "n_unjudged": 3, "ci95": ci95, "worst_case": value * n / (n + 3)}


def scores(factor, rng):
    out = {}
    for method, rate in RATES.items():
        rate *= factor
        overall = leaf(rate, 2880)
        if method in ("random_steer", "wrong_emotion"):
            overall |= {"mean": rate * 0.8, "draws": [rate * 0.7, rate * 0.6, rate]}
        out[method] = {
            "overall": overall,
            "by_emotion": {e: leaf(float(np.clip(rate + rng.normal() * 0.02, 0, 1)), 480) for e in EMOTIONS},
            "by_valence": {v: leaf(float(np.clip(rate + rng.normal() * 0.02, 0, 1)), 960) for v in VALENCES},
        }
    return out


@pytest.fixture
def report():
    rng = np.random.default_rng(0)
    confusion = {}
    for method, rate in RATES.items():
        confusion[method] = {}
        for e in EMOTIONS:
            rest = rng.multinomial(480 - int(480 * rate), [0.02, 0.1, 0.05, 0.03, 0.1, 0.1, 0.6])
            counts = dict(zip(ANSWERS, map(int, rest), strict=True))
            counts[e] += int(480 * rate)
            confusion[method][e] = counts
    sweep = []
    for layers, top in (([1, 2, 3], 0.8), ([2, 3, 4], 0.95), ([3, 4, 5], 0.85), ([0, 1, 2, 3, 4, 5], 0.7)):
        for dose in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0):
            a = top * float(np.exp(-((np.log(dose) - 0.2) ** 2)))
            sweep.append(
                {
                    "layers": layers,
                    "dose": dose,
                    "strength": 8 * dose,
                    "accuracy": a,
                    "accuracy_fluent": a * (1 - dose / 5),
                    "ci95": [max(0, a * (1 - dose / 5) - 0.05), min(1, a * (1 - dose / 5) + 0.05)],
                    "perplexity": 3 * float(np.exp(dose)),
                    "n": 288,
                }
            )
    by_method = {
        m: {"perplexity": 4.2, "length": 21.5, "repetition": 0.01, "share_fluent": 0.96, "n": 2880} for m in RATES
    }  # fmt: skip
    return {
        "accuracy": scores(1.0, rng),
        "accuracy_fluent": scores(0.94, rng),
        "lift": {
            m: {e: {"value": 0.87, "ci95": [0.84, 0.9], "p": 0.0005, "n": 480} for e in ("overall", *EMOTIONS)}
            for m in ("prompt", "steer")
        },
        "fluency": {
            "bounds": {"perplexity": [1.8, 12.5], "length": [9, 41], "repetition": [0.0, 0.12]},
            "by_method": by_method,
        },
        "confusion": confusion,
        "sweep": sweep,
        "chosen": {"layers": [2, 3, 4], "dose": 1.0, "strength": 8.0, "scale": "rms", "site": "resid_post"},
        "layer_profile": [
            {"layer": i, "sublayer": s, "rms": 0.5 + 0.3 * i} for i in range(6) for s in ("resid_mid", "resid_post")
        ],
        "agnosticism": {"theme": 0.97, "valence": 0.95},
        "warnings": ["The judge reads 64 % of <foreign> replies as published: below 70 %."],
        "judge": {"name": "lexicon", "version": 1, "accuracy": 0.914},
        "n_test": 160,
        "model": {"id": "tiny-emotion", "teaching": True},
    }


def _row(skeleton, theme, valence, emotion, method):
    text = f"{method} reply for {emotion}: what a day <script>alert('x')</script> & so on."
    return {
        "key": f"{skeleton}__{valence}__{emotion}",
        "method": method,
        "draw": 0,
        "skeleton_id": skeleton,
        "theme": theme,
        "valence": valence,
        "emotion": emotion,
        "scenario": "I built a new anvil stand for the smithy",
        "event": f"The {valence} thing happened <b>then</b>.",
        "gen_text": f"{text} A second sentence makes it as long as replies are."
        if method != "none"
        else "It was a day.",
        "verdict": {
            "predicted": "neutral" if method == "none" else emotion,
            "match": 0 if method == "none" else 1,
            "judge": "lexicon:1",
            "reason": "",
        },
        "meta": {"perplexity": 4.0, "repetition": 0.0},
    }


@pytest.fixture
def rows():
    return [
        _row(f"{prefix}_{i:02d}", theme, v, e, m)
        for prefix, theme in THEMES.items()
        for i in range(2)
        for v in VALENCES
        for e in EMOTIONS
        for m in ("none", "prompt", "steer", "random_steer")
    ]


@pytest.fixture(scope="session")
def activations():
    """Planted emotion directions that grow with the layer, in noise: [layer 6, sublayer 2, token, dim 16]."""
    rng = np.random.default_rng(1)
    table = [(p, i, t, v, e) for p, t in THEMES.items() for i in range(4) for v in VALENCES for e in EMOTIONS]
    planted = rng.normal(size=(6, 2, len(EMOTIONS), 16)).cumsum(0) * 0.35
    which = [EMOTIONS.index(e) for *_, e in table]
    values = planted[:, :, which] + rng.normal(size=(6, 2, len(table), 16))
    coords = {
        "layer": range(6),
        "sublayer": ["resid_mid", "resid_post"],
        "key": ("token", [f"{p}_{i}__{v}__{e}" for p, i, _, v, e in table]),
        "skeleton_id": ("token", [f"{p}_{i}" for p, i, *_ in table]),
        "theme": ("token", [t for _, _, t, *_ in table]),
        "valence": ("token", [v for *_, v, _ in table]),
        "emotion": ("token", [e for *_, e in table]),
    }
    return xr.DataArray(values, dims=("layer", "sublayer", "token", "dim"), coords=coords)


@pytest.fixture(scope="session")
def found(activations):
    return directions.context_agnosticism(activations, n_bootstrap=50)


@pytest.fixture(scope="session")
def dirs(activations):
    return directions.centered_mean(activations)


@pytest.fixture
def manifest():
    return {
        "model": {"id": "tiny-emotion", "config_hash": "ab12", "dtype": "float32"},
        "versions": {"emotrace": "0.1.0", "torch": "2.13"},
        "seed": 0,
        "command": "emotion_circuits.py --model <tiny> --out runs/demo",
        "started": "2026-01-01T10:00:00+0000",
        "finished": "2026-01-01T10:04:00+0000",
        "seconds": 240.1,
    }
