"""The loopback NDIF server against nnsight's own client: what it computes, what it does to a job, what it lets go wrong."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import nnsight
import pytest
import torch
import websocket
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from nnsight.schema.response import Status

from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from emotrace.testing.ndif import LoopbackServer, loopback, mint
from emotrace.testing.ndif_server import modes as ndif_modes
from emotrace.testing.ndif_server import serving

NAME, MASKED = "org/tiny-llama", "org/tiny-roberta"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {NAME: tiny.save("llama", root / "llama"), MASKED: tiny.save("roberta", root / "roberta")}


@pytest.fixture(scope="module")
def started(directories: dict[str, Path]) -> Iterator[LoopbackServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        loopback(directories, inline_limit=4 << 20, execution_timeout=60.0) as server,
    ):
        patch.setattr(nnsight.CONFIG.API, "APIKEY", server.trusted_key)
        patch.setattr(nnsight.CONFIG.API, "HOST", server.url)
        patch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
        mint(directories)
        client = _load(directories[NAME], "text-generation")
        _hidden(client, {"input_ids": torch.tensor([[1, 2, 3]])}, remote=True)  # the queue finds the model once
        yield server


@pytest.fixture
def server(started: LoopbackServer) -> Iterator[LoopbackServer]:
    """The one server, as new."""
    before = started.modes()
    yield started
    started.calm()
    started.modes(**before)


def _load(directory: Path, task: str, **options: Any) -> Any:
    return TransformersModel(str(directory), task=task, tokenizer=tiny.tiny_tokenizer(), **options)


@pytest.fixture(scope="module")
def local(directories: dict[str, Path]) -> Any:
    return _load(directories[NAME], "text-generation", dispatch=True)


@pytest.fixture(scope="module")
def client(directories: dict[str, Path]) -> Any:
    """Configuration and tokenizer, no weights."""
    return _load(directories[NAME], "text-generation")


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return dict(tiny.tiny_tokenizer()(["what a day", "so"], return_tensors="pt", padding=True, padding_side="left"))


def _submit(client: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """A small job without a websocket; the backend that polls for it."""
    with client.trace(inputs, remote=True, blocking=False) as tracer:
        hidden = nnsight.save(client.model.layers[1].output.clone())  # noqa: F841
    return tracer.backend


def _wait(backend: Any, seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while (result := backend()) is None:
        assert time.monotonic() < end, f"no result; the last status was {backend.status}"
        time.sleep(0.01)
    return result


def _settled(server: LoopbackServer, state: str, index: int = -1) -> dict[str, Any]:
    """The log's entry once it is in a state."""
    end = time.monotonic() + 30.0
    while (entry := server.log()[index])["state"] != state:
        assert time.monotonic() < end, entry
        time.sleep(0.01)
    return entry


def _hidden(model: Any, inputs: dict[str, torch.Tensor], **where: Any) -> torch.Tensor:
    with model.trace(inputs, **where):
        kept = nnsight.save([model.model.layers[1].output.clone()])
    return kept[0]


# --- what it computes ---


def test_a_trace_equals_a_local_one_to_the_bit(server: LoopbackServer, local: Any, client: Any, inputs: Any) -> None:
    found = []
    for model, where in ((local, {}), (client, {"remote": True})):
        with model.trace(inputs, **where):
            pre = model.model.layers[1].input.clone()
            model.model.layers[1].output = model.model.layers[1].output + 0.5
            rec = nnsight.save([pre, model.model.layers[2].output.clone(), model.lm_head.output.clone()])
        found.append(rec)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not client.dispatched
    entry = server.log()[-1]
    assert (entry["state"], entry["runs"], entry["served"], entry["blocking"]) == ("COMPLETED", 1, 1, True)
    assert entry["payload"] > sum(t.nbytes for t in found[0])
    assert entry["bytes_in"] > 500


def test_generation_with_a_write_at_every_step(server: LoopbackServer, local: Any, client: Any, inputs: Any) -> None:
    found = []
    push = torch.linspace(-2, 2, 32)
    for model, where in ((local, {}), (client, {"remote": True})):
        with model.generate(max_new_tokens=4, min_new_tokens=4, do_sample=False, **where) as tracer:
            steps = nnsight.save([])
            with tracer.invoke(inputs):
                for _ in tracer.iter[:4]:
                    model.model.layers[0].output = model.model.layers[0].output + push
                    steps.append(model.model.layers[2].output[:, -1].clone())
            with tracer.invoke():
                ids = nnsight.save(tracer.result)
        found.append([*steps, ids])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(found[1]) == 5


