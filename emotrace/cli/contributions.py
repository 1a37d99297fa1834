"""Contributions: what neurons and heads contribute, of a model and prompts, or of stored activations without a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from emotrace.cli.app import app
from emotrace.cli.groups import LoadingAnywhere, PromptFile, grouped
from emotrace.cli.options import (
    BatchSize,
    DataOrNone,
    Directions,
    DirectionsOrNone,
    Folder,
    Limit,
    MessagesColumn,
    Model,
    ModelOrNone,
    Rows,
    TextColumn,
    accepted_keys,
    labelled,
)
from emotrace.defaults import BATCH_SIZE
from emotrace.files import to_folder
from emotrace.labels import POLICIES, EmotraceError, unknown

if TYPE_CHECKING:
    import xarray as xr

    from emotrace.store import Activations

T = TypeVar("T")
By = Annotated[str, typer.Option(help="rank by contrast (with the other labels) or by mean")]
Top = Annotated[int, typer.Option(min=1, help="components printed for each label")]
Readout = Annotated[
    str | None, typer.Option(help="of heads: residual (default), or normed (as published: the input of the MLP)")
]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What components are scored on: a model and prompts, or a store and covectors; and where the scores go."""

    model: ModelOrNone = None
    data: DataOrNone = None
    text_column: TextColumn = None
    messages_column: MessagesColumn = None
    directions: DirectionsOrNone = None
    store: Annotated[
        Path | None,
        typer.Option(
            "--from", help="an activation store in the place of --model, --data and --directions; with --covectors"
        ),
    ] = None
    covectors: Annotated[Path | None, typer.Option(help="folder that `emotrace covectors` wrote")] = None
    where: Annotated[
        str, typer.Option(help="of --from: labels that rows must have, e.g. 'theme=Work/Job;position=last;layer=0,1'")
    ] = ""
    out: Folder
    rows: Rows = None
    limit: Limit = None
    batch_size: BatchSize = BATCH_SIZE

    def ask(
        self,
        function: Callable[..., T],
        loading: LoadingAnywhere,
        options: dict[str, Any],
        head_readout: str | None = None,
    ) -> T:
        """What a function of both spellings says.

        Args:
            function: e.g. `emotrace.attribution.head_contributions`.
            loading: of the model, if it is one.
            options: further arguments.
            head_readout: of heads; None for the function's own, or the covectors'.
        """
        to_folder(self.out, "--out")
        given = {"--model": self.model, "--data": self.data, "--directions": self.directions}
        if self.store is None:
            missing = [flag for flag, value in given.items() if value is None]
            if missing or self.covectors is not None or self.where:
                raise EmotraceError(
                    f"give --model, --data and --directions ({', '.join(missing) or 'without --covectors and --where'}), or "
                    "--from STORE and --covectors FOLDER."
                )
            assert self.model is not None
            prompts, dirs, label = self._prompts()
            options = options | {"label": label, "accepted": accepted_keys(self.rows, prompts.table)}
            options |= {"batch_size": self.batch_size, "out": self.out} | (
                {} if head_readout is None else {"head_readout": head_readout}
            )
            return function(loading.load(self.model), prompts, dirs, **options)
        of_prompts = {
            "--limit": self.limit, "--text-column": self.text_column, "--messages-column": self.messages_column,
        }  # fmt: skip
        extra = [
            flag for flag, value in {**given, **of_prompts, "--head-readout": head_readout}.items() if value is not None
        ]
        if extra or self.covectors is None:
            raise EmotraceError(
                f"--from {self.store}: give --covectors, and neither model nor prompts"
                + (f" (leave out {', '.join(extra)})." if extra else ".")
            )
        from emotrace.attribution import load_scores
        from emotrace.store import open_activations

        acts = chosen(open_activations(self.store), self.where)
        accepted = accepted_keys(self.rows, acts.tokens)
        return function(acts, load_scores(self.covectors, "covectors"), accepted=accepted, out=self.out, **options)

    def _prompts(self) -> tuple[Any, xr.DataArray, str]:
        assert self.directions is not None
        assert self.data is not None
        dirs, label = labelled(self.directions)
        file = PromptFile(
            data=self.data, text_column=self.text_column, messages_column=self.messages_column, limit=self.limit
        )
        return file.told_apart(dirs, label), dirs, label


