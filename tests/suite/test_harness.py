"""lm-evaluation-harness under edits: it agrees with our MC1 and MC2 on a local task file."""

import json

import numpy as np
import pytest

import emotrace as et
from emotrace.datasets import read_truthfulqa
from emotrace.labels import EmotraceError
from emotrace.suite import harness, truthful
from tests.helpers import loaded
from tests.suite.test_truthful import FILE, pushed

ABSENT = "lm-eval is not installed (extra: bench)"
TASK = """
task: local_truthfulqa_mc1
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE}}
output_type: multiple_choice
validation_split: validation
test_split: null
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: 0
doc_to_choice: "{{mc1_targets.choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with pytest.raises(EmotraceError, match=r"emotrace\[bench\]"):
        harness.adapter(loaded())


def test_a_text_is_cut_before_the_first_stop_and_blanks_move():
    assert harness._cut("one two\nthree.", ["\n", "two"]) == "one "
    assert harness._cut("one", ["\n", ""]) == "one"
    assert harness._moved("Answer: ", "yes") == ("Answer:", " yes")


@pytest.mark.parametrize("steered", [False, True])
def test_the_harness_agrees_with_ours_on_a_local_task_file(tmp_path, steered):
    lm_eval = pytest.importorskip("lm_eval", reason=ABSENT)
    questions = read_truthfulqa(FILE, "multiple_choice")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in json.loads(FILE.read_text())))
    (tmp_path / "task.yaml").write_text(TASK.replace("FILE", str(tmp_path / "data.jsonl")))
    lm = loaded()
    edits = pushed() if steered else []
    ours = truthful.multiple_choice(lm, questions, edits, progress=False)
    tasks = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=harness.adapter(lm, edits), tasks=["local_truthfulqa_mc1"], task_manager=tasks, bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    samples = sorted(found["samples"]["local_truthfulqa_mc1"], key=lambda s: s["doc_id"])
    assert found["results"]["local_truthfulqa_mc1"]["acc,none"] == np.mean([row["mc1"] for row in ours])
    for sample, row in zip(samples, ours, strict=True):
        theirs = [float(answer[0][0]) for answer in sample["resps"]]
        np.testing.assert_allclose(theirs, row["loglikelihoods"]["mc1"], rtol=1e-4)


def test_rolling_likelihood_and_replies_under_edits(tmp_path):
    instance = pytest.importorskip("lm_eval.api.instance", reason=ABSENT).Instance
    lm = loaded()
    one = harness.adapter(lm, pushed())
    requests = [
        instance(request_type="generate_until", doc={}, arguments=(text, {"until": ["q"], "max_gen_toks": 6}), idx=0)
        for text in ("Hello", "So it goes")
    ]
    plain = et.generate(lm, ["Hello", "So it goes"], pushed(), max_new_tokens=6, progress=False)
    assert one.generate_until(requests) == [harness._cut(row["gen_text"], ["q"]) for row in plain]
    rolling = instance(request_type="loglikelihood_rolling", doc={}, arguments=("Hello",), idx=0)
    ids = lm.sites.encoder.ids(["Hello"])[0]
    wanted = et.scoring.perplexity(lm, [{"token_ids": ids[:1], "reply_ids": ids[1:]}])[0]
    (bare,) = harness.adapter(lm).loglikelihood_rolling([rolling])
    assert bare == pytest.approx(-np.log(wanted) * (len(ids) - 1), rel=1e-4)
