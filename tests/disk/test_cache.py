"""What is kept of a thing in a folder of the user's."""

from emotrace.disk import cache


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    def unknown(_):
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME", cache.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cache.folder() is None
    cache.keep("kind", 1, 2)
    assert cache.known("kind", 1) is None
