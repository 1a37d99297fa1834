"""nnsight's inner parts that `emotrace.traced.inner` uses: what they are relied on for, so that a change there has a name."""

import ast
import json
from pathlib import Path

import nnsight
import pytest

import emotrace
from emotrace.traced import inner
from tests.helpers import loaded


def test_a_block_of_a_trace_knows_its_rows():
    model = loaded()
    assert inner.worker() is None
    assert inner.block_rows() == (0, 0, 0)
    with model.trace() as tracer:
        with tracer.invoke([[3, 4, 5]]):
            _ = model.model.layers[0].output
            first = nnsight.save(inner.block_rows())
        with tracer.invoke([[3, 4, 5], [6, 7, 8]]):
            _ = model.model.layers[0].output
            second = nnsight.save(inner.block_rows())
    assert (first, second) == ((3, 0, 1), (3, 1, 2)), (
        "nnsight's Mediator.current, .interleaver.batcher.total or .batch_group changed: flattened modules need a block's rows"
    )


def test_a_worker_counts_how_often_a_place_was_passed_and_can_keep_a_note():
    model = loaded()
    with model.trace([[3, 4, 5]]):
        before = nnsight.save(inner.worker().occurrence("model.layers.0.output"))
        _ = model.model.layers[0].output
        after = nnsight.save(inner.worker().occurrence("model.layers.0.output"))
        inner.worker().emotrace_base = "noted"
        noted = nnsight.save(inner.worker().emotrace_base)
    assert (type(before), noted) == (int, "noted"), "nnsight's Mediator takes no attribute of ours"
    assert after >= before, "nnsight's Mediator.occurrence changed: resid_mid could take another pass's resid_pre"


def test_requests_call_a_model_as_they_were_told(monkeypatch):
    def asked(*_args, **_kwargs):
        pytest.fail("nnsight asks the Hub: huggingface._ID_CACHE is no longer where it keeps names")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    model = loaded()
    assert inner.called("no/such-model") is None
    inner.call(model.repo_id, "Some/Name")
    try:
        assert json.loads(model._remoteable_model_key())["repo_id"] == inner.called(model.repo_id) == "Some/Name"
    finally:
        inner.huggingface._ID_CACHE.pop(model.repo_id)


INNER = {
    "nnsight": {"traced/inner.py", "testing/ndif_server/inner.py"},
    "xarray.core": {"store/laziness.py"},
}
PROMISED = ("nnsight.schema",)
"""What requests and their answers look like, which servers of other releases read."""


def test_inner_parts_of_others_are_taken_in_one_module_each():
    root, found = Path(emotrace.__file__).parent, {name: set() for name in INNER}
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in INNER:
                inside = [m for m in modules if f"{m}.".startswith(f"{name}.") and not m.startswith(PROMISED)]
                if any(m != "nnsight" for m in inside):
                    found[name].add(file.relative_to(root).as_posix())
    assert found == INNER
