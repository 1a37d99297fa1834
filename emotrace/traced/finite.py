"""Finite: what tells that numbers of a model are no longer numbers, cheaply."""

from __future__ import annotations

import torch

STOPPED = "no finite score"


class Watch:
    """Called by transformers with the scores of the next token; ends a generation in which none of a row can be taken.

    A token that a model rules out has the score −∞; that is a number like others.

    Args:
        width: columns of the prompts.
        ends: tokens that end a reply: what a row is after one of them matters to nobody.
        rows: what the rows are called; None for their numbers.
    """

    def __init__(self, width: int, ends: list, rows: list | None = None) -> None:
        self.width, self.ends, self.rows = width, ends, rows

    def of_rows(self, left: list) -> Watch:
        """The same for some of the rows."""
        return Watch(self.width, self.ends, left if self.rows is None else [self.rows[at] for at in left])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores as they are.

        Raises:
            ArithmeticError: naming the row, and its reply until then.
        """
        best = scores.amax(-1)  # NaN where any score is NaN
        if bool(torch.isfinite(best).all()):
            return scores
        for row, good in enumerate(torch.isfinite(best).tolist()):
            reply = input_ids[row, self.width :].tolist()
            if not good and not any(token in self.ends for token in reply):
                named = row if self.rows is None else self.rows[row]
                raise ArithmeticError(f"{STOPPED}: row {named} after {reply}")
        return torch.where(torch.isfinite(best)[:, None], scores, torch.zeros_like(scores))

    def looked(self, ids: torch.Tensor, steps: list) -> None:
        """The same afterwards, of streams in the place of scores.

        Args:
            ids: of prompts and replies.
            steps: of each token, whether the stream of each row was finite.

        Raises:
            ArithmeticError: as when called.
        """
        for step, rows in enumerate(steps):
            for row, good in enumerate(rows):
                reply = ids[row, self.width : self.width + step].tolist()
                if not good and not any(token in self.ends for token in reply):
                    raise ArithmeticError(
                        f"{STOPPED}: row {row if self.rows is None else self.rows[row]} after {reply}"
                    )


def finite(value: torch.Tensor, rules_out: bool = False) -> bool:
    """Whether all numbers are finite; ``rules_out`` allows −∞, as among logits."""
    if not value.is_floating_point() or not value.numel():
        return True
    ends = torch.stack(torch.aminmax(value.detach()))
    return bool((torch.isfinite(ends) | (ends == -float("inf")) if rules_out else torch.isfinite(ends)).all())
