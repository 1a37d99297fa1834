"""Secrets: the keys and passwords of this process, masked wherever text is shown or kept.

A server may repeat a key in whatever it answers, cut, wrapped, in capitals or encoded; a URL may hold a password. So the text of
others, and every command line, goes through `redacted` on its way out; all messages of `EmotraceError` do.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

KEY: Final = "[key]"
PASSWORD: Final = "[password]"
WINDOW: Final = 8
"""So many characters of a secret in a row are masked. A shorter key, such as a local endpoint's ``none``, is a word."""
SHORTEST: Final = 4
"""Length from which a password is masked as a word by itself; within a URL it always is."""
LOGGERS: Final = (
    *(f"httpx{v}" for v in ("", "2")),
    *(f"httpcore{v}.{part}" for v in ("", "2") for part in ("connection", "http11", "http2", "proxy", "socks")),
    *(f"openai.{part}" for part in ("_base_client", "_legacy_response", "_response")),
)
"""Who logs requests and answers."""

_HOLDS_KEY = re.compile(r"(^|_)(API_?KEY|ACCESS_?KEY|SECRET_?KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_QUERY_KEY = re.compile(
    r"([?&;](?:api[-_]?key|key|token|access[-_]token|auth|password|passwd|pwd|secret|sig|signature"
    r"|x-amz-(?:signature|credential|security-token))=)([^&;\s'\"<>]+)",
    re.IGNORECASE,
)
_IN_URL = (
    (re.compile(r"(://[^\s/:@'\"<>]*:)(?!\d+(?:[/?#\s'\"]|$))[^\s'\"<>]*(?=@)"), PASSWORD),
    (re.compile(r"(://)[^\s/:@'\"<>]{8,}(?=@)"), KEY),  # a token in the place of the user
    (re.compile(r"((?:^|[\s'\"=(,])[\w.+-]+:)(?!//)[^\s:/@'\"<>]+(?=@[\w\[])"), PASSWORD),  # no scheme
    (_QUERY_KEY, KEY),
)
_PIECE = re.compile(r"\s+|\\+[nrt]|.", re.DOTALL)
_given: dict[str, str] = {}


class Hidden:
    """A secret that shows its mark wherever it is printed, and goes into no file.

    Args:
        text: the secret; blanks around it, such as the line break of a file, are not part of it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text.strip()

    def __repr__(self) -> str:
        return KEY

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is kept in memory only")

    def reveal(self) -> str:
        """The secret itself."""
        return self._text

    def masked(self, text: str) -> str:
        """A text without it, however short it is."""
        return re.sub(rf"(?<!\w){re.escape(self._text)}(?!\w)", KEY, text) if self._text else text


def remember(secret: str, mark: str = KEY) -> None:
    """Have `redacted` know a secret that was given by an argument or a file of settings."""
    if secret:
        _given[secret] = mark


def remember_url(url: str) -> None:
    """Have `redacted` know what is secret in a URL: its password, and keys in its query."""
    for secret in _passwords(url):
        remember(secret, PASSWORD)
    for found in _QUERY_KEY.finditer(url):
        remember(unquote_plus(found[2]))


def redacted(text: str) -> str:
    """The text without secrets: those remembered or in the environment, in whatever form, and those that URLs in it hold."""
    for pattern, mark in _IN_URL:
        text = pattern.sub(rf"\g<1>{mark}", text)
    known = {**_environment(), **_given}
    for secret, mark in known.items():
        if mark == PASSWORD and SHORTEST <= len(secret) < WINDOW:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", mark, text)
    grams = _grams(tuple((secret, mark) for secret, mark in known.items() if len(secret) >= WINDOW))
    return _masked(text, grams) if grams else text


def command_line() -> str:
    """The command of this process, as a manifest may keep it."""
    return redacted(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def mask_logs() -> None:
    """Have what the HTTP clients log go through `redacted`."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_mask_record)  # added once, however often


def _mask_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), None
    return True


def _environment() -> dict[str, str]:
    """Secrets in the environment: variables named after them, and passwords in URLs, such as a proxy's."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if _HOLDS_KEY.search(name) and len(value) >= WINDOW:
            found[value.strip()] = KEY
        elif "://" in value and "@" in value:
            found |= dict.fromkeys(_passwords(value), PASSWORD)
    return found


def _passwords(url: str) -> list[str]:
    """The password of a URL as it stands there, decoded, and as the header that it becomes; of a lone user the same."""
    try:
        user, colon, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    except ValueError:
        return []
    plain = unquote(password if colon else user)
    basic = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode("utf-8", "replace")).decode()
    return [secret for secret in (password if colon else user, plain, basic) if plain and secret]


@lru_cache(maxsize=32)
def _grams(known: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Every run of `WINDOW` characters of every form of the secrets → what stands in its place."""
    found: dict[str, str] = {}
    for secret, mark in known:
        for form in _forms(secret):
            letters = "".join(letter for letter, _, _ in _pieces(form))
            for i in range(len(letters) - WINDOW + 1):
                found.setdefault(letters[i : i + WINDOW], mark)
    return found


def _forms(secret: str) -> list[str]:
    """How a secret may be written."""
    raw = secret.encode("utf-8", "surrogatepass")
    forms = [
        secret,
        quote(raw, safe=""),
        quote_plus(raw),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        repr(raw)[2:-1],
    ]
    forms += [raw.hex(), raw.decode("latin-1")]
    for before, cut in ((0, 0), (1, 2), (2, 3)):  # within a longer text in base64 it begins at any of three places
        coded = base64.b64encode(b"\0" * before + raw).rstrip(b"=").decode()[cut:-1]
        forms += [coded, coded.replace("+", "-").replace("/", "_")]
    return list(dict.fromkeys(forms))


class _Letter(NamedTuple):
    """A character in small letters, and where in the text it, or its escape, begins and ends."""

    letter: str
    start: int
    end: int


class _Span(NamedTuple):
    """What is masked of a text, and the mark that takes its place."""

    start: int
    end: int
    mark: str


def _pieces(text: str) -> list[_Letter]:
    """The characters of a text without blanks and their escapes, each with its place."""
    found = ((m[0], m.start(), m.end()) for m in _PIECE.finditer(text))
    return [_Letter(c.lower() if c.isascii() else c, i, j) for c, i, j in found if len(c) == 1 and not c.isspace()]


def _masked(text: str, grams: dict[str, str]) -> str:
    pieces = _pieces(text)
    letters = "".join(piece.letter for piece in pieces)
    spans: list[_Span] = []
    for i in range(len(letters) - WINDOW + 1):
        if (mark := grams.get(letters[i : i + WINDOW])) is None:
            continue
        start, end = pieces[i].start, pieces[i + WINDOW - 1].end
        if spans and not text[spans[-1].end : start].strip():
            start, _, mark = spans.pop()
        spans.append(_Span(start, end, mark))
    for start, end, mark in reversed(spans):
        text = text[:start] + mark + text[end:]
    return text
