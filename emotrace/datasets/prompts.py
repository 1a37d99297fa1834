"""Prompts: model inputs with their labels, as one table."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Annotated, Any, Self, TypeVar, overload

import numpy as np
import pandas as pd
from pandas.api.types import is_scalar

from emotrace import arguments, shown
from emotrace.labels import EmotraceError, Label, unknown
from emotrace.replies.row import check_row, refuse_other_prompt
from emotrace.signatures import typed


@dataclass(frozen=True)
class Prompt:
    """One model input: exactly one of ``messages``, ``text`` and ``token_ids``, with its labels.

    Attributes:
        key: name of the prompt, unique in its set.
        messages: chat messages ``{"role": …, "content": …}``.
        text: plain text, passed to the tokenizer as it is.
        token_ids: ids, passed to the model as they are.
        reply_ids: ids of a reply that follows the prompt (teacher forcing); never re-tokenised.
        labels: what the prompt is about, e.g. ``{"emotion": "anger", "valence": "positive"}``.
    """

    key: str
    messages: tuple[Mapping[str, str], ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    reply_ids: tuple[int, ...] | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("token_ids", "reply_ids"):
            if isinstance(getattr(self, name), np.ndarray):
                object.__setattr__(self, name, tuple(getattr(self, name).tolist()))
        if not isinstance(self.key, str):
            raise EmotraceError(f"prompt {self.key!r}: a key is a text.")
        arguments.encodable("the key of a prompt", self.key)
        if sum(x is not None for x in (self.messages, self.text, self.token_ids)) != 1:
            raise EmotraceError(f"prompt {self.key!r} needs exactly one of messages, text and token_ids.")
        if self.text is not None and not isinstance(self.text, str):
            raise EmotraceError(f"prompt {self.key!r}: text is a string, not {self.text!r}.")
        if not (self.text or self.token_ids or self.messages):
            raise EmotraceError(f"prompt {self.key!r} is empty.")
        for message in self.messages or ():
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(k), str) for k in ("role", "content")
            ):
                raise EmotraceError(f"prompt {self.key!r}: a message is {{'role': …, 'content': …}}, not {message!r}.")
            arguments.encodable(f"prompt {self.key!r}", message["role"] + message["content"])
        arguments.encodable(f"prompt {self.key!r}", self.text or "")
        for name in ("token_ids", "reply_ids"):
            ids = getattr(self, name)
            if type(ids) is tuple and set(map(type, ids)) <= {int} and min(ids, default=0) >= 0:
                continue
            wrong = [i for i in ids or () if isinstance(i, bool) or not isinstance(i, Integral) or i < 0]
            if isinstance(ids, (str, bytes)) or wrong:
                raise EmotraceError(
                    f"prompt {self.key!r}: {name} are integers from 0, not {wrong[0] if wrong else ids!r}."
                )
            if ids is not None:
                object.__setattr__(self, name, tuple(int(i) for i in ids))
        labels = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.labels.items()}
        object.__setattr__(self, "labels", labels)
        for name, value in labels.items():
            if not isinstance(name, str) or not isinstance(value, (str, int, float, type(None))):
                raise EmotraceError(f"prompt {self.key!r}: label {name!r} is {value!r}; labels are texts and numbers.")
            if isinstance(value, str):
                arguments.encodable(f"prompt {self.key!r}, label {name!r}", value)

    def __repr__(self) -> str:
        counted = f"{len(self.messages)} messages" if self.messages is not None else ""
        counted = counted or (f"{len(self.token_ids)} tokens" if self.token_ids is not None else "text")
        reply = "" if self.reply_ids is None else f", reply of {len(self.reply_ids)} tokens"
        labels = "".join(f", {k}={shown.clipped(v)}" for k, v in self.labels.items())
        return f"Prompt({self.key!r}; {counted}{reply}{labels})"

    @property
    def about(self) -> dict[str, Label]:
        """Labels and key: what the payload of an edit may be gathered by."""
        return {"key": self.key, **self.labels}


T = TypeVar("T")


class Ordered(Sequence[T]):
    """Items in an order, of which a slice is a set of the same kind.

    Args:
        items: in order.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = tuple(items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        return type(self)(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)


class Prompts(Ordered[Prompt]):
    """An ordered set of prompts with unique keys.

    Args:
        prompts: at least one prompt.

    Raises:
        EmotraceError: if there are none, or two share a key.
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        super().__init__(prompts)
        if not self._items:
            raise EmotraceError("there are no prompts: the list, the file or the selection is empty.")
        seen: set[str] = set()
        for prompt in self._items:
            if prompt.key in seen:
                raise EmotraceError(f"two prompts have the key {prompt.key!r}; keys are identities.")
            seen.add(prompt.key)

    @classmethod
    def of(cls, source: PromptsLike) -> Prompts:
        """Prompts from whatever says what a prompt is.

        Args:
            source: Prompts; a string; one chat (a list of ``{"role", "content"}``); or a sequence of Prompt, strings, chats,
                token id lists, or mappings with ``key`` (optional), one of ``messages | text | token_ids``, ``reply_ids``
                and labels.
        """
        if isinstance(source, Prompts):
            return source
        if isinstance(source, (str, Prompt)):
            source = [source]
        if isinstance(source, pd.DataFrame):
            source = _rows(source)
        if not isinstance(source, Iterable) or isinstance(source, Mapping):
            raise EmotraceError(
                f"prompts are strings, message lists, token ids or Prompts, not {type(source).__name__}."
            )
        items = list(source)
        if items and all(isinstance(item, Mapping) and set(item) == {"role", "content"} for item in items):
            items = [items]  # one chat, as transformers' pipelines take it
        return cls(_prompt(i, item) for i, item in enumerate(items))

    def __repr__(self) -> str:
        names = ", ".join(self.label_names) or "no labels"
        return f"Prompts({len(self)}; {names})"

    def _repr_html_(self) -> str:
        values = {name: dict.fromkeys(p.labels.get(name) for p in self) for name in self.label_names}
        return shown.html(
            repr(self), {"keys": shown.few(self.keys), **{k: shown.few(list(v)) for k, v in values.items()}}
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys in order."""
        return tuple(p.key for p in self._items)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of all labels, in order of first appearance."""
        return tuple(dict.fromkeys(name for p in self._items for name in p.labels))

    @property
    def table(self) -> pd.DataFrame:
        """One row per prompt: ``key`` and labels."""
        return pd.DataFrame([{"key": p.key, **p.labels} for p in self._items])

    @property
    def digest(self) -> str:
        """Hash of contents, labels and order."""
        digest = hashlib.sha256()
        for p in self._items:
            row = [p.key, [dict(m) for m in p.messages] if p.messages else None, p.text, p.token_ids, p.reply_ids]
            digest.update(json.dumps([*row, dict(p.labels)], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def where(self, **labels: Any) -> Prompts:
        """The prompts whose labels have the given values: one, or several.

        Raises:
            EmotraceError: for a label or a value that no prompt has, or if nothing is left.
        """
        return Prompts(self[i] for i in having([p.labels for p in self], labels, "Prompts.where"))

    def limit(self, n_skeletons: int | None) -> Prompts:
        """The prompts of the first N skeletons, spread evenly over themes; the same for every run."""
        if n_skeletons is None:
            return self
        keep = spread(
            {str(p.labels.get("skeleton_id", p.key)): str(p.labels.get("theme", "")) for p in self}, n_skeletons
        )
        return Prompts(p for p in self if str(p.labels.get("skeleton_id", p.key)) in keep)

    def for_each(self, **labels: Sequence[Label]) -> Prompts:
        """Every prompt once per value of a label, with that label added and the value appended to the key.

        ``plain.for_each(emotion=EMOTIONS)`` gives prompts that do not name an emotion but are labelled with the one an
        edit aims at.
        """
        if len(labels) != 1:
            raise EmotraceError(f"for_each takes one label and its values, not {', '.join(labels) or 'none'}.")
        ((name, values),) = labels.items()
        if isinstance(values, (str, bytes)):
            raise EmotraceError(f"for_each({name}={values!r}) takes a list of values, e.g. [{values!r}].")
        values = list(values)
        twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
        if twice is not None:
            raise EmotraceError(f"for_each({name}={values!r}): {twice!r} occurs twice.")
        return Prompts(
            replace(p, key=f"{p.key}__{value}".replace("/", "_"), labels={**p.labels, name: value})
            for p in self
            for value in values
        )

    def with_replies(self, rows: Iterable[Mapping[str, Any]]) -> Prompts:
        """The prompts that have a row of the same key, each carrying that row's ``token_ids`` as its reply.

        Raises:
            EmotraceError: for a row without ``key`` or ``token_ids``, or with another value of a label than its prompt has, two
                different replies to one key (rows of several methods or draws: choose one first), or if no prompt has a reply.
        """
        replies: dict[str, tuple[int, ...]] = {}
        labels = {p.key: p.labels for p in self}
        for n, row in enumerate(rows, 1):
            for name in ("key", "token_ids"):
                if name not in row:
                    raise EmotraceError(
                        f"reply {n} has no {name!r} (it has: {', '.join(row)}); text is never re-tokenised."
                    )
            check_row(row, f"reply {n}")
            if row["token_ids"] is None or row["key"] is None:
                raise EmotraceError(f"reply {n} has no key or no token_ids; text is never re-tokenised.")
            refuse_other_prompt(row, labels.get(row["key"], {}), f"reply {n}")
            ids = tuple(int(i) for i in row["token_ids"])
            if replies.setdefault(row["key"], ids) != ids:
                raise EmotraceError(f"reply {n}: a second, other reply to {row['key']!r}; choose one method and draw.")
        if not any(p.key in replies for p in self):
            raise EmotraceError(
                f"none of the {len(replies)} replies has a key of these prompts (e.g. {self[0].key!r})."
            )
        return Prompts(replace(p, reply_ids=replies[p.key]) for p in self if p.key in replies)


PromptLike = Prompt | str | Sequence[int] | Sequence[Mapping[str, str]] | Mapping[str, Any]
"""One prompt: text, token ids, chat messages, or a mapping with one of them, a key and labels."""
PromptsLike = Annotated[Prompts | Prompt | str | pd.DataFrame | Iterable[PromptLike], "checked by Prompts.of"]
"""What `Prompts.of` takes."""


def having(labels: Sequence[Mapping[str, Label]], wanted: Mapping[str, Any], place: str) -> list[int]:
    """Which labels have the wanted values: name → one, or several.

    Raises:
        EmotraceError: for a name or a value that none of them has.
    """
    names, sets = dict.fromkeys(name for one in labels for name in one), {}
    for name, value in wanted.items():
        if name not in names:
            raise unknown("label", name, names, place)
        values = [value] if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) else list(value)
        values = [one.item() if isinstance(one, np.generic) else one for one in values]
        known = dict.fromkeys(one.get(name) for one in labels)
        for one in values or [None]:
            if not isinstance(one, Hashable) or one not in known:
                raise unknown(name, one, known, place)
        sets[name] = set(values)
    return [i for i, one in enumerate(labels) if all(one.get(name) in values for name, values in sets.items())]


@typed
def spread(theme_of: Mapping[str, str], n: int) -> set[str]:
    """N names, taken in turn from each theme, in file order.

    Raises:
        EmotraceError: if n < 1.
    """
    arguments.whole("limit", n, 1)
    queues: dict[str, list[str]] = defaultdict(list)
    for name, theme in theme_of.items():
        queues[theme].append(name)
    picked: list[str] = []
    depth = 0
    while len(picked) < min(n, len(theme_of)):
        picked += [queue[depth] for queue in queues.values() if depth < len(queue)]
        depth += 1
    return set(picked[:n])


def _rows(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows of a table; a cell without a value (None, NaN, NA) is no label."""
    given = {"text", "messages", "token_ids"}
    if not given & set(table.columns):
        have = ", ".join(map(str, table.columns)) or "none"
        raise EmotraceError(
            f"a table of prompts has a column text, messages or token_ids: rename one of its columns ({have})."
        )
    rows = table.to_dict("records")
    return [{k: v for k, v in row.items() if k in given or not (is_scalar(v) and pd.isna(v))} for row in rows]


def _prompt(i: int, item: Any) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return Prompt(str(i), text=item)
    if isinstance(item, Mapping):
        row = dict(item)
        content: dict[str, Any] = {k: row.pop(k, None) for k in ("messages", "text", "token_ids", "reply_ids")}
        content = {k: _tuple(v) if isinstance(v, (list, np.ndarray)) else v for k, v in content.items()}
        key = row.pop("key", None)
        key = str(i) if key is None or key != key or key == "" else str(key)  # an empty cell names nothing
        return Prompt(key, **content, labels={k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()})
    if isinstance(item, Sequence) and not isinstance(item, (bytes, bytearray)) and item:
        if isinstance(item[0], Mapping):
            return Prompt(str(i), messages=tuple(item))
        if all(issubclass(kind, (int, np.integer)) for kind in set(map(type, item))):
            return Prompt(str(i), token_ids=_tuple(item))
    raise EmotraceError(f"prompt {i} is {item!r}; give text, chat messages, token ids or a mapping with one of them.")


def _tuple(items: Iterable[Any]) -> tuple[Any, ...]:
    """With Python's numbers in the place of numpy's."""
    found = tuple(items)
    if any(issubclass(kind, np.integer) for kind in set(map(type, found))):
        return tuple(x.item() if isinstance(x, np.integer) else x for x in found)
    return found
