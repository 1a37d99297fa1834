"""Stages: generate, judge, capture, directions, steer – from file to file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.cli.app import app
from emotrace.cli.options import Count, Device, Dtype, Limit, Model, Store, layer_list, names, no_folder, span
from emotrace.labels import EMOTIONS, SITES, EmotraceError, unknown
from emotrace.labels import emotion as label_of


@app.command()
def generate(
    model: Model,
    data: Annotated[Path, typer.Option(help="SEV file")],
    out: Annotated[Path, typer.Option(help="JSON-lines file; rows in it are not generated again")],
    instruction: Annotated[bool, typer.Option(help="put 'Always reply in {emotion}.' into the prompt")] = True,
    emotions: Annotated[str, typer.Option(help="comma-separated")] = ",".join(EMOTIONS),
    limit: Limit = None,
    max_new_tokens: Count = 60,
    batch_size: Count = 32,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Replies of a model to SEV prompts."""
    import emotrace as et

    no_folder(out)
    prompts = et.datasets.sev(data, emotions=names(emotions), instruction=instruction, limit=limit)
    rows = et.generate(
        et.load(model, device=device, dtype=dtype), prompts, max_new_tokens=max_new_tokens, batch_size=batch_size,
        method="prompt" if instruction else "none", out=out,
    )  # fmt: skip
    typer.echo(f"{len(rows)} replies in {out}")


@app.command()
def judge(
    rows: Annotated[Path, typer.Argument(help="JSON-lines file of replies")],
    out: Annotated[Path, typer.Option(help="JSON-lines file of judged replies")],
    judge: Annotated[str, typer.Option(help="lexicon | classifier:HF_ID_OR_DIR | openai[:MODEL]")] = "lexicon",
    target_aware: Annotated[bool, typer.Option(help="ask the published target-aware question as well")] = False,
    label_map: Annotated[str | None, typer.Option(help="of a classifier: LABEL_0=anger,LABEL_1=none")] = None,
    price: Annotated[str | None, typer.Option(help="dollars per million prompt,completion tokens")] = None,
) -> None:
    """Which emotion each reply expresses, judged blind."""
    from emotrace import judges
    from emotrace.datasets import read_jsonl
    from emotrace.runlog import IDENTITY, Log, write_rows

    the_judge = judges.make(judge, **judges.flags(label_map, price))
    replies = []
    for where, row in read_jsonl(rows):
        for name in ("key", "gen_text", "emotion"):
            if not isinstance(row.get(name), str):
                raise EmotraceError(
                    f"{where}: a reply to judge has the text field {name!r}; this row has: {', '.join(row)}."
                )
        replies.append(row)
    if not replies:
        raise EmotraceError(f"{rows} has no rows.")
    identity = IDENTITY if all("method" in r for r in replies) else ("key",)  # published rows name no method
    with Log(out.with_name(out.name + ".verdicts"), identity) as log:
        judged = judges.judge_rows(replies, the_judge, log=log, target=target_aware)
    write_rows(out, judged)
    matches = [r["verdict"]["match"] for r in judged if r["verdict"]["match"] is not None]
    share = f"{sum(matches) / len(matches):.1%} of {len(matches)}" if matches else "none"
    typer.echo(f"{share} express the emotion asked for ({len(judged) - len(matches)} unjudged)")
    usage = getattr(the_judge, "usage", None)
    if usage:
        typer.echo(f"usage: {json.dumps(usage)}")
    typer.echo(f"{len(judged)} verdicts in {out}")


