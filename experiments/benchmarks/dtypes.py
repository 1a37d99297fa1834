"""Dtypes: what a model in bfloat16 says and costs on this CPU beside the same model in float32.

Method. SEV prompts, in six emotions, as the model takes them: next-token distributions at the last prompt token, greedy replies,
and projections of the residual stream on six emotion directions (`directions.centered_mean` of the float32 activations, in both).
Time is a ratio of the same work in both, turn about in one process, one torch thread. bfloat16 is fast only where the processor
multiplies it (AMX, AVX512-BF16), so the table says what torch found.

    python experiments/benchmarks/dtypes.py --model smollm2                 # what `emotrace fetch` fetched, or any model
    python experiments/benchmarks/dtypes.py --quick                         # the shipped model: only shows that it runs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

import emotrace as et

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from emotrace.datasets import Prompts
from emotrace.sites import LanguageModel
from experiments.benchmarks import work
from experiments.benchmarks.timing import Ratio, ratio

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)
SITE = "resid_post"


class Row(NamedTuple):
    """A line of the table."""

    question: str
    answer: str


@torch.no_grad()
def next_tokens(model: LanguageModel, prompts: Prompts, size: int) -> torch.Tensor:
    """Log probabilities after the last prompt token ``[prompt, token]``, float32."""
    ids = model.sites.encoder.ids(prompts)
    module: Any = model._module
    parts = [module(**batch, use_cache=False).logits[:, -1].float() for batch in work.batches(ids, size)]
    return torch.cat(parts).log_softmax(-1)


def compared_logits(whole: torch.Tensor, half: torch.Tensor) -> list[Row]:
    """How far the distributions lie apart."""
    same = (whole.argmax(-1) == half.argmax(-1)).float().mean().item()
    kl = (whole.exp() * (whole - half)).sum(-1)
    return [
        Row("likeliest next token is the same", f"{same:.1%} of {len(whole)} prompts"),
        Row("KL(float32 ‖ bfloat16), nats a token", f"median {kl.median():.1e}, largest {kl.max():.1e}"),
        Row("log probability of the likeliest token, difference",
            f"median {(whole.max(-1).values - half.gather(-1, whole.argmax(-1, keepdim=True))[:, 0]).abs().median():.1e}"),
    ]  # fmt: skip


def compared_replies(whole: list[Any], half: list[Any]) -> list[Row]:
    """Whether greedy replies are the same, and for how long."""
    first, same = [], 0
    for a, b in zip(whole, half, strict=True):
        x, y = a["token_ids"], b["token_ids"]
        same += x == y
        at = next((i for i, (u, v) in enumerate(zip(x, y, strict=False)) if u != v), min(len(x), len(y)))
        first += [at] if x != y else []
    later = f"; the others part after {np.median(first):.0f} tokens (median)" if first else ""
    return [Row("greedy replies that are the same", f"{same} of {len(whole)}{later}")]


def compared_projections(models: dict[str, LanguageModel], prompts: Prompts, size: int) -> list[Row]:
    """Projections on emotion directions in both."""
    acts = {n: et.capture(m, prompts, SITE, batch_size=size, progress=False) for n, m in models.items()}
    found = et.directions.centered_mean(acts["float32"], label="emotion", within=("skeleton_id", "valence"))
    vectors = found.values.reshape(found.sizes["emotion"], found.sizes["layer"], -1)  # one sublayer
    read = {
        n: np.asarray(a.sel(sublayer=SITE).transpose("token", "layer", "dim").values, np.float64)
        for n, a in acts.items()
    }
    on = {n: np.einsum("tld,eld->etl", x, vectors) for n, x in read.items()}
    spread = on["float32"].std(1)
    error = (np.abs(on["bfloat16"] - on["float32"]).mean(1) / spread).mean(0)
    r = [np.corrcoef(on["float32"][..., i].ravel(), on["bfloat16"][..., i].ravel())[0, 1] for i in range(len(error))]
    worst, last = int(np.argmax(error)), len(error) - 1
    return [
        Row("projections on emotion directions, r", f"smallest {min(r):.5f} (layer {int(np.argmin(r))}), last layer {r[-1]:.5f}"),
        Row("projections, mean difference in sd over prompts",
            f"{error[worst]:.3f} at worst (layer {worst}), {error[last]:.3f} at the last"),
    ]  # fmt: skip


@app.command()
def main(
    model: Annotated[str, typer.Option(help="short name, hub id, directory or GGUF file")] = "smollm2",
    limit: Annotated[int, typer.Option(min=1, help="skeletons")] = 4,
    new_tokens: Annotated[int, typer.Option(min=1, help="of a reply")] = 24,
    batch_size: Annotated[int, typer.Option(min=1)] = 24,
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="the shipped model and little of everything")] = False,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    if quick:
        model, limit, new_tokens, repetitions = "tiny", 1, 4, 1
    models = {name: et.load(model, device="cpu", dtype=name) for name in ("float32", "bfloat16")}
    prompts = et.datasets.sev(work.ROOT / "data" / "sev.jsonl", limit=limit)
    few = prompts[: 2 * batch_size]

    def replies(name: str) -> list[Any]:
        return et.generate(models[name], few, max_new_tokens=new_tokens, batch_size=batch_size, progress=False)

    rows = compared_logits(*(next_tokens(m, prompts, batch_size) for m in models.values()))
    rows += compared_replies(replies("float32"), replies("bfloat16"))
    rows += compared_projections(models, prompts, batch_size)
    ids = [work.batches(m.sites.encoder.ids(few), batch_size) for m in models.values()]
    bare = [lambda i=i, m=m: work.forward(m._module, ids[i]) for i, m in enumerate(models.values())]
    rows += [_timed("forward, bfloat16 / float32", ratio(bare[1], bare[0], repetitions))]
    rows += [
        _timed(
            "replies, bfloat16 / float32", ratio(lambda: replies("bfloat16"), lambda: replies("float32"), repetitions)
        )
    ]
    sizes = [sum(p.numel() * p.element_size() for p in m._module.parameters()) / 1e6 for m in models.values()]
    rows += [Row("memory of the weights", f"{sizes[0]:.0f} MB in float32, {sizes[1]:.0f} MB in bfloat16")]
    print(f"{model}: {len(prompts)} prompts, replies to {len(few)}; torch {torch.__version__}, "
          f"{torch.backends.cpu.get_cpu_capability()}, {_multiplies()}, one thread\n")  # fmt: skip
    print("| question | answer |\n|---|---|")
    for row in rows:
        print(f"| {row.question} | {row.answer} |")


def _timed(question: str, found: Ratio) -> Row:
    return Row(
        question,
        f"{found.median:.2f} ({found.low:.2f} – {found.high:.2f}); {found.seconds:.1f} s over {found.reference:.1f} s",
    )


def _multiplies() -> str:
    """Whether the processor multiplies bfloat16 by itself."""
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.is_file() else ""
    found = [name for name in ("amx_bf16", "avx512_bf16") if name in text]
    return f"bfloat16 by {', '.join(found)}" if found else "no bfloat16 arithmetic that /proc/cpuinfo names"


if __name__ == "__main__":
    app()
