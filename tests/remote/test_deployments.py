"""Which model of a server is meant, and how long one is waited for that is not up."""

import time
from types import SimpleNamespace

import pytest
import torch
import zstandard
from nnsight.schema.config import CONFIG

import emotrace as et
from emotrace.labels import EmotraceError
from emotrace.remote import Server, jobs
from emotrace.remote import server as server_
from emotrace.remote.deployments import chosen, listed


@pytest.fixture
def ordinary(pairs):
    """A model here, and on the server with an ordinary key."""
    return pairs("llama", "ordinary")


CLASS = "nnsight.modeling.transformers.TransformersModel"
HEAD = '{"repo_id": "org/M", "revision": '


def key(revision="null", more="", engine=CLASS):
    return f'{engine}:{HEAD}{revision}{more}, "task": "text-generation"}}'


def entry(found, level="HOT", state="RUNNING", **more):
    about = {"repo_id": "org/M", "model_key": found, "deployment_level": level, "dtype": "bfloat16", "trusted": False}
    return about | ({"application_state": state} if level == "HOT" else {}) | more


def meant(entries, revision=None, trust=False, source="org/m"):
    return chosen(
        listed({"deployments": dict(enumerate_names(entries))}), source, None, "text-generation", revision, trust
    )


def enumerate_names(entries):
    return ((f"{i}:ModelActor:{e.get('model_key')}", e) for i, e in enumerate(entries))


def test_the_key_is_the_servers_own():
    for revision in ("null", '"main"'):
        assert meant([entry(key(revision))]).key == key(revision)
    assert meant([entry(key()), entry(key('"v2"'))], revision="v2").key == key('"v2"')
    assert meant([entry(key()), entry(key(more=', "trust_remote_code": true'))], trust=True).trust is True
    assert meant([entry(key()), entry(key(more=', "trust_remote_code": true'))]).trust is False
    odd = f'{CLASS}:{{"task": "text-generation",  "repo_id": "org/M"}}'
    assert meant([entry(odd)]).key == odd


def test_of_several_it_is_the_one_that_is_soonest_up():
    warm, hot, coming = entry(key(), "WARM"), entry(key('"main"')), entry(key(), "HOT", "DEPLOYING")
    assert meant([warm, coming, hot]).state == "RUNNING"
    assert meant([warm, coming]).state == "DEPLOYING"
    assert meant([entry(key(), "HOT", "UNHEALTHY"), entry(key())]).state == "RUNNING", "a replica that died hides none"
    cold = {"repo_id": "org/M", "deployment_level": "COLD"}
    assert (meant([cold]).state, meant([cold]).key) == ("COLD", None)
    assert meant([cold], revision="v2").key is None


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], r"has no model 'org/m' \(text-generation\)\. It has: none"),
        ([{"application_state": "DEPLOYING"}, "odd"], "It has: none"),
        ([entry(key(engine="nnsight.modeling.vllm.VLLM"))], r"It has: org/M \(RUNNING, VLLM\)"),
        ([entry(key('"v2"'))], r"has org/M \(RUNNING, text-generation, v2\), not 'org/m' with revision 'main' up"),
        ([entry(key(), "HOT", "UNHEALTHY")], r"has org/M \(UNHEALTHY, text-generation\), not 'org/m'"),
        (
            [entry(key(more=', "trust_remote_code": true'))],
            r"has org/M \(RUNNING, text-generation, trust_remote_code\)",
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_is(entries, said):
    named = {f"{i}": e for i, e in enumerate(entries)}
    with pytest.raises(EmotraceError, match=said):
        chosen(listed({"deployments": named}), "org/m", None, "text-generation", None, False)
    assert listed({"deployments": None}) == listed({}) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [("WARM", "restored on request"), ("COLD", "deployed on request"), ("DEPLOYING", "is being loaded")],
)
def test_a_model_that_is_not_up_is_waited_for(ordinary, impatient, deployed, capfd, state, words):
    (here, _), before = ordinary, len(impatient.log())
    impatient.modes(deploy_seconds=0.3, window=0.1)
    impatient.deployment("tiny/llama", state, "main")
    try:
        there = et.load(deployed["llama"].parent / "client" / "llama", remote=Server(impatient.url, impatient.key))
        assert f"tiny/llama ({state}" in (said := capfd.readouterr().err)
        assert f"{words}; it is waited for, at most 3600 s" in said
        states = impatient.log()[before]["states"]
        assert states[:3] == ["PROVISIONING", "DEPLOYING", "QUEUED"]
        ids = [[20, 21, 22]]
        want, got = (et.capture(lm, ids, "resid_post", progress=False).residual.values for lm in (here, there))
        assert (want == got).all()
    finally:
        impatient.modes(deploy_seconds=0.0, window=0.0)
        impatient.deployment("tiny/llama", "RUNNING")


