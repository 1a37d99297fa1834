"""Planned: functions that can say what they would do before they do it, and what they say then.

The body of such a function is a generator: it checks its arguments, yields once what answers the question, then works and
returns its result::

    @planned
    @typed
    def capture(model: LanguageModel, prompts: PromptsLike, …) -> Steps[DryRows, Activations]:
        …                                   # what is wrong is refused here, by `plan` too
        yield lambda: DryRows(…)            # asked by `plan` alone, so a run does not pay for it
        return …

``capture(…)`` is the result and ``capture.plan(…)`` the `DryRows`, for editors and type checkers too.
"""

from __future__ import annotations

import ast
import functools
import inspect
import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from emotrace import arguments

P = ParamSpec("P")
D = TypeVar("D")
T = TypeVar("T")
D_co = TypeVar("D_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
Steps = Generator[Callable[[], D], None, T]
"""``Steps[D, T]``, what the body of a planned function is: it yields a function that says what would be done."""


@dataclass(frozen=True)
class Dry:
    """What would be done.

    Attributes:
        prompts: that are fed to the model.
    """

    prompts: int


@dataclass(frozen=True)
class DryRows(Dry):
    """What a pass over prompts would do, and keep.

    Attributes:
        rows: that are read: positions of prompts.
        tokens: of all prompts, with their replies.
        bytes: kept or stored.
        row_groups: commits.
        free_disk: bytes at the destination; None without one.
        requests: to a server; None where the model runs here.
    """

    rows: int
    tokens: int
    bytes: int
    row_groups: int
    free_disk: int | None = None
    requests: int | None = None

    def __str__(self) -> str:
        free = "" if self.free_disk is None else f", {self.free_disk / 1e9:.1f} GB free"
        free += "" if self.requests is None else f"; {self.requests} requests, whose answers hold these bytes at most"
        return (
            f"{self.prompts} prompts, {self.tokens} tokens → {self.rows} rows, {self.bytes / 1e6:.1f} MB in "
            f"{self.row_groups} row groups{free}"
        )


@dataclass(frozen=True)
class DryReruns(Dry):
    """What a curve would do.

    Attributes:
        sets: of components.
        reruns: of a prompt (of one token each where that is exact).
    """

    sets: int
    reruns: int

    def __str__(self) -> str:
        return f"{self.prompts} prompts, {self.sets} sets of components: {self.reruns:,} reruns of a prompt"


@dataclass(frozen=True)
class DryPasses(Dry):
    """What an influence would do: of prompts that differ and count for some label.

    Attributes:
        tokens: of all of them.
        labels: backward passes of each batch.
        sublayers: derivatives that each of these gives.
        doses: finite doses.
    """

    tokens: int
    labels: int
    sublayers: int
    doses: int

    @property
    def forwards(self) -> int:
        """Prompts × forwards of the finite doses, the base included; 0 without doses."""
        return self.prompts * self.labels * (1 + self.doses * self.sublayers) if self.doses else 0

    def __str__(self) -> str:
        finite = f"; finite doses: {self.forwards:,} prompts forward" if self.doses else ""
        return (
            f"{self.prompts} prompts, {self.tokens} tokens: one forward and {self.labels} backward passes for "
            f"{self.sublayers} sublayers{finite}"
        )


@dataclass(frozen=True)
class DryReplies(Dry):
    """What answering prompts would do.

    Attributes:
        tokens: of all prompts, with what their replies are begun with.
        new_tokens: that are generated at most.
        batches: generations.
    """

    tokens: int
    new_tokens: int
    batches: int

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts, {self.tokens} tokens → as many replies in {self.batches} batches, {self.new_tokens} new "
            "tokens at most"
        )


@dataclass(frozen=True)
class DryScores(Dry):
    """What scores of components would do, of pairs of prompts.

    Attributes:
        components: that get a score, of every pair.
        forwards: runs of a prompt.
        backwards: of these, runs that are taken back to a slope.
    """

    components: int
    forwards: int
    backwards: int

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts in pairs, {self.components:,} components: {self.forwards:,} runs of a prompt forward, "
            f"{self.backwards:,} of them back"
        )


class Planned(Protocol[P, D_co, T_co]):
    """A function that runs when it is called, and says what it would do when its ``plan`` is."""

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """The result."""
        ...

    def plan(self, *args: P.args, **kwargs: P.kwargs) -> D_co:
        """What would be done with these arguments, which are checked; nothing is run, and no file is made."""
        ...


def planned(body: Callable[P, Steps[D, T]]) -> Planned[P, D, T]:
    """The function whose body a generator is that says what it would do, then does it, with its ``plan``.

    ``dry_run=`` of version 0.1.0 is still answered, with a `FutureWarning`.
    """

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> T:
        if "dry_run" in kwargs:
            asked = arguments.flag("dry_run", kwargs.pop("dry_run"))
            said = f"{run.__name__}(dry_run=True) is now {run.__name__}.plan(…), with the other arguments as they are."
            warnings.warn(said, FutureWarning, stacklevel=2)
            if asked:
                return plan(*args, **kwargs)  # type: ignore[return-value]
        steps = body(*args, **kwargs)
        next(steps)
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        raise AssertionError(f"{run.__name__} says twice what it would do")

    @functools.wraps(body)
    def plan(*args: Any, **kwargs: Any) -> D:
        with closing(body(*args, **kwargs)) as steps:
            return next(steps)()

    said, result = _returned(body)
    plan.__name__, plan.__qualname__ = "plan", f"{run.__qualname__}.plan"
    plan.__doc__ = (
        f"What `{run.__name__}` would do with these arguments (`{said}`); nothing is run, and no file is made."
    )
    for function, returned in ((run, result), (plan, said)):
        function.__annotations__ = {**function.__annotations__, "return": returned}
        function.__signature__ = inspect.signature(body).replace(return_annotation=returned)  # type: ignore[attr-defined]
    run.plan = plan  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def _returned(body: Callable[..., Any]) -> tuple[str, str]:
    """What the annotation ``Steps[D, T]`` of a body says that ``plan`` and the function return."""
    tree = ast.parse(body.__annotations__["return"], mode="eval").body
    assert isinstance(tree, ast.Subscript), "the body returns Steps[D, T]"
    assert isinstance(tree.slice, ast.Tuple), "the body returns Steps[D, T]"
    said, result = tree.slice.elts
    return ast.unparse(said), ast.unparse(result)
