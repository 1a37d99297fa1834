"""Does a server of NDIF's kind give what the same model gives here? To be run before a release, with an ordinary key.

```
export NDIF_API_KEY=…
python experiments/check_ndif.py --model openai-community/gpt2
```

It compares captures, edits at every site, replies, scores and influence, prints a line for each, and ends with 1 if any fails.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from emotrace.cli.guard import experiment
from emotrace.cli.options import place
from emotrace.labels import EmotraceError


def main(
    model: Annotated[str, typer.Option(help="hub id that the server has")] = "openai-community/gpt2",
    remote: Annotated[str, typer.Option(help="ndif, or a URL")] = "ndif",
    here: Annotated[str | None, typer.Option(help="the same model here; --model by default")] = None,
    dtype: Annotated[str | None, typer.Option(help="of the model here; that of the server by default")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="deviation allowed of numbers, relative to the largest")
    ] = 0.05,
    replies: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of replies of a set that may differ")] = 0.34,
) -> None:
    """Compare a model on a server with the same model here."""
    import emotrace as et
    from emotrace.testing import worlds

    where = place(remote)
    if where in (False, "local"):
        raise EmotraceError("--remote says which server is checked: ndif, or a URL.")
    there = et.load(model, remote=where)
    local = et.load(here or model, dtype=dtype or there.sites.identity["dtype"])
    typer.echo(there.sites.describe())
    began, failed = time.perf_counter(), 0
    for what, deviation in worlds.measured(local, there).items():
        allowed = max(worlds.TOLERANCES[what], replies if what in ("generation", "edits") else tolerance)
        failed += deviation > allowed
        typer.echo(
            f"{'FAILS' if deviation > allowed else 'holds'}  {what}: deviates by {deviation:.2g}, allowed {allowed:.2g}"
        )
    typer.echo(f"{failed} fail; {there.sites.remote.traffic}, {time.perf_counter() - began:.1f} s")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    experiment(main)
