"""Command line: every stage from file to file, errors as one line, and Ctrl-C."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import emotrace as et
from emotrace import cli
from emotrace.datasets import read_jsonl
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError
from emotrace.testing import tiny
from tests.cli.forked import Forked

STAGES = (
    "generate", "judge", "capture", "directions", "neurons", "heads", "influence", "circuit", "curves", "steer", "modulate",
    "export", "sites", "info", "verify", "repair", "ls",
)  # fmt: skip


def write_sev(path):
    path.write_text(
        "".join(
            json.dumps(
                {
                    "skeleton_id": f"{t}_0{i}",
                    "theme": t,
                    "scenario": f"I {t} {i}",
                    "event": {v: f"{v} {i}." for v in VALENCES},
                }
            )
            + "\n"
            for t in ("work", "health")
            for i in range(2)
        )
    )
    return path


def run(*args):
    result = CliRunner().invoke(cli.app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a SEV file, and what every stage made of them, in order."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.save("llama", folder / "model")
    data = write_sev(folder / "sev.jsonl")
    common = ("--model", folder / "model", "--data", data, "--limit", 4)
    said = {
        "generate": run("generate", *common, "--out", folder / "rows.jsonl", "--max-new-tokens", 4),
        "judge": run("judge", folder / "rows.jsonl", "--out", folder / "judged.jsonl"),
        "dry": run("capture", *common, "--out", folder / "dry.zarr", "--dry-run"),
        "capture": run("capture", *common, "--out", folder / "acts.zarr"),
        "directions": run("directions", folder / "acts.zarr", "--out", folder / "dirs"),
    }
    return folder, said


def test_generate_writes_one_row_per_prompt_and_continues(place):
    folder, said = place
    rows = [r for _, r in read_jsonl(folder / "rows.jsonl")]
    assert "72 replies in" in said["generate"]
    assert len(rows) == 4 * 3 * 6
    assert {r["method"] for r in rows} == {"prompt"}
    assert {r["emotion"] for r in rows} == set(EMOTIONS)
    before = (folder / "rows.jsonl").read_bytes()
    run("generate", "--model", folder / "model", "--data", folder / "sev.jsonl", "--out", folder / "rows.jsonl",
        "--max-new-tokens", 4)  # fmt: skip
    assert (folder / "rows.jsonl").read_bytes() == before


def test_generate_without_instruction(place):
    folder, _ = place
    out = folder / "none.jsonl"
    run("generate", "--model", folder / "model", "--data", folder / "sev.jsonl", "--out", out, "--no-instruction",
        "--limit", 1, "--max-new-tokens", 2)  # fmt: skip
    rows = [r for _, r in read_jsonl(out)]
    said = run("generate", "--model", folder / "model", "--data", folder / "sev.jsonl", "--out", folder / "dry.jsonl",
               "--limit", 1, "--max-new-tokens", 2, "--dry-run")  # fmt: skip
    assert "18 prompts" in said
    assert "36 new tokens at most" in said
    assert not (folder / "dry.jsonl").exists()
    assert [r["method"] for r in rows] == ["none"] * 3
    assert "emotion" not in rows[0]


def test_judge_adds_a_blind_verdict_to_every_row(place):
    folder, said = place
    rows = [r for _, r in read_jsonl(folder / "judged.jsonl")]
    assert "72 verdicts in" in said["judge"]
    assert all(set(r["verdict"]) == {"predicted", "match", "judge", "reason"} for r in rows)
    assert [r["key"] for r in rows] == [r["key"] for _, r in read_jsonl(folder / "rows.jsonl")]


def test_judge_takes_published_rows_without_a_method(tmp_path):
    rows = [{"key": f"work_00__positive__{e}", "emotion": e, "gen_text": t} for e, t in
            (("anger", "I am furious, this makes me so angry!"), ("fear", "I am terrified and afraid."))]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = run("judge", tmp_path / "r.jsonl", "--out", tmp_path / "j.jsonl")
    assert "100.0% of 2 express the emotion asked for (0 unjudged)" in said
    assert run("judge", tmp_path / "r.jsonl", "--out", tmp_path / "j.jsonl") == said


def test_people_judge_on_sheets(tmp_path):
    rows = [{"key": f"k{i}", "method": "steer", "draw": 0, "emotion": e, "skeleton_id": f"s{i}", "gen_text": t} for i, (e, t) in
            enumerate((("anger", "I am furious!"), ("fear", "I am terrified."), ("joy", "How lovely!")))]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run("judge", tmp_path / "r.jsonl", "--out", tmp_path / "j.jsonl")
    sheet, key = tmp_path / "sheet.csv", tmp_path / "sheet.key.json"
    assert "3 texts" in run("judge", tmp_path / "j.jsonl", "--sheet", sheet, "--seed", 1)
    blank = sheet.read_text("utf-8-sig")
    told = {"I am furious!": "anger", "I am terrified.": "fear", "How lovely!": "happiness"}
    for name, last in (("ann", "happiness"), ("bob", "surprise")):
        answers = {**told, "How lovely!": last}
        lines = [line + answers.get(line.split(",")[1].strip('"'), "") for line in blank.splitlines()]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    filled = ("--from-sheet", tmp_path / "ann.csv", "--from-sheet", tmp_path / "bob.csv")
    said = run("judge", tmp_path / "j.jsonl", *filled, "--key", key, "--out", tmp_path / "people.jsonl")
    for words in (
        "2 annotators, 3 replies",
        "Krippendorff's alpha 0.",
        "with lexicon:v1: Cohen's kappa 1.00",
        "100.0% of 2 express",
    ):
        assert words in said
    assert [r["verdict"]["predicted"] for _, r in read_jsonl(tmp_path / "people.jsonl")] == ["anger", "fear", None]
    for args, word in ((("--sheet", sheet, "--out", sheet), "--out FILE"), (filled, "belong together"), ((), "--out FILE"),
                       (("--sheet", sheet), "may hold answers"), (("--texts", 2, "--out", sheet), "give --sheet")):  # fmt: skip
        with pytest.raises(EmotraceError, match=word):
            run("judge", tmp_path / "j.jsonl", *args)


def test_capture_makes_a_store_and_a_dry_run_makes_none(place):
    folder, said = place
    assert "72 prompts" in said["dry"]
    assert not (folder / "dry.zarr").exists()
    acts = et.open_activations(folder / "acts.zarr")
    assert acts.complete
    assert acts.residual.sizes == {"layer": 3, "sublayer": 2, "token": 72, "dim": 32}


def test_capture_of_replies_and_a_span(place, tmp_path):
    folder, _ = place
    common = ("--model", folder / "model", "--data", folder / "sev.jsonl", "--limit", 1, "--sites", "resid_post,neuron")
    run(
        "capture", *common, "--out", tmp_path / "g.zarr", "--positions", "generated", "--replies", folder / "rows.jsonl"
    )
    acts = et.open_activations(tmp_path / "g.zarr")
    assert acts.variables == ("residual", "neuron")
    kept = [r for _, r in read_jsonl(folder / "rows.jsonl") if r["skeleton_id"] == "work_00"]
    assert len(acts) == sum(len(r["token_ids"]) for r in kept)
    run("capture", *common, "--out", tmp_path / "s.zarr", "--positions", "0:3")
    assert set(et.open_activations(tmp_path / "s.zarr").tokens["position"]) == {0, 1, 2}


def test_directions_of_all_and_of_accepted_replies(place, tmp_path):
    folder, said = place
    assert "12 groups" in said["directions"]
    found = et.directions.load(folder / "dirs")
    assert found.dims == ("emotion", "layer", "sublayer", "dim")
    rows = [
        {**r, "verdict": {"match": int(r["skeleton_id"] == "work_00")}} for _, r in read_jsonl(folder / "rows.jsonl")
    ]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert "3 groups" in run(
        "directions", folder / "acts.zarr", "--out", tmp_path / "d", "--rows", tmp_path / "j.jsonl"
    )


def test_directions_of_another_label_can_steer(place, tmp_path):
    folder, _ = place
    run(
        "directions",
        folder / "acts.zarr",
        "--out",
        tmp_path / "v",
        "--label",
        "valence",
        "--within",
        "skeleton_id,emotion",
    )
    said = run("steer", "Hello", "--model", folder / "model", "--directions", tmp_path / "v", "--emotion", "negative",
               "--max-new-tokens", 2)  # fmt: skip
    assert "negative: " in said


def test_steer_prints_baseline_and_steered_for_every_prompt(place):
    folder, _ = place
    args = ("--model", folder / "model", "--directions", folder / "dirs", "--emotion", "joy", "--max-new-tokens", 6)
    said = run("steer", "Hello you", "Go away", *args, "--layers", "0-1,2", "--dose", "3")
    blocks = [block.splitlines() for block in said.strip().split("\n\n")]
    assert [b[0] for b in blocks] == ["prompt:   Hello you", "prompt:   Go away"]
    assert all(b[1].startswith("baseline: ") and b[2].startswith("happiness:") for b in blocks)
    assert any(b[1][10:].strip() != b[2][10:].strip() for b in blocks)
    assert said != run(
        "steer", "Hello you", "Go away", *args, "--sample", "--temperature", "5", "--system", "Be brief."
    )


def test_sites_info_verify_and_ls(place):
    folder, _ = place
    table = run("sites", folder / "model")
    assert "closure error" in table
    assert all(site in table for site in ("resid_mid", "neuron", "final_norm"))
    assert "attn_pattern" in run("sites", folder / "model", "--attn-implementation", "eager")
    assert json.loads(run("info", folder / "acts.zarr"))["rows"] == 72
    assert "residual" in run("ls", folder / "acts.zarr")
    assert "intact" in run("verify", folder / "acts.zarr")


def test_a_damaged_chunk_ends_verify_with_1_and_is_repaired_by_the_same_capture(place, tmp_path):
    folder, _ = place
    store = tmp_path / "a.zarr"
    capture = ("capture", "--model", folder / "model", "--data", folder / "sev.jsonl", "--limit", 1, "--out", store)
    run(*capture)
    chunk = next((store / "residual" / "residual").glob("c.*"))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1] + b"!")
    result = CliRunner().invoke(cli.app, ["verify", str(store)])
    assert result.exit_code == 1
    assert "1 damaged" in result.stdout
    said = run("repair", store)
    assert "row groups 0 are pending: repeat the command that captured them (" in said
    run(*capture)
    assert chunk.read_bytes() == whole
    assert "intact" in run("repair", store)
    (tmp_path / "rows.jsonl").write_text('{"key": "a"}\n{"key"\n')
    assert "1 damaged lines" in run("repair", tmp_path / "rows.jsonl")
    assert "every line" in run("repair", tmp_path / "rows.jsonl")


def called(monkeypatch, capsys, *args):
    """Exit status, stdout and stderr of the entry point."""
    monkeypatch.setattr("sys.argv", ["emotrace", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (ended.value.code or 0, *capsys.readouterr())


def test_the_entry_point_ends_with_the_status_of_the_command(monkeypatch, capsys, place, tmp_path):
    folder, _ = place
    assert called(monkeypatch, capsys, "ls", folder / "acts.zarr")[0] == 0
    monkeypatch.setattr("emotrace.store.verify", lambda path: ["a chunk"])
    status, said, _ = called(monkeypatch, capsys, "verify", folder / "acts.zarr")
    assert (status, "1 damaged" in said) == (1, True)
    status, said, error = called(monkeypatch, capsys, "info", tmp_path / "absent")
    assert (status, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_what_the_system_refuses_is_one_line_too(monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("emotrace.store.info", refuse)
    assert called(monkeypatch, capsys, "info", "x") == (2, "", "error: [Errno 13] Permission denied: 'x'\n")


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("emotrace.store.info", interrupt)
    assert called(monkeypatch, capsys, "info", "x") == (
        130, "", "interrupted; the same command continues where it stopped\n"
    )  # fmt: skip


def test_an_experiment_has_the_same_manners(monkeypatch, capsys):
    def study(n: int = 1) -> None:
        if n == 2:
            raise EmotraceError("two is\ntoo many.")
        if n == 3:
            raise KeyboardInterrupt

    def needs(n: int) -> None: ...

    def status(*args, of=study):
        monkeypatch.setattr("sys.argv", ["study.py", *args])
        with pytest.raises(SystemExit) as ended:
            cli.experiment(of)
        return ended.value.code or 0, capsys.readouterr().err

    assert status() == (0, "")
    assert status("--n", "2") == (2, "error: two is too many.\n")
    assert status("--n", "3")[0] == 130
    code, error = status("--n", "x")
    assert code == 2
    assert "--n" in error
    assert error.count("\n") == 1

    code, error = status(of=needs)
    assert (code, error.partition(" (see")[0]) == (2, "error: Missing argument 'n'."), "not silence"


def shell(*args):
    return subprocess.run([sys.executable, "-m", "emotrace.cli", *map(str, args)], capture_output=True, text=True)


def test_help_and_one_error_in_a_real_shell(tmp_path):
    done = shell("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(stage in done.stdout for stage in STAGES)
    done = shell("capture", "--model", "x", "--data", tmp_path / "no.jsonl", "--out", tmp_path / "a.zarr")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'no.jsonl'}: no such file.\n"
    assert done.stdout == ""


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_help(stage):
    assert len(run(stage, "--help")) > 100


def test_ctrl_c_while_generating_and_the_same_command_again(place, tmp_path):
    folder, _ = place
    out = tmp_path / "rows.jsonl"
    args = ["generate", "--model", folder / "model", "--data", folder / "sev.jsonl", "--out", out]
    args += ["--limit", "1", "--batch-size", "1", "--max-new-tokens", "8"]
    process = Forked(tmp_path, *args)
    process.interrupt_when(lambda: out.exists() and out.stat().st_size > 0)
    status, _, error = process.end()
    assert status == 130, error
    assert error.rstrip().endswith("interrupted; the same command continues where it stopped")
    assert "Traceback" not in error
    held = len(out.read_text().splitlines())
    assert 0 < held < 18
    run(*args)
    assert len({r["key"] for _, r in read_jsonl(out)}) == 18


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"layer": 1}], "label 'layer' has the name of a dimension"),
        ([{"residual": "x"}], "label 'residual' has the name of a variable"),
        ([{"token_id": 1}], "a label cannot be called 'token_id'"),
        ([{"n": 1}, {"n": "two"}], "label 'n' must be all strings or all numbers; it holds 1"),
    ],
)
def test_labels_that_no_store_holds_are_refused_before_there_is_a_model(tmp_path, rows, message):
    table = tmp_path / "mine.jsonl"
    table.write_text("".join(json.dumps({"text": "a b"} | row) + "\n" for row in rows))
    with pytest.raises(EmotraceError, match=message):
        run("capture", "--model", tmp_path / "no_model", "--data", table, "--out", tmp_path / "a.zarr")


def test_a_label_called_like_a_dimension_of_another_site_is_no_matter(tmp_path):
    table = tmp_path / "mine.jsonl"
    table.write_text(json.dumps({"text": "a b", "head": 1, "z": "x"}) + "\n")
    with pytest.raises(EmotraceError, match="no_model"):
        run("capture", "--model", tmp_path / "no_model", "--data", table, "--out", tmp_path / "a.zarr")
