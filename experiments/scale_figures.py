"""How many bytes a capture writes and how long it takes, computed for three sizes of models: the tables of docs/cluster.md.

Nothing is run. Bytes follow from what a row holds; times from two floating-point operations for each parameter and token, at a
share of what a device is said to do, and from what a disk or a bucket takes: what is assumed is printed, and each is a flag.

    python experiments/scale_figures.py
    python experiments/scale_figures.py --flops 1e14 --share 0.3 --writes 2e9
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import typer

from emotrace.store.show import human

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


class Size(NamedTuple):
    """A size of models: parameters, layers, width of the residual stream, width of an MLP."""

    name: str
    parameters: float
    layers: int
    width: int
    neurons: int


SIZES: Final = (
    Size("135 M (SmolLM2-135M)", 0.135e9, 30, 576, 1536),
    Size("3 B (Llama-3.2-3B)", 3.2e9, 28, 3072, 8192),
    Size("70 B (Llama-3.1-70B)", 70.6e9, 80, 8192, 28672),
)
"""Layers and widths as in the published configurations."""
TOKENS: Final = (10**5, 10**7, 10**9)
REPLY: Final = 50
"""Tokens of a reply, over which a mean is taken."""
LABELS: Final = 28


class Kept(NamedTuple):
    """What may be kept of tokens: its name, and bytes of so many tokens of a model whose numbers take ``item`` bytes."""

    name: str
    per_token: float
    fixed: float = 0.0


def kept(size: Size, item: int) -> list[Kept]:
    """The ways to keep activations, from all of them to directions."""
    row = size.width * item
    both, mean = 2 * size.layers * row, 2 * size.layers * size.width * 4 / REPLY
    return [
        Kept("both residual sites and neurons, all layers, every token", both + size.layers * size.neurons * item),
        Kept("both residual sites, all layers, every token", both),
        Kept("one site, one layer, every token", row),
        Kept(f'both residual sites, all layers, `reduce="mean"` over replies of {REPLY}', mean),
        Kept(f"both residual sites, all layers, sums of {LABELS} labels", 0.0, LABELS * 2 * size.layers * size.width * 8),
    ]  # fmt: skip


@app.callback(invoke_without_command=True)
def main(
    flops: Annotated[float, typer.Option(help="floating-point operations a second of one device")] = 312e12,
    share: Annotated[float, typer.Option(help="of them that a forward reaches")] = 0.35,
    writes: Annotated[float, typer.Option(help="bytes a second that the disk or bucket takes from one rank")] = 0.5e9,
    item: Annotated[int, typer.Option(help="bytes of a number as it is stored")] = 2,
) -> None:
    """Print the tables."""
    print(
        f"Assumed: {flops:.3g} FLOP/s a device, of which {share:.0%} are reached; {writes:.3g} bytes/s written by each rank; "
    )
    print(
        f"{item} bytes a number; replies of {REPLY} tokens; {LABELS} labels. Times are of one rank: n ranks take an n-th.\n"
    )
    for size in SIZES:
        print(f"**{size.name}**: {size.layers} layers, width {size.width}\n")
        print("| kept | " + " | ".join(f"{n:,} tokens" for n in TOKENS) + " |")
        print("|---|" + "---|" * len(TOKENS))
        for one in kept(size, item):
            print(f"| {one.name} | " + " | ".join(human(one.per_token * n + one.fixed) for n in TOKENS) + " |")
        forward = [2 * size.parameters * n / (flops * share) for n in TOKENS]
        print("| *forwards take* | " + " | ".join(map(time_, forward)) + " |")
        written = [kept(size, item)[1].per_token * n / writes for n in TOKENS]
        print("| *writing both sites, all layers, takes* | " + " | ".join(map(time_, written)) + " |\n")


def time_(seconds: float) -> str:
    """A time in words."""
    for unit, size in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < size:
            return f"{seconds:.2g} {unit}"
        seconds /= size if unit != "h" else 24
    return f"{seconds:.2g} days"


if __name__ == "__main__":
    app()
