"""Failures: what an endpoint says instead of an answer, be it in the status line or in a body that came with 200.

Endpoints, and routers before them, word errors in many ways: OpenAI's ``error``, FastAPI's ``detail``, Google's lists, codes that
are numbers, words or both, errors within a choice or within the text of another error. All are read for the same four
things: what kind of failure it is, which options it names, how long to wait, and what to tell the user.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from emotrace.judges.retries import retry_after, seconds_in, seconds_said
from emotrace.texts import from_json

Kind = Literal["key", "hopeless", "again", "text", "request"]
"""A refused key; nothing to be had here (credits, no such model); to be sent again; this text will not be judged; this request is
not taken as it is."""

AGAIN: Final = (408, 409, 425, 429)
KEY: Final = (401, 403)
HOPELESS: Final = (402, 404, 405, 410)
_PARTS: Final = 2000
_CODES: Final = ("code", "status", "status_code", "http_status", "http_code", "error_code", "type", "reason")
_NAMING: Final = ("param", "params", "parameter", "loc", "field", "fields", "path", "argument", "property", "pointer")
_SAYING: Final = ("message", "msg", "detail", "error", "description", "error_message", "title", "errors", "reason", "")
_WAITING: Final = (
    "retry_after", "retry_after_ms", "retry_after_seconds", "retry_delay", "retry_in", "retry_in_seconds", "estimated_time",
)  # fmt: skip
_WORDS: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    ("text", re.compile(
        r"content_filter|content_polic|content_management|responsible_?ai|context_length|context_window|context_size"
        r"|string_above_max|moderation|flagged|safety|data_inspection|prompt_blocked|(prompt|input|message)_(is_)?too_l|too_many_tokens"
    )),
    ("hopeless", re.compile(
        r"insufficient_(quota|credit|balance|fund)|payment_required|billing_|credit_balance|out_of_credit|no_credit|arrearage"
        r"|exceeded_your_current_quota"
    )),
    ("again", re.compile(
        r"rate_?limit|too_many_requests|resource_exhausted|throttl|overload|unavailable|time_?out|timed_out|deadline|server_error"
        r"|internal_error|internal$|api_error|loading|capacity|busy|try_again|slow_down|bad_gateway"
    )),
    ("key", re.compile(
        r"(invalid|incorrect|missing|expired|wrong|revoked|bad|no)_(auth_|access_|valid_|your_)*(api_?key|auth_?key|access_key|token(?!s)|credential)"
        r"|(api_?key|token(?!s)|credentials?)_(is_|was_|has_|been_|not_)*(invalid|missing|expired|revoked|wrong|valid|required)"
        r"|unauthori|unauthenticated|authentication|permission_(denied|error)|^forbidden|access_denied|not_logged_in|log_?in_(required|first|to)"
    )),
    ("hopeless", re.compile(
        r"(model|deployment|engine|route)_(\w+_)?(not_found|not_exist)|^not_found|unknown_model|no_such_model"
    )),
    ("request", re.compile(
        r"invalid_(request|arg|param|value|input|type)|bad_request|unsupported|unknown_(name|param|arg|field|option|key)|unrecogni"
        r"|not_supported|unexpected_(param|arg|field|option|key|keyword)|not_permitted|extra_|validation|unprocessable"
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """What went wrong.

    Attributes:
        kind: what is to be done about it (`Kind`).
        why: for the user: the code and what was said.
        wait: seconds that were asked for.
        unsure: neither code nor words say what kind it is, so that it is sent again.
    """

    kind: Kind
    why: str
    wait: float | None
    unsure: bool
    _named: tuple[str, ...]
    _said: str
    _keys: frozenset[str]

    def names(self, options: Mapping[str, Collection[str]]) -> list[str]:
        """Options that the failure blames: those it names in a field for it, else the first that its words mention.

        Args:
            options: each option with the words that mean it.
        """
        parts = {part for name in self._named for part in re.split(r"\W+", name.lower())}
        if found := [option for option, words in options.items() if parts & {option, *words}]:
            return found
        places = {
            option: min(
                (
                    m.start()
                    for w in (option, *words)
                    if (m := re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", self._said))
                ),
                default=-1,
            )
            for option, words in options.items()
        }
        said = sorted((option for option, at in places.items() if at >= 0), key=lambda option: places[option])[:1]
        return said or [option for option in options if option in self._keys]


def read_failure(status: int, payload: object, headers: Mapping[str, str]) -> Failure:
    """Read an error.

    Args:
        status: of the status line.
        payload: JSON of the body, or of the part of it that is the error; a text where it is none.
        headers: of the answer, keys in small letters.
    """
    leaves = list(_leaves(payload))
    codes = [value for key, value in leaves if key in _CODES]
    numbers = [n for n in map(_number, codes) if n is not None]
    code = status if status >= 300 else numbers[0] if numbers else 0
    words = [_snake(value) for value in codes if isinstance(value, str) and len(value) < 80]
    said = [value for key, value in leaves if key in _SAYING and isinstance(value, str) and value.strip()]
    waits = [
        retry_after(headers),
        *(seconds_in(value, key) for key, value in leaves if key in _WAITING),
        *map(seconds_said, said),
    ]
    word = next((value for value in codes if isinstance(value, str) and _number(value) is None), "")
    about = " ".join(said[:2]) or " ".join(str(value) for _, value in leaves[:6] if isinstance(value, (str, int)))
    kind = _kind(code, words, [_snake(text) for text in said])
    return Failure(
        kind or "again", f"HTTP {code or status} {word} {about}".strip(),
        next((wait for wait in waits if wait is not None), None), kind is None,
        tuple(str(value) for key, value in leaves if key in _NAMING), " ".join(said).lower(),
        frozenset(key for key, _ in leaves),
    )  # fmt: skip


def _kind(code: int, words: list[str], said: list[str]) -> Kind | None:
    """Words are more exact than numbers, and numbers than sentences; a sentence tells refusals of a text, though."""
    by_words: Kind | None = next((kind for kind, pattern in _WORDS if any(map(pattern.search, words))), None)
    text = _WORDS[0][1]
    if by_words in ("hopeless", "key"):
        return by_words
    if by_words == "text" or code == 413 or (code in (400, 403, 422) and any(map(text.search, said))):
        return "text"
    if by_words == "again" and code < 500 and code not in (*KEY, *HOPELESS):
        return "again"
    if code in KEY:
        return "key"
    if code in HOPELESS or 300 <= code < 400:
        return "hopeless"
    if code in AGAIN or code >= 500:
        return "again"
    if code >= 400:
        return "request"
    by_sentence: Kind | None = next((kind for kind, pattern in _WORDS if any(map(pattern.search, said))), None)
    return by_words or by_sentence


def _leaves(payload: object) -> Iterator[tuple[str, Any]]:
    """Values that hold no others, in order, each with the name of its field; JSON within a text is read as well."""
    left, stack = _PARTS, [("", payload)]
    while stack and left:
        left -= 1
        key, value = stack.pop()
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            with suppress(ValueError):
                value = from_json(value)
        if isinstance(value, Mapping):
            stack += [(_snake(str(name)), inner) for name, inner in reversed(list(value.items()))]
        elif isinstance(value, list):
            stack += [(key, inner) for inner in reversed(value)]
        else:
            yield key, value


def _number(value: object) -> int | None:
    """An HTTP code of an error, as a number or as a text."""
    if isinstance(value, str) and re.fullmatch(r"\s*[45]\d\d\s*", value):
        return int(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 400 <= value < 600:
        return None
    return int(value)


def _snake(text: str) -> str:
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)).lower().strip("_")
