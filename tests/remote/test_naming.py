"""What a job is known by: its answer is taken for another request only where model and code are the same."""

from types import SimpleNamespace

from emotrace.remote import jobs, naming
from emotrace.remote.jobs import Request


def test_a_job_of_another_model_or_of_other_code_is_not_taken_up(tmp_path, monkeypatch):
    sent = []
    server = SimpleNamespace(host="http://somewhere", submit=lambda *_: sent.append(1) or str(len(sent)))

    def asked(model):
        found = jobs.Jobs(server, model, {}, lambda _: b"", False, tmp_path / "a.jobs")
        job = found._sent(Request("one", None, tuple))
        found.close()
        return job.id, job.earlier

    assert asked("a") == ("1", False)
    assert asked("a") == ("1", True)
    assert asked("b") == ("2", False)
    assert asked("a") == ("1", True)
    with monkeypatch.context() as patch:
        patch.setattr(naming, "version", lambda _: "another")
        assert asked("a") == ("3", False)
    monkeypatch.setattr(naming, "_code", lambda: "changed")
    assert asked("a") == ("4", False)
