"""Groups: flags that belong together, declared once as a frozen class, and taken by a command as one parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from emotrace import ranks
from emotrace.cli.options import (
    BatchSize,
    Bos,
    Data,
    Device,
    Dtype,
    Elicit,
    Instruction,
    Judge,
    LabelMap,
    Limit,
    MessagesColumn,
    NewTokens,
    Positions,
    Price,
    RemoteFlag,
    Sample,
    Seed,
    Sites,
    TextColumn,
    TopK,
    finite,
    names,
    place,
    span,
)
from emotrace.defaults import BATCH_SIZE, MAX_NEW_TOKENS
from emotrace.labels import EMOTIONS, SITES, EmotraceError, unknown

if TYPE_CHECKING:
    import xarray as xr

    from emotrace.datasets import Elicitation, Prompts
    from emotrace.judges import Judge as AnyJudge
    from emotrace.sites import LanguageModel

R = TypeVar("R")


def grouped(command: Callable[..., R]) -> Callable[..., R]:
    """Make each field of a command's groups a flag of its own.

    A parameter whose type is a dataclass is a group: the command line (and whoever calls the function) gives its fields, by
    name, and the command gets the object. A group with a default takes the defaults of its flags from it.

    Raises:
        ValueError: where two flags have one name.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    groups: dict[str, Any] = {name: hints[name] for name in own if is_dataclass(hints[name])}
    flags: list[inspect.Parameter] = []
    for name, parameter in own.items():
        whole = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        flags += _flags(groups[name], parameter.default) if name in groups else [whole]
    shape = inspect.Signature(flags, return_annotation=hints.get("return"))

    @wraps(command)
    def run(**given: Any) -> R:
        bound = shape.bind(**given)
        bound.apply_defaults()
        values = dict(bound.arguments)
        taken = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        return command(**values, **taken)

    run.__dict__["__signature__"] = shape
    run.__annotations__ = {p.name: p.annotation for p in flags} | {"return": shape.return_annotation}
    return run