def test_a_trace_of_the_users_own_says_the_servers_key(ordinary, server, deployed, monkeypatch):
    here, _ = ordinary
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    server.deployment("tiny/llama", "RUNNING", "main")
    try:
        there = et.load(deployed["llama"].parent / "client" / "llama", remote=Server(server.url, server.key))
        found = []
        for lm, where in ((here, False), (there, server.url)):
            with torch.no_grad(), lm.trace(lm.sites.encode([[20, 21, 22]]), remote=where):
                hidden = lm.sites.read("resid_post", layer=0).detach().save()
            found.append(hidden)
        assert torch.equal(*found)
    finally:
        server.deployment("tiny/llama", "RUNNING")


def test_a_model_that_does_not_come_up_is_an_error_that_names_it(impatient, deployed, monkeypatch):
    monkeypatch.setattr(jobs, "COMING_UP", 0.3)
    impatient.modes(deploy_seconds=60)
    impatient.deployment("tiny/llama", "WARM")
    try:
        with pytest.raises(
            EmotraceError, match=r"the model has been coming up for \d+ s \(PROVISIONING .*Repeat the same"
        ):
            et.load(deployed["llama"].parent / "client" / "llama", remote=Server(impatient.url, impatient.key))
    finally:
        impatient.calm()
        impatient.modes(deploy_seconds=0.0)
        impatient.deployment("tiny/llama", "RUNNING")


@pytest.mark.parametrize("path", ["status", "env"])
def test_a_server_that_cannot_say_yet_is_asked_again(impatient, deployed, capfd, monkeypatch, path):
    impatient.faults(http=path, code=504, message="timed out after 60 s")
    et.load(deployed["llama"].parent / "client" / "llama", remote=Server(impatient.url, impatient.key))
    assert f"{impatient.url}/{path}: 504 timed out after 60 s: asked again" in capfd.readouterr().err
    monkeypatch.setattr(server_, "BUSY", 0.0)
    impatient.faults(http=path, code=504, times=-1)
    with pytest.raises(EmotraceError, match=r"504 .*the server does not answer"):
        et.load(deployed["llama"].parent / "client" / "llama", remote=Server(impatient.url, impatient.key))


def test_patience_is_as_long_as_a_server_may_need():
    assert server_.ANSWER > 60, "/status and /env answer 504 themselves after 60 s"
    assert jobs.STUCK > 3600, "a place in the queue may stand still for as long as another job may run"
    assert jobs.COMING_UP >= 3600


def test_a_place_in_the_queue_may_stand_still(ordinary, impatient, monkeypatch):
    here, there = ordinary
    waited, nap = [0.0], time.sleep

    def sleep(_):
        waited[0] += 100.0 if waited[0] < 4000 else 0.0  # more than an hour in which nothing changes
        if waited[0] == 4000:
            impatient.calm()
        nap(0.005)

    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: waited[0], sleep=sleep))
    before = len(impatient.log())
    impatient.faults(delay="running", seconds=600)
    want, got = (et.capture(lm, [[20, 21, 22]], "resid_post", progress=False).residual.values for lm in (here, there))
    assert (want == got).all()
    assert waited[0] == 4000
    assert len(impatient.log()) == before + 1, "the job was sent again"


@pytest.mark.parametrize("sized", [True, False])
def test_a_result_is_unpacked_whether_or_not_zstd_wrote_its_length(sized):
    packed = zstandard.ZstdCompressor(write_content_size=sized).compress(b"a result" * 1000)
    assert server_._decompressed(packed) == b"a result" * 1000
