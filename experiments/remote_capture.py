"""Activations of a model that lives on NDIF, into a store on this computer.

Only configuration and tokenizer are needed here. What leaves this computer: token ids, what to read, and the source of
`emotrace.traced`. What comes back: the rows that are stored, once.

```
export NDIF_API_KEY=…
python experiments/remote_capture.py --model meta-llama/Llama-3.1-70B-Instruct --data data/sev.jsonl --out runs/70b --dry-run
python experiments/remote_capture.py --model meta-llama/Llama-3.1-70B-Instruct --data data/sev.jsonl --out runs/70b
```

The same command again continues: jobs that are on their way are asked for their results, not sent again.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from emotrace.cli.guard import experiment
from emotrace.cli.options import BatchSize, Bos, DryRun, Folder, Limit, Model, SevFile, names, place, span
from emotrace.defaults import BATCH_SIZE
from emotrace.labels import EmotraceError


def main(
    model: Model,
    data: SevFile,
    out: Folder,
    remote: Annotated[str, typer.Option(help="ndif, a URL, or local (here, packed as for a server)")] = "ndif",
    sites: Annotated[str, typer.Option(help="comma-separated")] = "resid_mid,resid_post",
    positions: Annotated[str, typer.Option(help="last | prompt | all | START:STOP")] = "last",
    limit: Limit = None,
    batch_size: BatchSize = BATCH_SIZE,
    bos: Bos = None,
    dry_run: DryRun = False,
) -> None:
    """Capture the activations of SEV prompts on a server."""
    import emotrace as et

    where = place(remote)
    if where is False:
        raise EmotraceError("--remote says where the model lives: ndif, a URL, or local.")
    prompts = et.datasets.sev(data, limit=limit)
    lm = et.load(model, bos=bos, remote=where)
    typer.echo(lm.sites.describe())
    began = time.perf_counter()
    do = et.capture.plan if dry_run else et.capture
    wanted = names(sites), span(positions)
    typer.echo(
        str(do(lm, prompts, wanted[0], positions=wanted[1], out=out / "activations.zarr", batch_size=batch_size))
    )
    if not dry_run:
        typer.echo(f"{lm.sites.remote.traffic}, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    experiment(main)