def _flags(group: Any, default: Any) -> Iterator[inspect.Parameter]:
    """The flags of a group, with their defaults."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        value = inspect.Parameter.empty if field.default is MISSING else field.default
        value = value if default is inspect.Parameter.empty else getattr(default, field.name)
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[field.name])


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model whose weights are here is loaded."""

    device: Device = "auto"
    dtype: Dtype = None
    bos: Bos = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `emotrace.load`."""
        return {"device": self.device, "dtype": self.dtype, "bos": self.bos}

    def load(self, model: str, **more: Any) -> LanguageModel:
        """The model, with further arguments of `emotrace.load`."""
        from emotrace import load

        return load(model, **self.options, **more)


@dataclass(frozen=True, kw_only=True)
class LoadingAnywhere(Loading):
    """How a model is loaded whose weights are here or on a server."""

    remote: RemoteFlag = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `emotrace.load`."""
        return {**super().options, "remote": place(self.remote)}


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Which of several processes, that share the work on one ``--out``, this one is."""

    rank: Annotated[
        int | None,
        typer.Option(
            min=0, help="of several processes that share --out: which, from 0; default: as SLURM or torchrun say"
        ),
    ] = None
    of: Annotated[int | None, typer.Option(min=1, help="how many processes share --out")] = None

    @property
    def pair(self) -> tuple[int, int] | None:
        """As functions take it.

        Raises:
            EmotraceError: for one of the two without the other.
        """
        if self.rank is None and self.of is None:
            return None
        if self.rank is None or self.of is None:
            raise EmotraceError("--rank I and --of N belong together: this process is the I-th (from 0) of N.")
        return ranks.checked((self.rank, self.of), "--rank, --of")


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How a study has its prompts answered."""

    max_new_tokens: NewTokens = 40
    batch_size: BatchSize = BATCH_SIZE
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Eliciting:
    """How a study asks for an emotion."""

    elicit: Annotated[
        str,
        typer.Option(
            help="auto (whatever the model takes best on a few training skeletons), instruct (a system message), fewshot (worked "
            "examples, for base models too), or a JSON file"
        ),
    ] = "auto"
    elicit_limit: Annotated[int, typer.Option(min=1, help="training skeletons on which the ways compete")] = 3

    def ways(self, published: bool = False) -> list[Elicitation]:
        """The ways that compete: of a published protocol the published one."""
        from emotrace import datasets

        return datasets.elicitations("instruct" if published and self.elicit == "auto" else self.elicit)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How replies are decoded."""

    max_new_tokens: NewTokens = MAX_NEW_TOKENS
    sample: Sample = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: TopK = 0
    seed: Seed = 0

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `emotrace.generate` but the seed.

        Raises:
            EmotraceError: for what is out of range, and for flags of sampling without ``--sample``.
        """
        from emotrace.forwards.decoding import COLDEST

        for name, value in (("--temperature", self.temperature), ("--top-p", self.top_p)):
            finite(value, name)
        if not self.sample and (self.temperature, self.top_p, self.top_k) != (1.0, 1.0, 0):
            raise EmotraceError("--temperature, --top-p and --top-k need --sample.")
        if self.temperature < COLDEST or not 0 < self.top_p <= 1:
            raise EmotraceError(
                f"--temperature {self.temperature}, --top-p {self.top_p}: a temperature of at least {COLDEST:g}, and --top-p "
                "above 0 and at most 1."
            )
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.sample}
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return found | (drawn if self.sample else {})


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges replies."""

    judge: Judge = "lexicon"
    label_map: LabelMap = None
    price: Price = None

    def make(self) -> AnyJudge:
        """The judge, ready: what it needs has been checked."""
        from emotrace import judges

        return judges.make(self.judge, **judges.flags(self.label_map, self.price))


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Prompts of a SEV file, or of a table of the user's own."""

    data: Data
    instruction: Instruction = None
    elicit: Elicit = None
    text_column: TextColumn = None
    messages_column: MessagesColumn = None
    limit: Limit = None

    @property
    def way(self) -> Elicitation:
        """How a SEV file asks."""
        from emotrace import datasets

        return datasets.elicitation(self.elicit or "instruct")

    def told_apart(self, directions: xr.DataArray, label: str) -> Prompts:
        """Prompts that carry the label of directions: of a SEV file those of their emotions, of a table all rows that have one.

        Raises:
            EmotraceError: as `read`, and for a table without that label.
        """
        if self.is_sev:
            return self.read(",".join(map(str, directions[label].values)) if label == "emotion" else None)
        found = self.read()
        if label not in found.label_names:
            raise unknown("label", label, found.label_names, f"{self.data}, which the directions tell apart")
        return found

    @property
    def is_sev(self) -> bool:
        """Whether the file is one of SEV, or is not there."""
        from emotrace import datasets

        return not self.data.exists() or (
            (self.text_column, self.messages_column) == (None, None) and datasets.is_sev(self.data)
        )

    def read(self, emotions: str | None = None) -> Prompts:
        """The prompts; those of a SEV file with or without its instruction, for the emotions named with commas.

        Raises:
            EmotraceError: for flags of a SEV file beside a table, and whatever the reader of either refuses.
        """
        from emotrace import datasets

        data = self.data
        if self.is_sev:
            chosen = EMOTIONS if emotions is None else names(emotions)
            return datasets.sev(
                data, chosen, instruction=self.instruction is not False, limit=self.limit, elicit=self.way
            )
        for flag, value in (("--instruction", self.instruction), ("--emotions", emotions), ("--elicit", self.elicit)):
            if value is not None:
                raise EmotraceError(f"{flag}: {data} is no SEV file; its prompts are given to the model as they are.")
        return datasets.read_prompts(
            data, text_column=self.text_column, messages_column=self.messages_column, limit=self.limit
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of a model, and where."""

    sites: Sites = "resid_mid,resid_post"
    positions: Positions = "last"
    components: Annotated[
        bool,
        typer.Option(
            "--components", help="what norms behind heads and neurons divide by, too, for scores out of the store"
        ),
    ] = False
    reduce: Annotated[str | None, typer.Option(help="mean: one row per prompt, the mean over its positions")] = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `emotrace.capture`.

        Raises:
            EmotraceError: for no site or an unknown one, and for positions that are none.
        """
        chosen, positions = names(self.sites), span(self.positions)
        for site in chosen:
            if site not in SITES:
                raise unknown("site", site, SITES, "--sites")
        if not chosen:
            raise EmotraceError(f"--sites {self.sites!r} names no site.")
        if self.reduce not in (None, "mean"):
            raise unknown("reduction", self.reduce, ("mean",), "--reduce")
        return {"sites": chosen, "positions": positions, "components": self.components, "reduce": self.reduce}
