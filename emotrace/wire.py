"""Wire: keys that a header can hold, addresses without their passwords, and redirects that stay where they are.

Texts and keys go to the address that the user gave and nowhere else, whatever answers there says.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urljoin, urlsplit, urlunsplit

from emotrace import secrets
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    import httpx

Origin = tuple[str, str, int]


class ElsewhereError(EmotraceError):
    """A server sends the client on to another one."""


@dataclass(frozen=True)
class WebAddress:
    """Where requests go.

    Attributes:
        url: without user, password, query and fragment: it may be shown and kept.
        query: what is added to every request.
        basic: value of the ``Authorization`` header that user and password become, if any.
    """

    url: str
    query: dict[str, str]
    basic: str | None

    def __repr__(self) -> str:
        return f"WebAddress({self.url!r})"

    @property
    def place(self) -> str:
        """Host and path."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}{parts.path}"

    @classmethod
    def of(cls, url: str, what: str, example: str) -> WebAddress:
        """The parts of a URL; what is secret in it is masked from now on.

        Args:
            url: as the user gave it.
            what: what it is, for the message.
            example: one that would do.

        Raises:
            EmotraceError: for what is no URL of the web.
        """
        url = url.strip()
        secrets.remember_url(url)
        if origin(url) is None:
            raise EmotraceError(f"{what}={url!r} is no URL of the web; it must look like {example}.")
        parts = urlsplit(url)
        user, at, netloc = parts.netloc.rpartition("@")
        name, _, password = user.partition(":")
        pair = f"{unquote(name)}:{unquote(password)}".encode()
        shown = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
        return cls(shown, dict(parse_qsl(parts.query)), f"Basic {base64.b64encode(pair).decode()}" if at else None)

    def stay(self, moved: str) -> str:
        """Where a redirect leads, refused unless it is the same server, or the same host by TLS.

        Raises:
            ElsewhereError: names both.
        """
        with suppress(ValueError):
            moved = urljoin(self.url + "/", moved)
        here, there = origin(self.url), origin(moved)
        if there != here and not (here and there and here[0] == "http" and there == ("https", here[1], 443)):
            where = "no address of the web" if there is None else "{}://{}:{}".format(*there)
            raise ElsewhereError(
                f"{self.url} sends its requests on to {where}; neither text nor key goes there. Give that address itself if "
                "you trust it."
            )
        return moved

    def guard(self, request: httpx.Request) -> None:
        """A hook for every request of an HTTP client that follows redirects."""
        self.stay(str(request.url))


def origin(url: str) -> Origin | None:
    """Scheme, host and port of a URL; None for what is no URL of the web."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def key(value: str | None, name: str) -> str:
    """A key as a header can hold it, masked from now on; empty where there is none.

    Args:
        value: the key; blanks around it, such as the line break of a file, are not part of it.
        name: where it comes from.

    Raises:
        EmotraceError: for a key with a character other than the printable ones of ASCII; it does not show the key.
    """
    found = secrets.Hidden(value or "")
    value = None
    check_key(found, name)
    return found.reveal()


def check_key(key: secrets.Hidden, name: str) -> None:
    """Refuse a key that no header can hold.

    Args:
        key: masked from now on.
        name: where it comes from.

    Raises:
        EmotraceError: for a character other than the printable ones of ASCII; it does not show the key.
    """
    secrets.remember(key.reveal())
    if not all("!" <= character <= "~" for character in key.reveal()):
        raise EmotraceError(f"{name} holds a character that no key has: a blank, a line break, or one outside ASCII.")
