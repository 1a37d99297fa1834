"""What plain nnsight code meets with an ordinary key: its block runs in a process without weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from nnsight.intervention.interleaver import Mediator

from emotrace.testing import tiny
from emotrace.testing.ndif import LoopbackServer, loopback, mint

NAME = "org/tiny-gemma2"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("gemma2", tmp_path_factory.mktemp("models") / "gemma2")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[LoopbackServer]:
    with pytest.MonkeyPatch.context() as patch, loopback({NAME: directory}, execution_timeout=60.0) as server:
        patch.setattr(nnsight.CONFIG.API, "APIKEY", server.key)
        patch.setattr(nnsight.CONFIG.API, "HOST", server.url)
        patch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
        mint({NAME: directory})
        yield server


@pytest.fixture(scope="module")
def local(directory: Path) -> Any:
    return TransformersModel(str(directory), task="text-generation", tokenizer=tiny.tiny_tokenizer(), dispatch=True)


@pytest.fixture(scope="module")
def client(directory: Path) -> Any:
    return TransformersModel(str(directory), task="text-generation", tokenizer=tiny.tiny_tokenizer())


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return dict(tiny.tiny_tokenizer()(["what a day", "so"], return_tensors="pt", padding=True, padding_side="left"))


@pytest.fixture(params=["ordinary", "trusted"])
def world(request: pytest.FixtureRequest, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose key it is."""
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", server.key if request.param == "ordinary" else server.trusted_key)
    return request.param


GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


# --- what is the same ---


def test_reads_swaps_and_edits_in_place_equal_local_ones(
    world: str, server: LoopbackServer, local: Any, client: Any, inputs: Any
) -> None:
    def seen(model: Any, **where: Any) -> list[torch.Tensor]:
        with model.trace(inputs, **where):
            before = model.model.layers[0].mlp.output.clone()
            model.model.layers[0].mlp.output = before * 2
            model.model.layers[1].self_attn.output[0][:, -1] += 1
            kept = nnsight.save([before, model.model.layers[1].output.clone(), model.lm_head.output])
        return kept  # noqa: RET504 - the block's value comes back by its name

    for got, want in zip(seen(client, remote=True), seen(local), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    entry = server.log()[-1]
    assert (entry["crossed"] > 0) is (world == "ordinary")


def test_generation_by_steps_and_rows_of_a_block(world: str, local: Any, client: Any) -> None:
    def replies(model: Any, **where: Any) -> list[Any]:
        with model.generate(**GREEDY, **where) as tracer:
            with tracer.invoke("what a day"):
                norms = nnsight.save([])
                for step in tracer.iter[:5]:
                    model.model.layers[1].output = model.model.layers[1].output + step
                    norms.append(model.model.layers[1].output.norm().item())
            with tracer.invoke("so"):
                rows = nnsight.save([model.model.layers[0].output.shape[0]])
            with tracer.invoke():
                ids = tracer.result.save()
        return [norms, rows, ids.tolist()]

    assert replies(client, remote=True) == replies(local)


def test_code_and_prints_cross(world: str, client: Any, inputs: Any, capsys: Any) -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    with client.session(remote=True):
        print("hello from there")
        with client.trace(inputs):
            first = client.model.layers[0].output
        with client.trace(inputs) as tracer:
            second = twice(client.model.layers[0].output)
            tracer.stop()
        kept = nnsight.save([first, second])
    torch.testing.assert_close(kept[1], 2 * kept[0])


def test_errors_come_back_with_their_lines(world: str, client: Any, inputs: Any) -> None:
    def raising() -> None:
        with client.trace(inputs, remote=True):
            client.model.layers[0].output.save()
            raise ValueError("too much")

    def backwards() -> None:
        with client.trace(inputs, remote=True):
            client.model.layers[1].output.save()
            client.model.layers[0].output.save()

    with pytest.raises(RemoteError, match=r"(?s)Traceback.*ValueError: too much"):
        raising()
    with pytest.raises(RemoteError, match="ran past it"):
        backwards()


def test_a_block_that_takes_too_long_ends_with_its_process(server: LoopbackServer, client: Any, inputs: Any) -> None:
    def sleeping(seconds: float) -> None:
        with client.trace(inputs, remote=True):
            time.sleep(seconds)
            client.model.layers[0].output.save()

    server.modes(execution_timeout=0.3)
    try:
        with pytest.raises(RemoteError, match="past the execution timeout"):
            sleeping(30)
    finally:
        server.modes(execution_timeout=60.0)
    sleeping(0)


# --- what is not ---


def test_after_a_stop_the_next_trace_of_a_job_ends_at_once(world: str, client: Any, inputs: Any) -> None:
    def two() -> list[torch.Tensor]:
        with client.session(remote=True):
            with client.trace(inputs) as tracer:
                first = client.model.layers[0].output
                tracer.stop()
            with client.trace(inputs):
                second = client.model.layers[0].output
            kept = nnsight.save([first, second])
        return kept  # noqa: RET504 - the block's value comes back by its name

    if world == "trusted":
        torch.testing.assert_close(*two(), rtol=0, atol=0)
        return
    with pytest.raises(RemoteError, match=r"second|out of step"):
        two()


def test_weights_are_meta_and_calls_give_them(
    world: str, server: LoopbackServer, local: Any, client: Any, inputs: Any
) -> None:
    layer = client.model.layers[1]
    with client.trace(inputs, remote=True):
        width = layer.mlp.down_proj._module.in_features
        weight = layer.mlp.down_proj(torch.eye(width)).T
        gain = layer.post_feedforward_layernorm(torch.ones(1, client._module.config.hidden_size))
        told = next(iter(client._module.parameters()))
        kept = nnsight.save([weight, gain, (str(told.device), str(told.dtype))])
    true = local._module.model.layers[1]
    torch.testing.assert_close(kept[0], true.mlp.down_proj.weight.detach(), rtol=0, atol=0)
    torch.testing.assert_close(
        kept[1], true.post_feedforward_layernorm(torch.ones(1, kept[0].shape[0])), rtol=0, atol=0
    )
    assert kept[2] == (("cpu", "torch.float32") if world == "trusted" else ("meta", "torch.bfloat16"))
    assert (server.log()[-1]["called"] >= 4 * kept[0].numel()) is (world == "ordinary")


def test_weights_that_are_read_cannot_be_compared(world: str, client: Any, inputs: Any) -> None:
    def same() -> bool:
        with client.trace(inputs, remote=True):
            gain = client.model.norm._module.weight
            kept = nnsight.save([torch.equal(gain, gain.clone())])
        return kept[0]

    if world == "trusted":
        assert same()
        return
    with pytest.raises(RemoteError, match="aten::equal"):
        same()


def test_nothing_is_differentiated_through_the_model(world: str, client: Any, inputs: Any) -> None:
    def slope() -> torch.Tensor:
        with client.trace(inputs, remote=True):
            leaf = client.model.layers[0].output.detach().requires_grad_(True)
            client.model.layers[0].output = leaf
            kept = nnsight.save([torch.autograd.grad(client.lm_head.output.sum(), leaf)[0]])
        return kept[0]

    if world == "trusted":
        assert slope().any()
        return
    with pytest.raises(RemoteError, match="not have been used in the graph"):
        slope()


def test_an_error_that_leaves_a_trace_puts_both_sides_out_of_step(world: str, client: Any, inputs: Any) -> None:
    def caught() -> int:
        with client.session(remote=True):
            kept = nnsight.save([])
            try:
                with client.trace(inputs):
                    _ = client.model.layers[0].output
                    raise ValueError("inside")
            except ValueError:
                kept.append("caught")
            with client.trace(inputs):
                kept.append(client.model.layers[0].output.shape)
        return len(kept)

    if world == "trusted":
        assert caught() == 2
        return
    with pytest.raises(RemoteError, match="out of step"):
        caught()


def test_counters_stay_at_the_first_forward(world: str, client: Any) -> None:
    with client.generate("what a day", **GREEDY, remote=True) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:5]:
            _ = client.model.layers[0].output
            mediator = Mediator.current("here")
            kept.append(mediator.occurrence("model.model.layers.1.output"))
    assert kept == ([0] * 5 if world == "ordinary" else list(range(5)))


