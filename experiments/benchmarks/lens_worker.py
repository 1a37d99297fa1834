"""Attribution patching by TransformerLens, one round for each line on stdin; runs in an environment of its own.

    python lens_worker.py FOLDER node|edge

FOLDER holds ``model`` (a Hugging Face directory) and ``pairs.json``. Answers are one JSON object a line: first what it runs
on, then for each line read the seconds and the mean scores. Started by ``discovery.py``; imports nothing of emotrace.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def serve(ready: dict[str, Any], work: Any) -> None:
    """Say ``ready``, then do the work once for each line read, and say how long it took and what it found."""
    print(json.dumps({**ready, "megabytes": peak_megabytes()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "megabytes": peak_megabytes(), "scores": found}), flush=True)


def name(node: Any) -> str:
    """A node or reader as emotrace names it (heads and key-value heads are the same in number here)."""
    if node.kind in ("embed", "logits"):
        return {"embed": "embed", "logits": "out"}[node.kind]
    if node.kind in ("mlp_out", "mlp_in"):
        return f"m{node.layer}"
    if node.kind == "attn_head_out":
        return f"a{node.layer}.h{node.head}"
    part = node.kind[0]
    return f"a{node.layer}.{'h' if part == 'q' else 'g'}{node.head}.{part}"


def main(folder: Path, level: str) -> None:
    """Load the model and serve."""
    # By name: type checkers run in emotrace's environment, which has no such library.
    boot = import_module("transformer_lens.model_bridge").TransformerBridge.boot_transformers
    attribution_patch = import_module("transformer_lens.tools.analysis").attribution_patch
    settings = import_module("transformer_lens.tools.analysis.attribution_patching").EdgeAttributionConfig

    torch.set_num_threads(1)
    bridge = boot(str(folder / "model"), device="cpu", dtype=torch.float32)
    bridge.eval()
    pairs = json.loads((folder / "pairs.json").read_text())
    config = settings(granularity="edge" if level == "edge" else "node")

    def work() -> dict[str, float]:
        """Mean over the pairs. Its slope is that of the *corrupt* run: given clean for corrupt, it is minus the score."""
        found: dict[str, float] = {}
        for pair in pairs:
            up, down = pair["tokens"]
            result = attribution_patch(
                bridge, torch.tensor([pair["counterfactual"]]), torch.tensor([pair["clean"]]),
                lambda logits, up=up, down=down: logits[0, -1, up] - logits[0, -1, down], config,
            )  # fmt: skip
            if level == "edge":
                named = ((f"{name(a)}->{name(b)}", score) for (a, b), score in result.edge_scores.items())
            else:
                named = ((name(n), score) for n, score in result.node_scores.items() if n.kind != "embed")
            for component, score in named:
                found[component] = found.get(component, 0.0) - score / len(pairs)
        return found

    serve({"library": f"TransformerLens {version('transformer-lens')}"}, work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
