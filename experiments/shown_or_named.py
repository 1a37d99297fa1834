"""Do directions of emotions hold an emotion, or the word that asks for it?

Directions are found at the last token of prompts that name an emotion ("Always reply in anger."). Here they are asked about

1. texts that *show* an emotion and do not name it: rows of GoEmotions that hold no word of an emotion, at their last token. A
   text's answer is the direction with the largest projection of the text less the mean of all texts. Recall of each emotion,
   macro-F1, and the accuracy of shuffled labels; beside them the same of texts that name an emotion.
2. instructions that are *no* emotion ("Always reply in French.", "Always reply formally."): how far does such an instruction move
   the last token along the emotions' directions, as a share of how far an emotion's own instruction moves it along its own?
   Near 0: the directions hold emotions; near 1: they hold that something is asked.

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
import xarray as xr

import emotrace as et
from emotrace import datasets, stats
from emotrace.cli.groups import LoadingAnywhere, grouped
from emotrace.cli.options import BatchSize, CausalModel, Folder, Seed
from emotrace.defaults import BATCH_SIZE
from emotrace.disk import write_json
from emotrace.judges.measurement import Measurement, compared
from emotrace.labels import ALIASES, EMOTIONS
from emotrace.run import Run
from emotrace.stats.permutation import p_said

NAMES: Final = re.compile(
    r"\b(?:ang(?:er|ry|rily)|furious|rage|mad|sad(?:ness|ly|der)?|sorrow\w*|unhappy|depress\w*|happ(?:y|ier|iness|ily)|joy\w*|glad|delight\w*"
    r"|fear\w*|afraid|scar(?:ed|y|ing)|terrif\w*|frighten\w*|surpris\w*|amaz\w*|shock\w*|astonish\w*|disgust\w*|gross|revolt\w*|emotion\w*"
    r"|feel(?:s|ing|ings)?|felt)\b",
    re.IGNORECASE,
)  # fmt: skip
"""Words that name one of the six emotions, or a feeling as such."""
NO_EMOTION: Final = ("French", "formal language", "rhyme", "capital letters", "one sentence", "the third person")
"""What the same instruction may ask for that is no emotion."""
SHUFFLES = 1000
Acts = et.Activations | xr.DataArray


@grouped
def main(
    *,
    model: CausalModel = "data/tiny_model",
    data: Annotated[Path, typer.Option(help="SEV file that directions are found on")] = Path("data/sev.jsonl"),
    texts: Annotated[Path, typer.Option(help="GoEmotions rows with labels of people")] = Path(
        "data/goemotions_sample.csv"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="skeletons, spread over themes")] = 40,
    out: Folder = Path("runs/shown_or_named"),
    batch_size: BatchSize = BATCH_SIZE,
    loading: LoadingAnywhere,
    seed: Seed = 0,
) -> None:
    """What the directions of emotions say of emotions that are not named, and of instructions that are none."""
    back = {v: k for k, v in ALIASES.items()}
    rows = datasets.goemotions(texts, emotions=[back.get(e, e) for e in EMOTIONS])
    prompts, plain = (datasets.sev(data, instruction=asked, limit=limit) for asked in (True, False))
    others = datasets.sev(data, emotions=NO_EMOTION, limit=limit)
    lm = loading.load(model)
    run = Run(out, {
        "experiment": "shown_or_named", "model": lm.sites.identity, "template": lm.sites.encoder.record, "seed": seed,
        "data": {"file": data.name, "digest": prompts.digest}, "texts": {"file": texts.name, "digest": rows.digest},
    })  # fmt: skip
    read: dict[str, Any] = {"sites": "resid_post", "positions": "last", "batch_size": batch_size, "seed": seed}
    acts, bare, other, shown = (
        et.capture(lm, some, out=run.path(f"{name}.zarr"), **read)
        for name, some in (("asked", prompts), ("plain", plain), ("others", others), ("texts", rows))
    )
    directions = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence"))
    named = {p.key: bool(NAMES.search(str(p.text))) for p in rows}
    result: dict[str, Any] = {"model": lm.sites.identity, "n_layers": lm.sites.n_layers, "layers": []}
    for layer in directions["layer"].values.tolist():
        at = directions.sel(layer=layer, sublayer="resid_post")
        line: dict[str, Any] = {"layer": layer, "no_emotion": moved(at, acts, bare, other, layer, seed)}
        for name, wanted in (("shown", False), ("named", True)):
            keys = [key for key, does in named.items() if does is wanted]
            if keys:
                line[name] = told(
                    at, shown.where(key=keys), layer, f"texts that {'name' if wanted else 'show'} it", seed
                )
        result["layers"].append(line)
        print(sentence(line))
    write_json(run.path("report.json"), result)
    run.finish()
    print(f"report: {run.path('report.json')}")


def told(directions: xr.DataArray, acts: Acts, layer: int, on: str, seed: int) -> dict[str, Any]:
    """How well texts' emotions are told by the directions of one layer; p against shuffled labels."""
    p = _at(et.directions.project(acts, directions), layer)
    scores = np.asarray(p.transpose("token", "direction").values, dtype=np.float64)
    scores = scores - scores.mean(0)
    names = [str(name) for name in p["direction"].values]
    labels = [ALIASES.get(str(name), str(name)) for name in p["emotion"].values]
    answers = [names[i] for i in scores.argmax(1)]
    found = compared("directions", on, labels, answers, np.arange(len(labels)), seed=seed)
    rng, right, given = np.random.default_rng(seed), np.array(labels), np.array(answers)
    chance = np.array([(rng.permutation(right) == given).mean() for _ in range(SHUFFLES)])
    extreme = int((chance >= found.accuracy.value - 1e-12).sum())
    return found.record | {
        "chance": float(chance.mean()),
        "p": (1 + extreme) / (1 + SHUFFLES),
        "p_floor": 1 / (1 + SHUFFLES),
    }