@app.command()
def capture(
    model: Model,
    data: Annotated[Path, typer.Option(help="SEV file")],
    out: Annotated[Path, typer.Option(help="zarr store to write or to continue")],
    sites: Annotated[
        str, typer.Option(help="comma-separated; `emotrace sites` lists what a model has")
    ] = "resid_mid,resid_post",
    positions: Annotated[str, typer.Option(help="last | generated | steer | prompt | all | START:STOP")] = "last",
    replies: Annotated[Path | None, typer.Option(help="rows of `emotrace generate`, to follow the prompts")] = None,
    instruction: Annotated[bool, typer.Option(help="put 'Always reply in {emotion}.' into the prompt")] = True,
    limit: Limit = None,
    batch_size: Count = 32,
    dry_run: Annotated[bool, typer.Option(help="say rows, bytes and free disk; do nothing")] = False,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Activations of SEV prompts into a labelled store."""
    import emotrace as et
    from emotrace.datasets import read_jsonl

    chosen, where = names(sites), span(positions)
    for site in chosen:
        if site not in SITES:
            raise unknown("site", site, SITES, "--sites")
    if not chosen:
        raise EmotraceError(f"--sites {sites!r} names no site.")
    prompts = et.datasets.sev(data, instruction=instruction, limit=limit)
    if replies is not None:
        prompts = prompts.with_replies(row for _, row in read_jsonl(replies))
    done = et.capture(
        et.load(model, device=device, dtype=dtype), prompts, chosen, positions=where, out=out,
        batch_size=batch_size, dry_run=dry_run,
    )  # fmt: skip
    typer.echo(str(done))


@app.command()
def directions(
    store: Store,
    out: Annotated[Path, typer.Option(help="folder for directions.safetensors and its manifest")],
    rows: Annotated[Path | None, typer.Option(help="judged replies: only the accepted ones count")] = None,
    label: str = "emotion",
    within: Annotated[str, typer.Option(help="comma-separated labels that are centred away")] = "skeleton_id,valence",
) -> None:
    """Context-agnostic directions from a store."""
    import emotrace as et
    from emotrace.datasets import read_jsonl

    accepted = None
    if rows is not None:
        judged = []
        for where, row in read_jsonl(rows):
            if "key" not in row or not ("verdict" in row or "judge" in row):
                raise EmotraceError(f"{where}: a judged reply has a key and a verdict; run `emotrace judge` first.")
            judged.append(row)
        methods = {str(r.get("method", "")) for r in judged}
        if len(methods) > 1:
            raise EmotraceError(f"{rows} holds replies of several methods ({', '.join(sorted(methods))}); keep one.")
        accepted = et.directions.accepted(judged)
        if not accepted:
            raise EmotraceError(f"{rows}: the judge accepted none of {len(judged)} replies.")
    acts = et.open_activations(store)
    found = et.directions.centered_mean(acts, label=label, within=tuple(names(within)), accepted=accepted)
    et.directions.save(found, out)
    typer.echo(f"{dict(found.sizes)} from {found.attrs['n_groups']} groups in {out}")


@app.command()
def steer(
    prompts: Annotated[list[str], typer.Argument(help="what to reply to")],
    model: Model,
    directions: Annotated[Path, typer.Option(help="folder that `emotrace directions` wrote")],
    emotion: Annotated[str, typer.Option(help="label of the direction")],
    layers: Annotated[str | None, typer.Option(help="e.g. 2-4 or 1,3; default the middle half")] = None,
    dose: Annotated[float, typer.Option(help="size of each addition as a share of the activation's norm")] = 0.3,
    site: str = "resid_post",
    system: Annotated[str | None, typer.Option(help="system message; default none")] = None,
    max_new_tokens: Count = 60,
    sample: Annotated[bool, typer.Option(help="sample instead of taking the likeliest token")] = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    seed: int = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Baseline and steered replies, side by side."""
    import emotrace as et

    if not sample and (temperature, top_p, top_k) != (1.0, 1.0, 0):
        raise EmotraceError("--temperature, --top-p and --top-k need --sample.")
    if not math.isfinite(dose):
        raise EmotraceError(f"--dose {dose} is not a finite number.")
    wanted = layer_list(layers) if layers is not None else None
    dirs = et.directions.load(directions)
    label = str(dirs.attrs.get("label", "emotion"))
    if label not in dirs.dims:
        raise EmotraceError(
            f"{directions} has the dims {', '.join(map(str, dirs.dims))}, and no {label!r} to choose from."
        )
    known = [str(n) for n in dirs[label].values]
    aim = label_of(emotion, known, str(directions)) if label == "emotion" else emotion
    if aim not in known:
        raise unknown(label, aim, known, str(directions))
    for dim, asked in (("layer", wanted or []), ("sublayer", [site])):
        held = dirs[dim].values.tolist() if dim in dirs.dims else asked
        for value in asked:
            if value not in held:
                raise unknown(dim, value, held, str(directions))
    lm = et.load(model, device=device, dtype=dtype)
    n = lm.sites.n_layers
    chosen = wanted or list(range(n // 4, max(n // 4 + 1, (3 * n) // 4)))
    vector, strength = dirs.sel({label: aim}), dose * math.sqrt(lm.sites.d_model)
    edit = et.Add(site, layers=chosen, vector=vector, strength=strength, scale="rms")
    turns = [
        ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": p}] for p in prompts
    ]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sample, "seed": seed, "progress": False}
    if sample:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    plain = et.generate(lm, turns, **options)
    steered = et.generate(lm, turns, [edit], **options)
    for text, a, b in zip(prompts, plain, steered, strict=True):
        typer.echo(f"prompt:   {text}\nbaseline: {a['gen_text']}\n{aim + ':':<10}{b['gen_text']}\n")
