"""nnsight's inner parts that the loopback server uses: what they are relied on for, so that a change there has a name."""

import nnsight
import torch

from emotrace.testing.ndif_server import inner
from tests.helpers import loaded


def test_what_a_block_asks_of_its_model_can_go_another_way():
    model, seen = loaded(), []

    def through(event):
        def asked(kind, location, *values):
            seen.append((kind, location))
            found = event(kind, location, *values)
            return torch.zeros_like(found) if isinstance(found, torch.Tensor) else found

        return asked

    before = inner.Mediator.__dict__["event"]
    with inner.exchanged(through), model.trace([[3, 4, 5]]):
        read = nnsight.save(model.model.layers[0].output)
    assert any(kind is inner.Event.VALUE and "layers.0.output" in place for kind, place in seen), (
        f"nnsight's Mediator.event is no longer what a read goes through: {seen}"
    )
    assert not read.any(), "what Mediator.event returns is no longer what a block gets"
    assert inner.Mediator.__dict__["event"] is before


def test_what_a_block_saved_is_known_from_what_it_made():
    def block():
        kept, left = torch.ones(2), torch.ones(2)
        nnsight.save(kept)
        return {"kept": kept, "left": left}

    assert list(inner.saved(block)) == ["kept"], "nnsight.tracing.tracer._saves no longer holds ids between inc and dec"


def test_sources_of_other_blocks_are_forgotten():
    model = loaded()
    with model.trace([[3, 4, 5]]):
        _ = model.model.layers[0].output
    assert inner.BLOCKS or inner.SOURCES, "nnsight.tracing.globals keeps blocks elsewhere"
    inner.forget_blocks()
    assert not inner.BLOCKS
    assert not inner.SOURCES


def test_the_parts_that_a_runner_replaces_are_there():
    for owner, name in (
        (inner.Envoy, "__call__"), (inner.Envoy, "source"), (inner.Envoy, "interleave"), (inner.Meta, "interleave"),
        (inner.InterleavingTracer, "cache"), (inner.Interleaver, "instrument"),
        (inner.Interleaver, "cancel"), (inner.Mediator, "start"), (inner.Mediator, "switch"),
        (inner.Mediator, "wanted"),
    ):  # fmt: skip
        assert hasattr(owner, name), (
            f"nnsight's {owner.__name__} has no {name}: the sandbox of the loopback server replaces it"
        )