def moved(directions: xr.DataArray, acts: Acts, plain: Acts, other: Acts, layer: int, seed: int) -> dict[str, Any]:
    """How far instructions that are no emotion move along the emotions' directions, in shares of what emotions do.

    With m_x the mean shift of the last token from the plain prompts that instruction x makes, scenario by scenario: the largest
    ⟨m_x, v_e⟩ over emotions e, over the mean of ⟨m_e, v_e⟩. Interval: skeletons drawn again.
    """
    sums = {}
    for name, some in (("asked", acts), ("other", other)):
        table = _by_skeleton(directions, some, layer) - _by_skeleton(directions, plain, layer)
        sums[name] = table
    own = sums["asked"].sel(emotion=directions["emotion"].values)

    def share(weights: np.ndarray) -> tuple[float, dict[str, float]]:
        w = xr.DataArray(weights / weights.sum(), dims="skeleton_id", coords={"skeleton_id": own["skeleton_id"]})
        mine = (own * w).sum("skeleton_id")
        diagonal = float(np.mean([mine.sel(emotion=e, direction=e) for e in directions["emotion"].values]))
        most = (sums["other"] * w).sum("skeleton_id").max("direction") / diagonal
        return float(most.mean()), {str(e): float(most.sel(emotion=e)) for e in most["emotion"].values}

    n = own.sizes["skeleton_id"]
    value, each = share(np.ones(n))
    drawn = [share(w)[0] for w in stats.cluster_weights(n, 200, seed)]
    return {"share": value, "ci95": np.quantile(drawn, [0.025, 0.975]).tolist(), "each": each}


def _by_skeleton(directions: xr.DataArray, acts: Acts, layer: int) -> xr.DataArray:
    """Mean projection of each skeleton's prompts: ``[direction, skeleton_id(, emotion)]``."""
    p = _at(et.directions.project(acts, directions), layer)
    frame: Any = p.transpose("token", "direction").to_pandas()
    frame["skeleton_id"] = p["skeleton_id"].values
    by = ["skeleton_id"]
    if "emotion" in p.coords:
        frame["emotion"], by = p["emotion"].values, ["skeleton_id", "emotion"]
    return frame.groupby(by).mean().rename_axis(columns="direction").stack().to_xarray()


def _at(p: xr.DataArray, layer: int) -> xr.DataArray:
    """The projection ``[direction, token]`` at one layer."""
    p = p.sel(layer=layer) if "layer" in p.dims else p
    return p.isel(sublayer=0) if "sublayer" in p.dims else p


def sentence(line: dict[str, Any]) -> str:
    """One layer in words."""
    parts = []
    for name in ("shown", "named"):
        if name in line:
            found = Measurement.of({k: v for k, v in line[name].items() if k not in ("chance", "p", "p_floor")})
            p = p_said(line[name]["p"], line[name]["p_floor"])
            parts.append(f"{name} {found.accuracy.value:.1%} of {found.n} (chance {line[name]['chance']:.1%}, p {p})")
    low, high = line["no_emotion"]["ci95"]
    parts.append(
        f"instructions that are no emotion move {line['no_emotion']['share']:.2f} [{low:.2f}, {high:.2f}] as far"
    )
    return f"layer {line['layer']}: {'; '.join(parts)}"


if __name__ == "__main__":
    et.cli.experiment(main)