def test_a_session_is_one_request(server: LoopbackServer, local: Any, client: Any, inputs: Any) -> None:
    found = []
    before = len(server.log())
    for model, where in ((local, {}), (client, {"remote": True})):
        with model.session(**where):
            with model.trace(inputs):
                kept = model.model.layers[0].output.clone()
            with model.trace(inputs):
                model.model.layers[1].output = kept
                logits = nnsight.save(model.lm_head.output.clone())
        found.append(logits)
    assert torch.equal(*found)
    assert len(server.log()) == before + 1


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")
def test_a_masked_model(server: LoopbackServer, directories: dict[str, Path], inputs: Any) -> None:
    found = []
    for options, where in (({"dispatch": True}, {}), ({}, {"remote": True})):
        model = _load(directories[MASKED], "fill-mask", **options)
        with model.trace(inputs, **where):
            logits = nnsight.save(model.lm_head.output.clone())
        found.append(logits)
    assert torch.equal(*found)


def test_the_attention_that_the_client_has(
    server: LoopbackServer, directories: dict[str, Path], client: Any, inputs: Any
) -> None:
    eager = _load(directories[NAME], "text-generation", attn_implementation="eager")
    found = []
    for model in (eager, client, eager):
        with model.trace(inputs, remote=True):
            weights = nnsight.save([model.model.layers[0].self_attn.output[1]])
        found.append(weights[0])
    assert found[1] is None
    assert torch.equal(found[0], found[2])
    assert found[0].shape == (2, 4, 11, 11)


def test_weights_are_used_there_and_frozen(server: LoopbackServer, local: Any, client: Any, inputs: Any) -> None:
    with client.trace(inputs, remote=True):
        weight = client.model.layers[0].mlp.down_proj.weight
        found = nnsight.save([weight.requires_grad, client.lm_head.output.requires_grad, weight.sum()])
    assert found[:2] == [False, False]
    assert torch.equal(found[2], local.model.layers[0].mlp.down_proj.weight.sum())


@pytest.mark.parametrize("compress", [True, False])
def test_results_come_inline_or_by_url(
    server: LoopbackServer, client: Any, inputs: Any, compress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "COMPRESS", compress)
    inline = _hidden(client, inputs, remote=True)
    server.modes(inline_limit=0)
    by_url = _hidden(client, inputs, remote=True)
    assert torch.equal(inline, by_url)
    for entry in server.log()[-2:]:
        assert entry["served"] == 1
        assert (entry["bytes_out"] < entry["payload"]) is compress


def test_a_job_is_found_again_by_its_id(server: LoopbackServer, local: Any, client: Any, inputs: Any) -> None:
    server.faults(delay="running", seconds=60)
    first = _submit(client, inputs)
    assert first.status == Status.RECEIVED
    assert first() is None
    assert first.status in (Status.QUEUED, Status.DISPATCHED, Status.RUNNING)
    server.calm()
    again = RemoteBackend(client.to_model_key(), blocking=False, job_id=first.job_id)
    assert torch.equal(_wait(again)["hidden"], _hidden(local, inputs))
    assert again.meta["runtime"] > 0
    assert torch.equal(first()["hidden"], again()["hidden"])  # as often as one likes
    assert server.log()[-1]["runs"] == 1


def test_a_job_with_a_websocket_leaves_nothing_to_poll(server: LoopbackServer, client: Any, inputs: Any) -> None:
    _hidden(client, inputs, remote=True)
    identity = server.log()[-1]["id"]
    assert RemoteBackend(client.to_model_key(), blocking=False, job_id=identity)() is None


def test_statuses_and_prints_arrive_in_order(server: LoopbackServer, client: Any, inputs: Any) -> None:
    assert [s for s, _ in _statuses(client, inputs)] == ["QUEUED", "DISPATCHED", "RUNNING", "LOG", "COMPLETED"]
    assert _statuses(client, inputs)[3] == ("LOG", "a line")


