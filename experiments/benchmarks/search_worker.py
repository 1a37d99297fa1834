"""A search for a dose, once, in whatever checkout of emotrace ``PYTHONPATH`` names first: CPU seconds, and what came out.

    PYTHONPATH=CHECKOUT python search_worker.py '{"prompts": 4, …}'

Few-shot prompts of given token ids to a random model; for each dose a reply to every prompt in six emotions under that emotion's
vector, then the perplexity of each reply under the un-edited model and KL(base ‖ edited). Uses what every version of emotrace
has. Started by ``search.py``; prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import xarray as xr

import emotrace as et
from emotrace import scoring

EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def built(shape: dict[str, Any]) -> Any:
    """A random Llama of this shape."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return et.load(transformers.LlamaForCausalLM(config).eval())


def asked(sizes: dict[str, Any], vocabulary: int) -> list[dict[str, Any]]:
    """Prompts that begin with the same examples and end in a question of their own."""
    draw = np.random.default_rng(0)
    stem = draw.integers(3, vocabulary, sizes["shared"]).tolist()
    own = [draw.integers(3, vocabulary, draw.integers(*sizes["own"])).tolist() for _ in range(sizes["prompts"])]
    return [{"key": f"p{i}", "token_ids": [*stem, *ids]} for i, ids in enumerate(own)]


def main(settings: dict[str, Any]) -> None:
    """Run the search, and say what it took."""
    torch.set_num_threads(1)
    shape, sizes = settings["shape"], settings["sizes"]
    model = built(shape)
    plain = asked(sizes, shape["vocab_size"])
    aimed = [{**p, "key": f"{p['key']}__{e}", "emotion": e} for p in plain for e in EMOTIONS]
    vectors = xr.DataArray(
        np.random.default_rng(1).standard_normal((len(EMOTIONS), shape["hidden_size"])).astype(np.float32),
        dims=("emotion", "dim"), coords={"emotion": list(EMOTIONS)},
    )  # fmt: skip
    layers = range(shape["num_hidden_layers"] // 3, 2 * shape["num_hidden_layers"] // 3)
    options = {"max_new_tokens": sizes["new"], "min_new_tokens": sizes["new"], "progress": False}
    seconds = {"generation": 0.0, "likelihood": 0.0}
    found: dict[str, Any] = {"replies": [], "perplexity": [], "kl": []}

    def timed(name: str, work: Any) -> Any:
        start = time.process_time()
        result = work()
        seconds[name] += time.process_time() - start
        return result

    base = timed("generation", lambda: et.generate(model, plain, **options))
    forced = {row["key"]: row["token_ids"] for row in base}
    for dose in sizes["doses"]:
        edits = [et.Add("resid_post", layers=layers, vector=vectors, strength=dose, scale="rms")]
        rows = timed("generation", lambda edits=edits: et.generate(model, aimed, edits, **options))
        scored = [{**p, "reply_ids": row["token_ids"]} for p, row in zip(aimed, rows, strict=True)]
        along = [{**p, "reply_ids": forced[p["key"].split("__")[0]]} for p in aimed]
        found["replies"].append([row["token_ids"] for row in rows])
        found["perplexity"] += timed("likelihood", lambda scored=scored: scoring.perplexity(model, scored))
        found["kl"] += timed("likelihood", lambda e=edits, a=along: scoring.kl(model, a, e)).tolist()
    found["replies"] = hashlib.sha256(json.dumps([found["replies"], forced]).encode()).hexdigest()
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    where = str(Path(et.__file__).resolve().parents[1])
    print(json.dumps({"where": where, "seconds": seconds, "megabytes": memory, **found}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
