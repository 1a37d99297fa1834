import pytest

from emotrace import secrets, wire
from emotrace.labels import EmotraceError


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(secrets, "_given", {})


def test_an_address_is_shown_without_its_secrets():
    found = wire.WebAddress.of(" http://me:p%40ss@host:81/v1/?api_key=abcdefgh1 ", "remote", "http://h")
    assert (found.url, found.query) == ("http://host:81/v1", {"api_key": "abcdefgh1"})
    assert found.basic == "Basic bWU6cEBzcw=="
    assert repr(found) == "WebAddress('http://host:81/v1')"
    assert secrets.redacted("p@ss abcdefgh1") == "[password] [key]"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "ftp://me:hunter22@h",
        "http://",
        "http://me:hunter22/x@h",
        "http://[me:hunter22@h",
        "me:hunter22@h",
    ],
)
def test_what_is_no_address_is_refused_without_its_password(url):
    with pytest.raises(EmotraceError, match=r"remote=.* is no URL of the web; it must look like http://h") as caught:
        wire.WebAddress.of(url, "remote", "http://h")
    assert "hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("moved", ["/v1/", "http://host:81/x", "x?y"])
def test_a_redirect_may_stay(moved):
    wire.WebAddress.of("http://HOST:81/v1", "remote", "").stay(moved)


def test_a_redirect_may_turn_to_tls():
    wire.WebAddress.of("http://host/v1", "remote", "").stay("https://host/v1")


@pytest.mark.parametrize(
    ("here", "moved"),
    [
        ("http://host:81", "http://host:82/"),
        ("http://host", "http://other/"),
        ("https://host", "http://host/"),
        ("http://host:81", "https://host:82/"),
        ("http://host", "//other/x"),
        ("http://host", "file:///etc/passwd"),
        ("http://host", "http://host@other/"),
    ],
)
def test_a_redirect_may_not_leave(here, moved):
    with pytest.raises(wire.ElsewhereError, match=f"{here} sends its requests on to"):
        wire.WebAddress.of(here, "remote", "").stay(moved)


@pytest.mark.parametrize("value", ["abc\ndefghij", "abcdefghï", "abc defgh", "abcdefgh\x00", "abcdefgh\u200b"])
def test_a_key_that_no_header_holds_is_refused_unseen(value):
    with pytest.raises(EmotraceError, match="NAME holds a character that no key has") as caught:
        wire.key(value, "NAME")
    assert "abc" not in str(caught.value)


def test_blanks_around_a_key_are_not_part_of_it():
    assert wire.key(" abcdefgh\n", "NAME") == "abcdefgh"
    assert wire.key(None, "NAME") == wire.key(" ", "NAME") == ""