def test_an_input_that_brings_the_cache_loses_what_a_layer_has_seen(world: str, local: Any, client: Any) -> None:
    def last(model: Any, place: str, **where: Any) -> torch.Tensor:
        with model.generate("what a day it was", **GREEDY, **where) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[:2]:
                layer = model.model.layers[1]
                _ = layer.input if place == "layer" else layer.input_layernorm.input
                kept.append(layer.output[:, -1].clone())
        return kept[1]

    want = last(local, "layer")
    torch.testing.assert_close(last(client, "norm", remote=True), want, rtol=0, atol=0)
    assert torch.equal(last(client, "layer", remote=True), want) is (world == "trusted")


class Seed:
    """Called with scores, where tokens are drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores as they are."""
        torch.manual_seed(self.seed + input_ids.shape[1])
        return scores


def test_seeds_of_a_block_do_nothing_where_tokens_are_drawn(world: str, client: Any) -> None:
    def drawn(processors: list[Any]) -> list[list[int]]:
        with client.session(remote=True):
            kept = nnsight.save([])
            for _ in range(2):
                torch.manual_seed(0)
                with client.generate(
                    "what a day", max_new_tokens=12, min_new_tokens=12, do_sample=True, logits_processor=processors
                ) as tracer:
                    ids = tracer.result
                kept.append(ids.tolist())
        return kept

    first, second = drawn([])
    assert (first == second) is (world == "trusted")
    if world == "ordinary":
        with pytest.raises(RemoteError, match="pickle"):
            drawn([Seed(1)])
        return
    first, second = drawn([Seed(1)])
    assert first == second