def chosen(acts: Activations, where: str) -> Activations:
    """Activations narrowed to ``LABEL=VALUE[,VALUE];LABEL=…``; ``position`` also takes a policy, or ``START:STOP``.

    Raises:
        EmotraceError: for a text of another form, or as `Activations.where`.
    """
    labels: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in where.split(";"))):
        name, equal, text = part.partition("=")
        if not equal or not text or name in labels:
            raise EmotraceError(f"--where {part!r}: give LABEL=VALUE[,VALUE], each label once, with ; between them.")
        if name == "position" and text in POLICIES:
            labels[name] = text
        elif name == "position" and ":" in text:
            start, _, stop = text.partition(":")
            labels[name] = (_number(start), _number(stop))
        else:
            words = (name in acts.columns and acts.column(name).dtype == object) or name == "sublayer"
            labels[name] = [value if words else _number(value) for value in text.split(",")]
    return acts.where(**labels) if labels else acts


def _number(text: str) -> int | float | str:
    """A number where it is one; what is none is refused with the labels that there are."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@app.command()
@grouped
def covectors(
    *,
    model: Model,
    directions: Directions,
    out: Folder,
    head_readout: Readout = None,
    loading: LoadingAnywhere,
) -> None:
    """What directions are to neurons and heads: all that `neurons`, `heads` and `circuit` --from a store need of a model."""
    import emotrace as et
    from emotrace.attribution.head_sums import READOUTS

    one_of(head_readout or "residual", READOUTS, "--head-readout")
    to_folder(out, "--out")
    dirs, label = labelled(directions)
    found = et.attribution.covectors(
        loading.load(model), dirs, label=label, head_readout=head_readout or "residual", out=out
    )
    typer.echo(f"{dict(found.sizes)} in {out}")


@app.command()
@grouped
def neurons(*, asked: Scoring, by: By = "contrast", top: Top = 5, loading: LoadingAnywhere) -> None:
    """What each MLP neuron contributes to its layer's directions."""
    from emotrace.attribution import neuron_contributions

    one_of(by, ("contrast", "mean"), "--by")
    found = asked.ask(neuron_contributions, loading, {})
    _print_best(found, by, top)
    typer.echo(f"{dict(found.sizes)} in {asked.out}")


@app.command()
@grouped
def heads(
    *, asked: Scoring, head_readout: Readout = None, by: By = "contrast", top: Top = 5, loading: LoadingAnywhere
) -> None:
    """What each attention head contributes to its layer's directions."""
    from emotrace.attribution import head_contributions
    from emotrace.attribution.head_sums import READOUTS

    one_of(by, ("contrast", "mean"), "--by")
    one_of(head_readout or "residual", READOUTS, "--head-readout")
    found = asked.ask(head_contributions, loading, {}, head_readout)
    _print_best(found, by, top)
    typer.echo(f"{dict(found.sizes)} in {asked.out}")


def one_of(value: str, choices: Collection[str], flag: str) -> None:
    """Refuse another value than the choices of a flag."""
    if value not in choices:
        raise unknown("choice", value, choices, flag)


def _print_best(found: xr.Dataset, by: str, top: int) -> None:
    """The components with the highest scores of each label, over all layers."""
    label, _, feature = found[by].dims
    scores = found[by].to_series()
    typer.echo(f"highest {by} (layer.{feature} score)")
    for value in found[label].values.tolist():
        best = scores.xs(value, level=label).nlargest(top)
        shown = (f"{layer}.{i} {score:+.4g}" for (layer, i), score in zip(best.index, best, strict=True))
        typer.echo(f"{value:<10} " + "  ".join(shown))
