"""Jobs: the table, continuing, refusing other settings, several processes."""

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emotrace import bundles
from emotrace.datasets.goemotions import LabelledText
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning import Recipe, jobs, tune_all, tuned_prompts, workers
from emotrace.prompt_tuning.jobs import COLUMNS
from emotrace.testing import tiny
from tests.helpers import loaded

RECIPE = Recipe(length=2, words=("-", "+"), epochs=1)


def rows(part, n):
    names = ("joy", "anger", "fear")
    return [LabelledText(f"{part}{i}", f"{part} {'abc'[i % 3]} {i}", (names[i % 3],)) for i in range(n)]


TEXTS = {"train": rows("a", 18), "dev": rows("d", 9), "test": rows("t", 9)}


def run(out, model=None, emotions=("joy", "fear"), seeds=(1, 2), recipe=RECIPE, **options):
    model = loaded("roberta") if model is None else model
    return tune_all(model, TEXTS, emotions, seeds, recipe, out=out, progress=False, **options)


def test_every_job_has_a_row_and_a_folder(tmp_path):
    dry = tune_all.plan(loaded("roberta"), TEXTS, ("joy", "fear"), (1, 2), RECIPE, out=tmp_path)
    assert dry["state"].tolist() == ["waiting"] * 4
    assert not any(tmp_path.iterdir())
    table = run(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert table[["emotion", "seed"]].to_numpy().tolist() == [["joy", 1], ["joy", 2], ["fear", 1], ["fear", 2]]
    assert set(table["state"]) == {"done"}
    assert table["n_train"].tolist() == [12] * 4
    prompts = tuned_prompts(tmp_path)
    for row in table.to_dict("records"):
        scores = prompts[row["emotion"], row["seed"]].scores
        assert scores["test"] == {"accuracy": row["test_accuracy"], "n": row["n_test"]}
    assert pd.read_csv(tmp_path / "jobs.csv").to_dict("records") == table.to_dict("records")


def test_the_same_command_continues(tmp_path, monkeypatch):
    done: list[str] = []
    real = jobs.tune

    def noted(model, task, recipe):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.emotion)
        return real(model, task, recipe)

    monkeypatch.setattr(jobs, "tune", noted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert pd.read_csv(tmp_path / "jobs.csv")["state"].tolist() == ["done", "done", "waiting", "waiting"]
    before = {f: f.read_bytes() for f in tmp_path.glob("joy*/*")}
    done.clear()
    table = run(tmp_path)
    assert done == ["fear", "fear"]
    assert set(table["state"]) == {"done"}
    assert table["seconds"].notna().all()
    assert all(f.read_bytes() == data for f, data in before.items())
    whole = tmp_path / "other"
    monkeypatch.setattr(jobs, "tune", real)
    run(whole)
    for key, prompt in tuned_prompts(whole).items():
        np.testing.assert_array_equal(prompt.vectors, tuned_prompts(tmp_path)[key].vectors)


def test_several_processes_do_the_same(tmp_path):
    source = tiny.save("roberta", tmp_path / "model")
    table = run(tmp_path / "two", str(source), seeds=(1,), processes=2)
    assert table["state"].tolist() == ["done", "done"]
    run(tmp_path / "one", str(source), seeds=(1,))
    for key, prompt in tuned_prompts(tmp_path / "one").items():
        np.testing.assert_allclose(prompt.vectors, tuned_prompts(tmp_path / "two")[key].vectors, atol=1e-6)


def test_what_cannot_be_tuned_is_refused_before_anything_is(tmp_path):
    cases = [
        ({"emotions": ("joy", "rage")}, "unknown emotion 'rage'"),
        ({"emotions": "joy"}, "a list of names"),
        ({"emotions": ("joy", "joy")}, "occurs twice"),
        ({"recipe": replace(RECIPE, words=("no", "yes"))}, "'no' is no single token"),
        ({"recipe": replace(RECIPE, length=500)}, "no room for text"),
        ({"processes": 2}, "give its directory or hub id"),
        ({"processes": 0}, "at least 1"),
    ]
    for options, message in cases:
        with pytest.raises(EmotraceError, match=message):
            run(tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_prompts_of_other_settings_are_not_mixed(tmp_path):
    run(tmp_path, emotions=("joy",), seeds=(1,))
    with pytest.raises(EmotraceError, match="epochs: 1 there, 2 now"):
        run(tmp_path, emotions=("joy",), seeds=(1,), recipe=replace(RECIPE, epochs=2))
    with pytest.raises(EmotraceError, match="weights_hash: "):
        run(tmp_path, loaded("roberta", seed=3), emotions=("joy",), seeds=(1,))
    file = tmp_path / "joy-1" / "prompt.json"
    told = {**json.loads(file.read_text()), "task": "another"}
    file.write_text(json.dumps(told))
    with pytest.raises(EmotraceError, match="does not say what was written"):
        run(tmp_path, emotions=("joy",), seeds=(1,))
    del told[bundles.CONTENT]  # as an earlier version wrote it
    file.write_text(json.dumps(told))
    with pytest.raises(EmotraceError, match="task: 'another' there"):
        run(tmp_path, emotions=("joy",), seeds=(1,))


def test_a_folder_without_prompts_is_said_to_have_none(tmp_path):
    with pytest.raises(EmotraceError, match="holds no soft prompts"):
        tuned_prompts(tmp_path)


def test_a_worker_ends_with_the_run_that_it_works_for():
    ours, theirs = os.pipe(), multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:  # a worker that is busy for ever
        os.close(ours[0])
        theirs[1].close()
        threading.Thread(target=workers._end_with, args=(theirs[0],), daemon=True).start()
        os.write(ours[1], b"!")
        time.sleep(60)
        os._exit(0)
    assert os.read(ours[0], 1) == b"!"
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    theirs[1].close()
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 1


def test_labels_that_cannot_be_folders_are_refused_before_anything_is_tuned(tmp_path):
    texts = {p: [replace(t, labels=("a/b",)) if "joy" in t.labels else t for t in some] for p, some in TEXTS.items()}
    with pytest.raises(EmotraceError, match="cannot be the name of a file"):
        tune_all(tmp_path / "no model", texts, ["fear", "a/b"], [0], RECIPE, out=tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []
