import json
import os
import resource
import signal
import time

import pytest

from emotrace import disk, runlog
from emotrace.labels import EmotraceError


def row(key, **more):
    return {"key": key, "method": "none", "draw": 0, "gen_text": f"ünï\n{key}", **more}


def test_rows_come_back_and_identities_are_known(tmp_path):
    path = tmp_path / "runs" / "g.jsonl"
    with runlog.Log(path) as log:
        log.append(row("a"))
        log.append([row("b"), row("a", method="steer"), {"key": "c", "method": "none"}])
    log = runlog.Log(path)
    assert log.done == {("a", "none", 0), ("b", "none", 0), ("a", "steer", 0), ("c", "none", 0)}
    assert log.rows()[:2] == [row("a"), row("b")]
    assert row("b") in log
    assert row("z") not in log


def test_a_torn_last_line_is_no_row_and_is_cut_off(tmp_path):
    path = tmp_path / "g.jsonl"
    with runlog.Log(path) as log:
        log.append(row("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "b", "met')
    log = runlog.Log(path)
    assert [r["key"] for r in log.rows()] == ["a"]
    log.append(row("b"))
    assert path.read_bytes().startswith(whole)
    assert [r["key"] for r in runlog.Log(path).rows()] == ["a", "b"]
    log.close()


def test_killed_while_appending_it_continues(tmp_path):
    path = tmp_path / "g.jsonl"
    for delay in (0.02, 0.05, 0.1):
        child = os.fork()
        if not child:
            log = runlog.Log(path)
            for i in range(len(log), 100_000):
                log.append(row(str(i)))
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with runlog.Log(path) as log:
        log.append(row("last"))
    keys = [r["key"] for r in runlog.Log(path).rows()]
    assert keys == [*map(str, range(len(keys) - 1)), "last"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"key": "a"\n{}\n', r"g\.jsonl:1 is damaged"),
        ("[1]\n", r":1 is not a row"),
        ('{"key": "a"}\n', "no field 'method'"),
        ('{"key": "a", "method": "none"}\n{"key": "a", "method": "none", "draw": 0}\n', "two rows"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    (tmp_path / "g.jsonl").write_text(text)
    with pytest.raises(EmotraceError, match=message):
        runlog.Log(tmp_path / "g.jsonl")


def test_duplicates_and_second_writers_are_refused(tmp_path):
    path = tmp_path / "g.jsonl"
    with runlog.Log(path, named_by=("key",)) as log:
        log.append({"key": 1})
        with pytest.raises(EmotraceError, match="already"):
            log.append([{"key": 2}, {"key": 1}])
        with pytest.raises(EmotraceError, match="another process"):
            runlog.Log(path, named_by=("key",)).append({"key": 3})
        assert log.rows() == [{"key": 1}]


def test_a_full_disk_keeps_the_rows_before(tmp_path):
    path = tmp_path / "g.jsonl"
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        log = runlog.Log(path)
        log.append(row("a"))
        try:
            log.append(row("b", text="x" * 1000))
        except EmotraceError as error:
            os._exit(0 if "repeat the same command" in str(error) else 1)
        os._exit(2)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 0
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert [r["key"] for r in runlog.Log(path).rows()] == ["a"]


def test_write_json_replaces_whole_files(tmp_path):
    disk.write_json(tmp_path / "x" / "m.json", {"a": "é"})
    disk.write_json(tmp_path / "x" / "m.json", {"a": 2})
    assert json.loads((tmp_path / "x/m.json").read_text()) == {"a": 2}
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["m.json"]


def test_repair_moves_damaged_lines_aside_so_that_the_run_continues(tmp_path):
    path = tmp_path / "g.jsonl"
    with runlog.Log(path) as log:
        log.append([row("a"), row("b"), row("c")])
    whole = path.read_bytes()
    assert runlog.repair_rows(path) == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"{", b"\xff", 1) + lines[2] + b"[" * 20_000 + b"\n[1]\n" + b'{"key"')
    with pytest.raises(EmotraceError, match=r":2 is damaged.*emotrace repair"):
        runlog.Log(path)
    assert runlog.repair_rows(path) == [2, 4, 5, 6]
    assert path.read_bytes() == lines[0] + lines[2]
    assert b'\xff"key": "b"' in (tmp_path / "g.jsonl.damaged").read_bytes()
    with runlog.Log(path) as log:
        log.append([r for r in (row("a"), row("b"), row("c")) if r not in log])
        with pytest.raises(EmotraceError, match="another process"):
            runlog.repair_rows(path)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    with pytest.raises(EmotraceError, match="no file of rows"):
        runlog.repair_rows(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
