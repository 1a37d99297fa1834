"""nnsight's inner parts that `emotrace.traced.inner` uses: what they are relied on for, so that a change there has a name."""

import json

import nnsight
import pytest

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
