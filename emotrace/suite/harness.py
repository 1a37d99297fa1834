"""Harness: EleutherAI's lm-evaluation-harness on a model with edits (extra ``bench``).

```python
results = lm_eval.simple_evaluate(model=harness.adapter(model, edits), tasks=["truthfulqa_mc1"])
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt
from emotrace.edits import Edit
from emotrace.forwards.generated import first_of
from emotrace.forwards.generation import generate
from emotrace.forwards.likelihood import Scores, check_scored, continued, reply_scores
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.templates import Encoder


class Instance(Protocol):
    """A request of the harness."""

    args: tuple[Any, ...]


def adapter(
    model: LanguageModel,
    edits: Sequence[Edit] | None = None,
    *,
    batch_size: BatchSize = 32,
    max_new_tokens: int = 256,
    progress: bool = False,
) -> Any:
    """A model of lm-evaluation-harness that carries edits: ``loglikelihood``, ``loglikelihood_rolling``, ``generate_until``.

    Likelihoods are those of `likelihood.reply_scores`: the edits act at the last prompt token and every token of a
    continuation. Rolling likelihoods start after one BOS (without one, after the first token), which then is the prompt.

    Args:
        model: from `emotrace.load`, causal.
        edits: positions ``steer`` or ``all``; None for the model as it is.
        batch_size: sequences per forward.
        max_new_tokens: where a task does not say.
        progress: show bars.

    Raises:
        EmotraceError: where lm-eval is not installed, or for edits that would miss a scored position.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found]
    except ImportError:
        raise EmotraceError("the harness needs lm-eval: pip install 'emotrace[bench]'.") from None
    some = list(edits or [])
    check_scored(some)
    encoder = model.sites.encoder

    def scored(prompts: list[Prompt]) -> list[Scores]:
        return reply_scores(model, prompts, some, batch_size, progress)

    class Edited(LM):
        """The edited model, as lm-eval asks a model."""

        def loglikelihood(self, requests: Sequence[Instance], **_: object) -> list[tuple[float, bool]]:
            """(Σ ln p of the continuation, whether greedy decoding would give it) of each (context, continuation)."""
            prompts = []
            for i, request in enumerate(requests):
                context, continuation = _moved(*request.args)
                if context:
                    prompts.append(continued(model, Prompt(str(i), text=context), continuation, str(i)))
                else:
                    prompts.append(_rolling(encoder, continuation, str(i)))
            return [(float(s.logprobs.sum()), bool(s.likeliest.all())) for s in scored(prompts)]

        def loglikelihood_rolling(self, requests: Sequence[Instance], **_: object) -> list[float]:
            """Σ ln p of each whole text."""
            prompts = [_rolling(encoder, request.args[0], str(i)) for i, request in enumerate(requests)]
            return [float(s.logprobs.sum()) for s in scored(prompts)]

        def generate_until(self, requests: Sequence[Instance], **_: object) -> list[str]:
            """Greedy replies, each cut before the first of its stop texts."""
            out: list[str] = [""] * len(requests)
            groups: dict[int, list[int]] = {}
            for i, request in enumerate(requests):
                options = request.args[1]
                if options.get("do_sample") or options.get("temperature"):
                    raise EmotraceError("the harness asks for sampling; this adapter decodes greedily.")
                groups.setdefault(int(options.get("max_gen_toks", max_new_tokens)), []).append(i)
            for most, which in groups.items():
                prompts = [Prompt(str(i), text=requests[i].args[0]) for i in which]
                rows = generate(model, prompts, some, max_new_tokens=most, batch_size=batch_size, progress=progress)
                for i, row in zip(which, rows, strict=True):
                    until = requests[i].args[1].get("until") or []
                    out[i] = _cut(row["gen_text"], [until] if isinstance(until, str) else until)
            return out

    return Edited()


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the continuation, as in the harness's own models."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _rolling(encoder: Encoder, text: str, key: str) -> Prompt:
    """A whole text as a reply to its first token: the BOS where there is one, unless the model was loaded without."""
    ids = encoder.ids([Prompt(key, text=text)])[0]
    bos = getattr(encoder.tokenizer, "bos_token_id", None)
    if bos is not None and ids[0] != bos and encoder.bos is not False:
        ids = [bos, *ids]
    if len(ids) < 2:
        raise EmotraceError(f"the text {text!r} has no token that another one predicts.")
    return Prompt(key, token_ids=tuple(ids[:1]), reply_ids=tuple(ids[1:]))


def _cut(text: str, until: Sequence[str]) -> str:
    return text[: first_of(text, [stop for stop in until if stop])]
