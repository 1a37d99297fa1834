"""Capture by TransformerLens beside a bare forward, in an environment of its own.

    python capture_lens_worker.py MODEL BATCHES.json TURNS

Prints ``[library, [[bare, work], …]]``, CPU seconds of one thread. Started by ``capture.py``; imports nothing of emotrace.
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
import transformers


def cpu(one: Any) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    one()
    return time.process_time() - start


@torch.no_grad()
def main(model: str, batches: str, turns: int) -> None:
    """Measure."""
    torch.set_num_threads(1)
    inputs = [{k: torch.tensor(v) for k, v in batch.items()} for batch in json.loads(Path(batches).read_text())]
    twin = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    # By name: type checkers run in emotrace's environment, which has no such library.
    boot = import_module("transformer_lens.model_bridge").TransformerBridge.boot_transformers
    bridge = boot(model, device="cpu", dtype=torch.float32)
    bridge.eval()
    names = [f"blocks.{i}.hook_resid_{s}" for i in range(twin.config.num_hidden_layers) for s in ("mid", "post")]

    def bare() -> None:
        for batch in inputs:
            twin(**batch, use_cache=False)

    def cached() -> list[torch.Tensor]:
        found = []
        for batch in inputs:
            mask = batch["attention_mask"]
            _, cache = bridge.run_with_cache(batch["input_ids"], attention_mask=mask, names_filter=names)
            found.append(torch.stack([cache[name][:, -1] for name in names]))
        return found

    cached()
    pairs = [[cpu(bare), cpu(cached)] for _ in range(turns)]
    print(json.dumps([f"TransformerLens {version('transformer-lens')}", pairs]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
