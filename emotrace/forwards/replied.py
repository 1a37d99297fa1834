"""Replied: the rows of replies: what made each, and those of a file that the same made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from emotrace import disk
from emotrace.datasets import Prompt, Prompts
from emotrace.forwards import decoding as decoding_
from emotrace.forwards import finite
from emotrace.forwards.generated import Generated, text_of
from emotrace.identity import made_by
from emotrace.labels import EmotraceError
from emotrace.replies.row import OWN, Row
from emotrace.runlog import Log
from emotrace.sites import LanguageModel
from emotrace.templates import Encoder

if TYPE_CHECKING:
    from transformers import GenerationConfig


def made(
    model: LanguageModel, items: Sequence[finite.Item], config: GenerationConfig, batches: list[list[int]]
) -> list[dict[str, str]]:
    """Digests of what makes each reply, beside decoding and edits; sampled ones depend on the stream of their batch."""
    forced = {n: v for n in decoding_.OF_THE_MODEL if (v := getattr(config, n, None)) is not None and "forced" in n}
    by = disk.digest([made_by(model), config.eos_token_id, *([forced] if forced else [])])
    given = [[list(item.ids), list(item.reply)] if item.reply else list(item.ids) for item in items]
    made = [{"prompt": disk.digest(one), "model": by} for one in given]
    for number, batch in enumerate(batches):
        stream = disk.digest([number, [[given[i], items[i].about] for i in batch]])
        for i in batch:
            made[i]["batch"] = stream
    return made


def known(
    log: Log | None, prompts: Prompts, method: str, draw: int, settings: dict[str, Any], made: list[dict[str, str]],
    encoder: Encoder,
) -> dict[str, Row]:  # fmt: skip
    """Rows of this method and draw that a log holds already, each made of what is wanted now and left as it was written."""
    if log is None:
        return {}
    number = {p.key: i for i, p in enumerate(prompts)}
    wanted = (r for r in log.rows() if r["key"] in number and log.name_of(r) == (r["key"], method, draw))
    known = [cast("Row", row) for row in wanted]
    for batch in (False, True):  # the prompt that is another one is named before those that shared its batch
        for row in known:
            i = number[row["key"]]
            name = f"row {row['key']!r} ({method}{f', draw {draw}' if draw else ''})"
            now = {k: v for k, v in made[i].items() if batch or k != "batch"}
            disk.same_row(log.path, row, {**settings, **now}, name)
            told, labels = ({k: v for k, v in of.items() if k not in OWN} for of in (row, prompts[i].labels))
            disk.settle(log.path, {"labels": told}, {"labels": labels}, what=name)
            _refuse_changed(row, encoder, f"{log.path}: {name}")
    return {row["key"]: row for row in known}


def _refuse_changed(row: Row, encoder: Encoder, where: str) -> None:
    """Refuse a row whose text and token ids are not of one reply: somebody wrote into the file."""
    ids = row.get("token_ids")
    whole = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
    if not whole or row.get("gen_text") != text_of(encoder, ids or [], row["meta"]["decoding"].get("stop", ())):
        raise EmotraceError(
            f"{where} was changed after it was written: its gen_text is not what its token_ids say. Take the line out, and it "
            "is generated again."
        )


def row(prompt: Prompt, reply: Generated, item: finite.Item, method: str, draw: int, settings: dict) -> Row:
    """A reply as a row."""
    begun = {"prefill": len(item.reply)} if item.reply else {}
    row = {
        "key": prompt.key,
        "method": method,
        "draw": draw,
        **{k: v for k, v in prompt.labels.items() if k not in OWN},
        "gen_text": reply.text,
        "token_ids": list(reply.token_ids),
        "meta": {"prompt_length": len(item.ids), **begun, "stopped": reply.stopped, **settings},
    }
    return cast("Row", row)