def _statuses(client: Any, inputs: Any) -> list[tuple[str, str]]:
    async def stream() -> list[tuple[str, str]]:
        backend = AsyncRemoteBackend(client.to_model_key())
        with client.trace(inputs, backend=backend):
            print("a line")
            logits = nnsight.save(client.lm_head.output.clone())  # noqa: F841
        return [(u.status.value, u.description) async for u in backend if not isinstance(u, dict)]

    return asyncio.run(stream())


def test_the_queue_tells_each_its_place(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.faults(delay="running", seconds=60)
    jobs = [_submit(client, inputs)]
    _settled(server, "RUNNING")
    jobs += [_submit(client, inputs) for _ in range(2)]
    places = [_told(server, job) for job in jobs[1:]]
    assert places == [("QUEUED", f"Your job is number {n} in the queue.") for n in (1, 2)]
    server.calm()
    for job in jobs:
        _wait(job)
    assert [entry["runs"] for entry in server.log()[-3:]] == [1, 1, 1]


def _told(server: LoopbackServer, backend: Any) -> tuple[str, str]:
    """The stored status of a job, as it goes over the wire."""
    answer = httpx.get(f"{server.url}/response/{backend.job_id}", headers={"ndif-api-key": server.key}).json()
    return answer["status"], answer["description"]


def test_what_the_service_says_of_itself(
    server: LoopbackServer, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = nnsight.status()
    assert set(status) == {NAME, MASKED}
    assert status[NAME]["state"] == "RUNNING"
    assert client.to_model_key() in nnsight.status(raw=True)["deployments"]
    assert nnsight.whoami()["email"]
    assert nnsight.whoami("wrong")["email"] is None
    assert httpx.get(f"{server.url}/ping").json() == "pong"
    monkeypatch.setattr(nnsight.ndif, "_REMOTE_ENV", None)
    assert nnsight.compare().critical_mismatches == {}
    assert "emotrace" not in nnsight.compare().remote["packages"]
    server.modes(versions={"torch": "1.0"})
    monkeypatch.setattr(nnsight.ndif, "_REMOTE_ENV", None)
    assert set(nnsight.compare().critical_mismatches) == {"torch"}


def _entry(server: LoopbackServer) -> dict[str, Any]:
    found = httpx.get(f"{server.url}/status").json()["deployments"]
    return next(entry for entry in found.values() if entry["repo_id"] == NAME)


def test_what_status_says_of_a_model(server: LoopbackServer, client: Any) -> None:
    always = {"repo_id": NAME, "model_key": client.to_model_key(), "dtype": "float32", "trusted": False}
    for state, more in (
        ("RUNNING", {"deployment_level": "HOT", "application_state": "RUNNING"}),
        ("DEPLOYING", {"deployment_level": "HOT", "application_state": "DEPLOYING"}),
        ("WARM", {"deployment_level": "WARM"}),
    ):
        server.deployment(NAME, state)
        assert _entry(server) == always | more
    server.deployment(NAME, "COLD")
    assert _entry(server) == {"repo_id": NAME, "deployment_level": "COLD"}
    server.deployment(NAME, "RUNNING", "main")
    assert _entry(server)["model_key"] == client.to_model_key().replace("null", '"main"')
    server.deployment(NAME, "RUNNING")
    with pytest.raises(EmotraceError, match="WARM, COLD"):
        server.deployment(NAME, "LUKEWARM")
    with pytest.raises(EmotraceError, match="org/nobody"):
        server.deployment("org/nobody", "WARM")


def test_a_key_is_compared_to_the_letter(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.deployment(NAME, "RUNNING", "main")
    try:
        with pytest.raises(RemoteError, match=r"^Could not deploy this model"):
            _hidden(client, inputs, remote=True)
    finally:
        server.deployment(NAME, "RUNNING")
    _hidden(client, inputs, remote=True)


@pytest.mark.parametrize("state", ["WARM", "COLD", "DEPLOYING"])
def test_a_model_comes_up_when_it_is_asked_for(
    server: LoopbackServer, local: Any, client: Any, inputs: Any, state: str
) -> None:
    server.deployment(NAME, state)
    server.modes(deploy_seconds=120)
    job = _submit(client, inputs)
    for phase in ("PROVISIONING", "DEPLOYING"):
        _settled(server, phase)
        server.calm()
    assert torch.equal(_wait(job)["hidden"], _hidden(local, inputs))
    assert server.log()[-1]["states"] == ["PROVISIONING", "DEPLOYING", "QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]
    assert _entry(server)["application_state"] == "RUNNING"
    _wait(_submit(client, inputs))
    assert server.log()[-1]["states"] == ["QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]


def test_nothing_is_stored_of_a_job_before_it_is_queued(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.modes(window=60)
    backend = _submit(client, inputs)
    assert httpx.get(f"{server.url}/response/{backend.job_id}").status_code == 404
    assert (backend(), backend.status) == (None, Status.RECEIVED)
    server.calm()
    _wait(backend)


def test_the_address_of_a_result_is_signed(server: LoopbackServer, client: Any, inputs: Any) -> None:
    backend = _submit(client, inputs)
    _wait(backend)
    address = httpx.get(f"{server.url}/response/{backend.job_id}").json()["data"]
    assert httpx.get(address).status_code == 200
    assert httpx.get(address.partition("?")[0]).status_code == 403
    assert httpx.get(address.replace("/results/", "/results/x")).status_code == 404


# --- what a client may do wrong ---


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        (None, 401, "Missing API key"),
        ("not-a-key", 400, "Invalid API key format: 'not-a-key'"),
        (str(uuid.UUID(int=7)), 403, "Invalid API key"),
    ],
)
def test_only_a_job_asks_for_a_key(
    server: LoopbackServer,
    client: Any,
    inputs: Any,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    code: int,
    said: str,
) -> None:
    before = len(server.log())
    backend = _submit(client, inputs)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", key)
    for submit in (_submit, partial(_hidden, remote=True)):
        with pytest.raises(RemoteError, match=said) as caught:
            submit(client, inputs)
        assert caught.value.__cause__.response.status_code == code  # type: ignore[union-attr]
    assert len(server.log()) == before + 1
    _wait(backend)  # polled and downloaded without the key
    assert [httpx.get(f"{server.url}/{path}").status_code for path in ("status", "env", "ping")] == [200] * 3


def test_orders_are_taken_with_the_key_and_on_this_host_only(server: LoopbackServer) -> None:
    headers = {"ndif-api-key": server.key, "Host": "a.page.example"}  # a name that was made to mean 127.0.0.1
    assert httpx.post(f"{server.url}/request", headers=headers).status_code == 421
    assert httpx.get(f"{server.url}/status", headers=headers).status_code == 421
    for method, path in (
        ("GET", "log"),
        ("POST", "modes"),
        ("POST", "faults"),
        ("POST", "restart"),
        ("POST", "deployments"),
        ("DELETE", "faults"),
    ):
        answer = httpx.request(method, f"{server.url}/admin/{path}", headers={"ndif-api-key": "wr\u00f6ng".encode()})
        assert answer.status_code == 401


def test_an_error_of_the_block_comes_back(server: LoopbackServer, client: Any, inputs: Any) -> None:
    with (
        pytest.raises(RemoteError, match=r"(?s)nothing_by_zero = 1 / 0.*ZeroDivisionError"),
        client.trace(inputs, remote=True),
    ):
        nothing_by_zero = 1 / 0  # noqa: F841
    assert server.log()[-1]["error"].startswith("ZeroDivisionError")
    with pytest.raises(RemoteError, match="SystemExit"), client.trace(inputs, remote=True):
        raise SystemExit(3)
    _hidden(client, inputs, remote=True)  # and the server goes on


def test_emotrace_cannot_be_imported(server: LoopbackServer, client: Any, inputs: Any) -> None:
    with pytest.raises(RemoteError, match="ModuleNotFoundError"):
        _importing(client, inputs)
    with pytest.raises(RemoteError, match=r"^Your request payload could not be read"):
        _referring(client, inputs)


def _importing(client: Any, inputs: Any) -> None:
    with client.trace(inputs, remote=True):
        import emotrace.labels

        hidden = nnsight.save([emotrace.labels.SITES, client.lm_head.output])  # noqa: F841


def _referring(client: Any, inputs: Any) -> None:
    with client.trace(inputs, remote=True):
        hidden = nnsight.save([tiny.batch, client.lm_head.output])  # a function by reference  # noqa: F841


def test_a_model_that_is_not_deployed(server: LoopbackServer, directories: dict[str, Path], inputs: Any) -> None:
    mint({"org/other": directories[NAME]})
    try:
        with pytest.raises(RemoteError, match=r"^Could not deploy this model") as caught:
            _hidden(_load(directories[NAME], "text-generation"), inputs, remote=True)
        assert "Traceback" not in str(caught.value)
    finally:
        mint(directories)


def test_flags_are_modes(server: LoopbackServer) -> None:
    modes = server.modes()
    assert (modes["inline_limit"], modes["execution_timeout"], modes["expire_urls"]) == (4 << 20, 60.0, 3600.0)
    flags = ["--no-gradients", "--copies", "--autocast", "bfloat16", "--expire-urls"]
    options = vars(serving.parser().parse_args(["--model", "any", *flags]))
    assert set(ndif_modes.MODES) - {"versions"} <= set(options)
    assert [options[name] for name in ("no_gradients", "copies", "autocast", "expire_urls")] == [
        True,
        True,
        "bfloat16",
        0.0,
    ]


def test_faults_and_modes_that_there_are_not(server: LoopbackServer) -> None:
    for fault in ({"dorp": "running"}, {"drop": "later"}, {"times": 1}, {"drop": "running", "lose": "job"}):
        with pytest.raises(EmotraceError, match="subscribe"):
            server.faults(**fault)
    with pytest.raises(EmotraceError, match="no_gradients"):
        server.modes(gradients=False)
    assert server.faults() == []


def test_a_request_that_is_no_form(server: LoopbackServer) -> None:
    before = len(server.log())
    headers = {"ndif-api-key": server.key}
    for content in ({"json": {}}, {"data": {"data": "{}"}, "files": {"blob": b"x"}}, {"files": {"blob": b"x"}}):
        assert httpx.post(f"{server.url}/request", headers=headers, **content).status_code == 422
    assert len(server.log()) == before


def test_what_runs_there_finds_no_key_in_environment_or_command_line(server: LoopbackServer) -> None:
    assert server._process is not None
    told = b"".join(Path(f"/proc/{server._process.pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
    assert b"--attached" in told
    assert not [key for key in (server.key, server.trusted_key) if key.encode() in told]


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(EmotraceError, match=r"no config\.json"), loopback({NAME: tmp_path}):
        pytest.fail("it started")
    with pytest.raises(EmotraceError, match="did not start:\nno such luck"):
        LoopbackServer([sys.executable, "-c", "raise SystemExit('no such luck')"], "key").start()


# --- what NDIF does ---


def _slope(client: Any, inputs: Any) -> torch.Tensor:
    with client.trace(inputs, remote=True):
        zero = torch.zeros(32, requires_grad=True)
        client.model.layers[0].output = client.model.layers[0].output + zero
        slopes = nnsight.save(torch.autograd.grad(client.lm_head.output[:, -1, 5].sum(), [zero]))
    return slopes[0]


def test_no_gradients(server: LoopbackServer, client: Any, inputs: Any) -> None:
    assert _slope(client, inputs).abs().sum() > 0
    plain = _hidden(client, inputs, remote=True)
    server.modes(no_gradients=True)
    with pytest.raises(RemoteError, match="does not require grad"):
        _slope(client, inputs)
    assert torch.equal(_hidden(client, inputs, remote=True), plain)


def _in_place(client: Any, inputs: Any, swap: bool) -> torch.Tensor:
    with client.trace(inputs, remote=True):
        if swap:
            client.model.layers[0].output = client.model.layers[0].output + 3
        else:
            client.model.layers[0].output[:] += 3
        kept = nnsight.save([client.lm_head.output.clone()])
    return kept[0]


def test_copies(server: LoopbackServer, client: Any, inputs: Any) -> None:
    changed = _in_place(client, inputs, swap=True)
    assert torch.equal(_in_place(client, inputs, swap=False), changed)
    server.modes(copies=True)
    assert torch.equal(_in_place(client, inputs, swap=True), changed)
    assert not torch.equal(_in_place(client, inputs, swap=False), changed)
    assert _slope(client, inputs).abs().sum() > 0  # copies carry the graph; see no_gradients


def test_generation_from_copies(server: LoopbackServer, client: Any, inputs: Any) -> None:
    found = []
    for copies in (False, True):
        server.modes(copies=copies, no_gradients=copies)
        with client.generate(inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, remote=True) as tracer:
            for _ in tracer.iter[:3]:
                client.model.layers[1].mlp.down_proj.input = client.model.layers[1].mlp.down_proj.input * 2
            ids = nnsight.save(tracer.result)
        found.append(ids)
    assert torch.equal(*found)


def test_autocast(server: LoopbackServer, client: Any, inputs: Any) -> None:
    with client.trace(inputs, remote=True):
        exact = nnsight.save(client.lm_head.output.clone())
    server.modes(autocast="bfloat16")
    with client.trace(inputs, remote=True):
        coarse = nnsight.save(client.lm_head.output.clone())
    assert (exact.dtype, coarse.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(coarse.float(), exact, rtol=0.1, atol=0.1)


def test_expired_urls(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.modes(expire_urls=0.0)
    backend = _submit(client, inputs)
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        _wait(backend)
    _hidden(client, inputs, remote=True)  # small results come on the websocket all the same
    server.modes(inline_limit=0)
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        _hidden(client, inputs, remote=True)
    assert [entry["served"] for entry in server.log()[-3:]] == [0, 1, 0]


def test_execution_timeout(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.modes(execution_timeout=0.3)
    with pytest.raises(RemoteError, match=r"execution timeout of 0\.3 s"):
        _endless(client, inputs)
    server.modes(execution_timeout=20.0)
    _hidden(client, inputs, remote=True)


def _endless(client: Any, inputs: Any) -> None:
    with client.trace(inputs, remote=True):
        while True:
            try:
                torch.ones(10).sum()
            except Exception:  # hides nothing from the clock
                continue


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("stage", "states"),
    [
        ("subscribe", None),
        ("request", ["QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]),
        ("queued", ["QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]),
        ("running", ["QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]),
        ("completed", ["QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]),
    ],
)
def test_the_websocket_drops(
    server: LoopbackServer, client: Any, inputs: Any, stage: str, states: list[str] | None
) -> None:
    before = len(server.log())
    server.faults(drop=stage)
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        _hidden(client, inputs, remote=True)
    assert server.faults() == []
    if states is None:
        assert len(server.log()) == before
    else:
        entry = _settled(server, "COMPLETED")  # the job goes on without its client
        assert (entry["states"], entry["runs"], entry["served"]) == (states, 1, 0)
    _hidden(client, inputs, remote=True)


def test_the_reply_is_lost_and_the_job_runs(server: LoopbackServer, client: Any, inputs: Any) -> None:
    before = len(server.log())
    server.faults(drop="reply")
    with pytest.raises(RemoteError, match="Failed to send request"):
        _submit(client, inputs)
    assert len(server.log()) == before + 1
    assert _settled(server, "COMPLETED")["served"] == 0


@pytest.mark.parametrize("stage", ["response", "results"])
def test_a_poll_or_a_download_breaks_off(server: LoopbackServer, client: Any, inputs: Any, stage: str) -> None:
    backend = _submit(client, inputs)
    _settled(server, "COMPLETED")
    server.faults(drop=stage)
    with pytest.raises(httpx.RemoteProtocolError):
        backend()
    assert backend()["hidden"].shape[0] == 2
    assert server.log()[-1]["runs"] == 1


def test_keys_are_refused_for_a_while(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.faults(refuse="request", times=2)
    for _ in range(2):
        with pytest.raises(RemoteError, match="API key"):
            _submit(client, inputs)
    _wait(_submit(client, inputs))


def test_http_errors(server: LoopbackServer, client: Any, inputs: Any) -> None:
    server.faults(http="request", code=503, message="come back later")
    with pytest.raises(RemoteError, match="come back later"):
        _submit(client, inputs)
    backend = _submit(client, inputs)
    _settled(server, "COMPLETED")
    for stage in ("response", "results"):
        server.faults(http=stage, code=500)
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            backend()
    backend()


def test_a_delay_at_every_stage(server: LoopbackServer, client: Any, inputs: Any) -> None:
    stages = ("subscribe", "request", "reply", "queued", "running", "completed", "response", "results")
    for stage in stages:
        server.faults(delay=stage, seconds=0.01)
    assert [fault["delay"] for fault in server.faults()] == list(stages)
    server.modes(inline_limit=0)
    _hidden(client, inputs, remote=True)
    assert [fault["delay"] for fault in server.faults()] == ["response"]
    _wait(_submit(client, inputs))
    assert server.faults() == []
    for path in ("status", "env"):
        server.faults(delay=path, seconds=0.01)
        server.faults(http=path, code=504)
        assert [httpx.get(f"{server.url}/{path}").status_code for _ in range(2)] == [504, 200]
    assert server.faults() == []


@pytest.mark.parametrize("stage", ["queued", "running", "completed"])
def test_a_job_fails(server: LoopbackServer, client: Any, inputs: Any, stage: str) -> None:
    server.faults(error=stage, message="out of memory", after=1)
    _hidden(client, inputs, remote=True)
    with pytest.raises(RemoteError, match="out of memory"):
        _hidden(client, inputs, remote=True)
    assert server.log()[-1]["runs"] == (stage == "completed")
    server.faults(error=stage)
    with pytest.raises(RemoteError, match=f"ordered at {stage}"):
        _wait(_submit(client, inputs))


@pytest.mark.parametrize(("what", "runs"), [("job", 0), ("result", 1)])
def test_a_job_or_a_result_is_lost(server: LoopbackServer, client: Any, inputs: Any, what: str, runs: int) -> None:
    server.faults(lose=what)
    backend = _submit(client, inputs)
    _settled(server, "LOST")
    assert backend() is None
    assert backend() is None
    entry = server.log()[-1]
    assert (entry["runs"], entry["polls"], entry["served"]) == (runs, 2, 0)


def test_answers_come_twice(server: LoopbackServer, client: Any, inputs: Any) -> None:
    for stage in ("queued", "running", "completed"):
        server.faults(twice=stage)
    states = [s for s, _ in _statuses(client, inputs)]
    assert states == ["QUEUED", "QUEUED", "DISPATCHED", "RUNNING", "RUNNING", "LOG", "COMPLETED"]
    assert server.log()[-1]["runs"] == 1
    server.faults(twice="run")
    backend = _submit(client, inputs)
    assert torch.equal(_wait(backend)["hidden"], _hidden(client, inputs, remote=True))
    assert server.log()[-2]["runs"] == 2


@pytest.mark.parametrize("stage", ["queued", "running", "completed"])
def test_a_restart_in_the_middle(server: LoopbackServer, local: Any, client: Any, inputs: Any, stage: str) -> None:
    done = _submit(client, inputs)
    _settled(server, "COMPLETED")
    if stage == "queued":
        server.faults(delay="running", seconds=60)  # so that the first is not finished when the second comes
    server.faults(restart=stage, after=1)
    first = _submit(client, inputs)
    broken = (websocket.WebSocketConnectionClosedException, RemoteError, ConnectionError)
    with pytest.raises(broken):
        _hidden(client, inputs, remote=True)
    states = [entry["state"] for entry in server.log()[-2:]]
    assert states[1] == "LOST"
    assert server.log()[-1]["runs"] == (stage == "completed")
    if stage == "queued":
        assert states[0] == "LOST"
        assert first() is None
    else:
        assert torch.equal(_wait(first)["hidden"], _hidden(local, inputs))
    assert torch.equal(done()["hidden"], _hidden(local, inputs))  # what lay ready survived
    assert torch.equal(_hidden(client, inputs, remote=True), _hidden(local, inputs))


def test_a_restart_by_order(server: LoopbackServer, client: Any, inputs: Any) -> None:
    url = server.url
    for stale in (False, True):
        server.faults(delay="running", seconds=60)
        jobs = [_submit(client, inputs) for _ in range(3)]
        server.restart(seconds=0.1, stale=stale)
        assert [entry["state"] for entry in server.log()[-3:]] == ["LOST"] * 3
        assert [job() for job in jobs] == [None] * 3
        assert jobs[2].status == (Status.QUEUED if stale else Status.RECEIVED)
    _hidden(client, inputs, remote=True)
    assert [entry["served"] for entry in server.log()[-4:]] == [0, 0, 0, 1]
    assert server.url == url


@pytest.mark.soak
def test_a_power_cut(server: LoopbackServer, client: Any, inputs: Any) -> None:
    backend = _submit(client, inputs)
    _wait(backend)
    url = server.url
    server.stop()
    with pytest.raises(httpx.ConnectError):
        backend()
    with pytest.raises(EmotraceError, match="refused"):
        server.log()
    server.start()
    assert server.url == url
    assert server.log() == []
    assert backend() is None
    _hidden(client, inputs, remote=True)
