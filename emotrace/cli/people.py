"""People: flags of what people judge, on sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emotrace.cli.options import Seed
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    from emotrace.replies.row import Row


@dataclass(frozen=True, kw_only=True)
class People:
    """What people judge, on sheets."""

    sheet: Annotated[
        Path | None,
        typer.Option(help="write a blinded CSV for people instead, and its key beside it; no judge is asked"),
    ] = None
    texts: Annotated[int | None, typer.Option(min=1, help="of a sheet: so many, drawn by lot")] = None
    from_sheet: Annotated[
        list[Path] | None, typer.Option(help="a filled copy of a sheet, once for each annotator; no judge is asked")
    ] = None
    key: Annotated[Path | None, typer.Option(help="of the sheet that was filled")] = None
    seed: Seed = 0

    def refuse(self, out: Path | None) -> None:
        """Refuse flags that do not go together.

        Raises:
            EmotraceError: naming them.
        """
        if self.sheet and self.from_sheet:
            raise EmotraceError("--sheet writes a sheet, --from-sheet reads filled ones: give one of them.")
        if bool(self.from_sheet) != bool(self.key):
            raise EmotraceError(
                "--from-sheet and --key belong together: filled copies, and the key that lay beside the sheet."
            )
        if self.texts and not self.sheet:
            raise EmotraceError(f"--texts {self.texts}: of a sheet; give --sheet FILE.csv too.")
        if (out is None) != bool(self.sheet):
            raise EmotraceError(
                "--out FILE: where judged replies go; it is due, but not with --sheet, which judges nothing."
            )

    def write(self, replies: Sequence[Row]) -> str:
        """Write the sheet; the line that says so."""
        from emotrace import judges
        from emotrace.replies.accuracy import answers_among

        assert self.sheet is not None
        choices = answers_among([row["emotion"] for row in replies], ())
        made = judges.write_sheet(replies, self.sheet, choices=choices, n=self.texts, seed=self.seed)
        return (
            f"{made.n} texts in {made.sheet}: give each annotator a copy, and the answers: {', '.join(choices)}\n"
            f"whose they are: {made.key}, for --key, and not for annotators"
        )

    def read(self, replies: Sequence[Row]) -> tuple[list[Row], str]:
        """Rows with the verdict of most annotators, and what to say of their agreement."""
        from emotrace import judges

        assert self.from_sheet is not None
        assert self.key is not None
        found = judges.read_sheets(self.from_sheet, replies, self.key, seed=self.seed)
        lines = [f"{len(found.annotators)} annotators, {len(found.rows)} replies"]
        if found.alpha is not None:
            lines.append(f"among them: Krippendorff's alpha {found.alpha}")
        lines += [f"with {name}: Cohen's kappa {kappa}" for name, kappa in found.kappa.items()]
        return found.rows, "\n".join(lines)
