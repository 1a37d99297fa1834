"""The main job from prompts to report, on the shipped model and a sliver of the data; numbers are not what is tested."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

import emotrace as et
from emotrace.arms import ARMS
from emotrace.labels import COMPONENTS, EmotraceError
from emotrace.traced import kept, requests, runs, scores

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model": str(ROOT / "data" / "tiny_model"), "train": ROOT / "data" / "sev.jsonl", "test": ROOT / "data" / "test_set.jsonl",
    "judge": "lexicon", "limit": 4, "sweep_limit": 1, "finalists": 2, "dose_step": 1, "draws": 1, "refits": 2,
    "curve_draws": 1, "neurons_per_layer": 20,
    "heads_per_layer": 2, "preset": None, "max_new_tokens": 10, "batch_size": 32, "target_aware": False, "label_map": None,
    "price": None, "arms": "prefill_2,random_circuit,wrong_payload,random_tuned,ablate_resample,random_ablate_resample",
    "attn_implementation": "eager", "device": "auto", "dtype": None, "seed": 0,
}  # fmt: skip
COMPARED = ("none", "prompt", "steer", "circuit", *SMALL["arms"].split(","))
ALONE = {"preset": "emotion_circuits", "attn_implementation": None, "arms": "none", "refits": 0}


@pytest.fixture(scope="module")
def study():
    """The experiment's module, with one dose, two strengths, two layer ranges and curves of two sizes."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        spec = importlib.util.spec_from_file_location("emotion_circuits", ROOT / "experiments" / "emotion_circuits.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    protocol = module.circuit_protocol
    protocol.DOSES, protocol.STRENGTHS, protocol.INFLUENCE_DOSES = (0.15,), (0.5, 1.0), (0.1,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(et.replies, "layer_windows", lambda n_layers: [[0, 1, 2, 3], [2, 3]])
        for name in ("ablation_curve", "enhancement_curve"):
            patch.setattr(et.attribution, name, partial(getattr(et.attribution, name), ks=(1, 8)))
        yield module
    for name in [name for name in sys.modules if name.startswith("circuit_")]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def counted(study, tmp_path_factory):
    """The folder of a run, and how many prompts ran forward in the capture and while the circuit was found."""
    out = tmp_path_factory.mktemp("study") / "run"
    found = {}
    with pytest.MonkeyPatch.context() as patch, forwarded(patch) as count:
        for module, name in ((et, "capture"), (et.circuits, "discover")):
            patch.setattr(module, name, during(getattr(module, name), name, count, found))
        study.main(out=out, **SMALL)
    return out, found


@pytest.fixture(scope="module")
def done(counted):
    return counted[0]


@contextmanager
def forwarded(patch):
    """Counts the prompts of every forward of a capture or a stream."""
    count, real = [0], requests.forward

    def forward(model, steps, one, *rest):
        count[0] += len(one.inputs["input_ids"])
        return real(model, steps, one, *rest)

    patch.setattr(requests, "forward", forward)
    yield count


def during(function, name, count, found):
    def run(*args, **options):
        before = count[0]
        result = function(*args, **options)
        found.setdefault(name, []).append(count[0] - before)
        return result

    run.plan = function.plan
    return run


def test_from_directions_to_circuit_every_prompt_runs_forward_once(counted, monkeypatch):
    out, found = counted
    n = 4 * 3 * 6
    assert found["discover"] == [0, 0, 0]  # once, and with each refit
    assert found["capture"][0] == n
    acts = et.open_activations(out / "activations.zarr")
    circuit = et.Circuit.load(out / "circuit")
    assert circuit.meta["source"] == str(out / "activations.zarr")
    fit = json.loads(circuit.meta["selection"])[0]["skeleton_id"]
    assert 2 <= len(fit) < 4
    # without the store, one pass would run the fitting part again
    model, dirs = et.load(SMALL["model"]), et.directions.load(out / "directions")
    prompts = et.datasets.sev(SMALL["train"], limit=4)
    fitting = prompts.where(skeleton_id=fit)
    accepted = accepted_keys(out, fit)
    with forwarded(monkeypatch) as count:
        passes = et.circuits.discover(model, fitting, dirs, accepted=accepted, progress=False)
    assert len(accepted) <= count[0] < 1.5 * len(accepted)  # one pass, and a row for each beginning that prompts share
    columns = ["emotion", "kind", "layer", "index", "rank"]
    pd.testing.assert_frame_equal(circuit.components[columns], passes.components[columns])
    assert len(acts.where(skeleton_id=fit)) == len(fitting)


def accepted_keys(out, fit):
    """Keys of the fitting part whose prompted replies were accepted, as the study takes them."""
    rows = [row for path in (out / "parts").glob("train_prompt*.jsonl") for _, row in et.datasets.read_jsonl(path)]
    return et.directions.accepted([row for row in rows if row.get("skeleton_id") in fit])  # scores are of no row


def test_everything_lands_in_the_folder(done):
    names = {p.name for p in done.iterdir()}
    files = {
        "manifest.json",
        "report.json",
        "report.html",
        "generations.jsonl",
        "accuracy_stats.json",
        "activations.zarr",
    }
    assert files | {"figures", "tables", "directions", "circuit", "influence", "curves"} <= names
    drawn = {p.stem for p in (done / "figures").iterdir()}
    assert {"accuracy", "ablation", "circuit", "overlap", "curves", "influence", "attention", "comparison"} <= drawn
    assert {"openings", "components", "frontiers"} <= drawn
    assert et.store.verify(done / "activations.zarr") == []
    assert len(et.Circuit.load(done / "circuit").components) == 6 * 6 * 22


def test_every_method_answers_every_prompt(done):
    rows = [json.loads(line) for line in (done / "generations.jsonl").read_text().splitlines()]
    assert {r["method"] for r in rows} == set(COMPARED)
    for method in COMPARED:
        assert len({r["key"] for r in rows if r["method"] == method}) == 4 * 3 * 6
    assert all(r["verdict"]["match"] in (0, 1) and "fluent" in r["meta"] for r in rows)


def test_the_report_says_what_was_chosen_and_what_it_cost(done):
    report = json.loads((done / "report.json").read_text())
    chosen = report["chosen"]
    assert max(p["accuracy_fluent"] for p in report["sweep"] if p["n"] == chosen["n"]) == chosen["accuracy_fluent"]
    assert {p["positions"] for p in report["sweep"]} == {"steer", "last"}
    costs = {p["lambda"]: p["kl"] for p in report["comparison"] if p["method"] == "circuit"}
    assert 0 < costs[0.25] < costs[0.5] < costs[1.0], "the smallest of two was best, and half of it was tried"
    assert report["chosen_circuit"]["lambda"] in costs
    assert {(p["a"], p["b"]) for p in report["paired"]} >= {("circuit", "prompt"), ("circuit", "steer")}
    for method in COMPARED:
        leaf = report["accuracy"][method]["overall"]
        assert leaf["ci95"][0] <= leaf["value"] <= leaf["ci95"][1]


def test_every_arm_is_what_it_is_called(done):
    report = json.loads((done / "report.json").read_text())
    rows = [json.loads(line) for line in (done / "generations.jsonl").read_text().splitlines()]
    of = {name: [r for r in rows if r["method"] == name] for name in COMPARED}
    for row in of["prefill_2"]:
        opening = report["openings"]["prefill_2"][row["emotion"]]["token_ids"]
        assert (row["token_ids"][:2], len(opening), row["meta"]["edits"]) == (opening, 2, "none")
    assert all(r["payload_emotion"] != r["emotion"] for r in of["wrong_payload"])
    read = report["wrong_payload"]
    assert read["components"] == report["accuracy"]["wrong_payload"]["overall"]
    hits = [r["verdict"]["predicted"] == r["payload_emotion"] for r in of["wrong_payload"]]
    assert read["payload"]["value"] == pytest.approx(sum(hits) / len(hits))
    (name, tuned), *others = report["chosen_tuned"].items()
    mine = [p for p in report["modulation"] if p["method"] == name and p["n"] == tuned["n"]]
    assert max(p["accuracy_fluent"] for p in mine) == tuned["accuracy_fluent"]
    assert (name, others) == ("random_tuned", [])
    edits = {name: {r["meta"]["edits"] for r in found} for name, found in of.items()}
    assert all(edits[a].isdisjoint(edits[b]) for a in edits for b in edits if a != b and "none" not in edits[a])
    lexicon = et.judges.make("lexicon")
    model = et.load(SMALL["model"])
    for row in of["circuit"][::7]:
        text = model.sites.encoder.decode(row["token_ids"][2:])
        assert row["verdict_from_third"]["predicted"] == lexicon.judge([text])[0]["predicted"]


def test_what_is_claimed_is_what_the_table_of_claims_says(done):
    report = json.loads((done / "report.json").read_text())
    family, page = report["paired"], (done / "report.html").read_text()
    claims = {claim["name"]: claim for claim in report["claims"]}
    assert list(claims) == [claim.name for claim in et.replies.CLAIMS]
    for claim in claims.values():
        assert all(test in family for test in claim["tests"])
        won = all(t["difference"] > 0 and t["p_holm"] < 0.05 for t in claim["tests"])
        assert claim["holds"] == (None if won and claim["missing"] else won)
        assert claim["sentence"].startswith("not ") != bool(claim["holds"])
        assert html.escape(claim["short"].split(": ", 1)[-1], quote=False) in page.replace("&#39;", "'")
    assert max(t["p_holm"] / t["p"] for t in family) > 2
    for figure, names in (("components", ("components", "payload")), ("ablation", ("needed_resample",))):
        with Image.open(done / "figures" / f"{figure}.png") as picture:
            assert picture.info["Title"] == " ".join(claims[name]["short"] for name in names)
    assert claims["needed_zero"]["sentence"].startswith("not tested: the circuit is needed")
    frontier = report["frontiers"]
    assert set(frontier["area"]) == {"steer", "circuit", "random_tuned"}
    assert sum(p["chosen"] for p in frontier["points"]) == len(frontier["area"])


def test_runs_stand_side_by_side_with_the_figures_of_their_reports(done, study, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    beside = importlib.import_module("side_by_side")
    with pytest.raises(EmotraceError, match=r"report.json is not there, so no finished run"):
        beside.main([done, tmp_path])
    shutil.copytree(done / "tables", tmp_path / "tables")
    (tmp_path / "report.json").write_text('{"model": {}}')
    with pytest.raises(
        EmotraceError, match=r"no report of emotion_circuits.py .* nothing of chosen, chosen_circuit, elicitation"
    ):
        beside.main([tmp_path])
    with pytest.raises(EmotraceError, match="given 1 times for 2 runs"):
        beside.main([done, done], ["one"])
    beside.main([done, done], ["one", "two"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["", "one", "two"]
    report, cells = (
        json.loads((done / "report.json").read_text()),
        {line[0]: line[1] for line in lines if line[1] == line[2]},
    )
    for arm in COMPARED:
        leaf = report["accuracy_fluent"][arm]["overall"]
        assert cells[f"`{arm}`"].startswith(f"{100 * leaf['value']:.1f} [{100 * leaf['ci95'][0]:.1f}, ")
    (test,) = [t for t in report["paired"] if (t["a"], t["b"], t["score"]) == ("circuit", "prompt", "accuracy_fluent")]
    assert cells["circuit − prompt"].startswith(f"{100 * test['difference']:+.1f} [")
    norm = et.directions.load(done / "directions")["norm"].sel(sublayer="resid_post").mean("emotion")
    rms = [row["rms"] for row in report["layer_profile"] if row["sublayer"] == "resid_post"]
    ratio = [float(n) / (r * 256**0.5) for n, r in zip(norm, rms, strict=True)]
    at = max(range(len(ratio)), key=ratio.__getitem__)
    assert cells["directions largest beside the stream at depth"] == f"{(at + 1) / len(ratio):.0%} ({ratio[at]:.2f})"


def test_intervals_include_the_fit(done):
    """Two refits, each of other directions and another circuit, out of the same store, at the settings chosen once."""
    report = json.loads((done / "report.json").read_text())
    found = report["refits"]
    assert (found["n"], found["skeletons"], found["of"]) == (2, 2, 4)  # 1 / (1/4 + 1/3), rounded
    names = {"steer", "circuit", "steer − prompt", "circuit − prompt", "circuit − steer"}
    for score in ("accuracy", "accuracy_fluent"):
        assert set(found[score]) == names
        for arm in ("steer", "circuit"):
            leaf = found[score][arm]
            assert leaf["value"] == pytest.approx(report[score][arm]["overall"]["value"])
            assert leaf["ci95"][0] <= leaf["value"] <= leaf["ci95"][1]
    for arm in ("steer", "circuit"):
        edits = set()
        for i in (1, 2):
            rows = [row for _, row in et.datasets.read_jsonl(done / "parts" / f"refit_{i}_{arm}.jsonl")]
            assert len({r["key"] for r in rows}) == 4 * 3 * 6
            edits |= {r["meta"]["edits"] for r in rows}
        assert len(edits) == 2
    assert "other draws of 2 of the 4 training skeletons" in (done / "report.html").read_text().replace("\n", " ")
    assert len(pd.read_csv(done / "tables" / "refits.csv")) == 2 * len(names)


def test_logits_stand_beside_projections(done):
    found = json.loads((done / "report.json").read_text())["mediation"]
    assert set(found["words"]) == {"replies", "names"}
    assert all(len(words) == 5 for words in found["words"]["replies"].values())
    for told in found["arms"].values():
        assert told["projection"]["effect"] > 0
        assert told["replies"]["effect"] > 0
        assert told["replies"]["held"] == pytest.approx(told["replies"]["effect"] * (1 - told["replies"]["mediated"]))
    assert 'id="mediation"' in (done / "report.html").read_text()


def test_acceptance_is_told_of_skeletons_that_nothing_was_chosen_on(done):
    report = json.loads((done / "report.json").read_text())
    rows = [row for _, row in et.datasets.read_jsonl(done / "parts" / "train_prompt.verdicts.jsonl")]
    taken, (used,) = report["accepted_train"], {report["elicitation"]["n_skeletons"]}
    assert (taken["n_skeletons"], taken["optimistic"]) == (4 - used, False)
    assert taken["n"] == 18 * (4 - used)
    assert taken["of"] == len({json.dumps(r["key"]) for r in rows}) == 72


def test_the_report_says_at_which_reply_tokens_the_neurons_of_the_circuit_are_highest(done):
    found = json.loads((done / "report.json").read_text())["reply_tokens"]
    acts = et.open_activations(done / "reply_tokens.zarr")
    tokens, table = acts.tokens, et.Circuit.load(done / "circuit").components.query("kind == 'neuron'")
    fit = json.loads(et.Circuit.load(done / "circuit").meta["selection"])[0]["skeleton_id"]
    assert set(tokens["key"]) <= set(accepted_keys(done, fit))
    assert (tokens["position_from_end"] >= 0).all()
    assert (found["n_replies"], found["n_tokens"]) == (tokens["key"].nunique(), len(tokens))
    assert (found["store"], found["plan_digest"]) == ("reply_tokens.zarr", acts.attrs["plan_digest"])
    lines = pd.DataFrame(found["tokens"])
    for emotion, part in lines.groupby("emotion"):
        best = table[table["emotion"] == emotion].nlargest(3, "score")
        assert set(zip(part["layer"], part["unit"], strict=True)) == set(zip(best["layer"], best["index"], strict=True))
    for (_, layer, unit), part in lines.groupby(["emotion", "layer", "unit"]):
        values = acts.neuron.sel(layer=layer, unit=unit).values
        assert part["activation"].tolist() == pytest.approx(sorted(values, reverse=True)[:4])
        row = part.iloc[0]
        at = tokens.query("key == @row.key and position_from_end == @row.position_from_end")
        assert values[at.index[0]] == pytest.approx(row["activation"])
        assert at["token_text"].item() == row["token_text"]
    page = (done / "report.html").read_text()
    data = json.loads(re.search(r'id="replies-data">(.*?)</script>', page, re.S)[1])
    dirs = et.directions.load(done / "directions").sel(sublayer=["resid_post"], layer=[found["projected"]["layer"]])
    along = et.directions.project(acts, dirs).squeeze(drop=True)
    own = [float(f"{along.sel(direction=e).values[i]:.3g}") for i, e in enumerate(tokens["emotion"])]
    assert sorted(v for spoken in data["tokens"].values() for _, v in spoken) == sorted(own)
    assert {data["methods"][data["rows"][int(at)][1]] for at in data["tokens"]} == {"prompt (training)"}
    assert found["of"] in page
    assert 'id="reply-tokens"' in page
    assert len(pd.read_csv(done / "tables" / "reply_tokens.csv")) == len(lines)


def test_the_circuit_is_found_on_one_part_and_measured_on_the_others(done):
    report = json.loads((done / "report.json").read_text())
    assert report["directions"] == {"n_groups": report["directions"]["n_groups"], "fitted_on": 3, "chosen_on": 1}
    assert et.Circuit.load(done / "circuit").meta["n"]["anger"] <= 3 * 3


@pytest.fixture
def confirm(study, tmp_path, monkeypatch):
    """The module, in a checkout of its own, and its arguments: two skeletons of another file."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    spec = importlib.util.spec_from_file_location("confirm", ROOT / "experiments" / "confirm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    place = tmp_path / "checkout"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(place)]
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    (place / "code.py").write_text("x = 1\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    monkeypatch.setattr(module, "ROOT", place)
    monkeypatch.setattr(module, "RECORDS", place / "confirmed")
    data = tmp_path / "few.jsonl"
    data.write_text("".join((ROOT / "data" / "confirm_set.jsonl").read_text().splitlines(keepends=True)[9:11]))
    given = {name: p.default for name, p in inspect.signature(module.main).parameters.items()}
    return module, given | {"model": SMALL["model"], "data": data}, git


def test_what_was_chosen_is_confirmed_once_on_other_skeletons(done, confirm):
    module, given, git = confirm
    given |= {"study": done}
    chosen = json.loads((done / "report.json").read_text())
    (module.ROOT / "code.py").write_text("x = 2\n")
    with pytest.raises(EmotraceError, match=r"1 files here are changed and not committed \(code.py\)"):
        module.main(**given)
    subprocess.run([*git, "commit", "-qam", "second"], check=True)
    with pytest.raises(EmotraceError, match="share 4 of 160"):
        module.main(**given | {"data": SMALL["test"]})
    with pytest.raises(EmotraceError, match="was judged by None, not by 'lexicon:v1'"):
        module.main(**given | {"second_judge": "lexicon"})
    module.main(**given)
    (path,) = module.RECORDS.iterdir()
    record = json.loads(path.read_text())
    assert path.stem == f"tiny_model-{record['model']['weights_hash']}"
    assert record["model"]["weights_hash"] == chosen["model"]["weights_hash"]
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert record["commit"] == head
    assert record["data"]["skeletons"] == 2
    assert record["data"]["sha256"] == hashlib.sha256(given["data"].read_bytes()).hexdigest()
    assert set(record["accuracy_fluent"]) == set(COMPARED)
    assert [claim["name"] for claim in record["claims"]] == [claim.name for claim in et.replies.CLAIMS]
    of = {}
    for name in ("confirm/generations.jsonl", "generations.jsonl"):
        for _, row in et.datasets.read_jsonl(done / name):
            of.setdefault(row["method"], {}).setdefault(name, set()).add(row["meta"]["edits"])
    for method in ("steer", "circuit", "random_tuned", "wrong_payload"):
        assert len(set().union(*of[method].values())) == len(of[method]["generations.jsonl"]), "other edits"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "record"], check=True)
    with pytest.raises(EmotraceError, match="confirmed before, on "):
        module.main(**given)


def test_again_it_computes_nothing_and_says_the_same(
    done, study, undrawn, monkeypatch
):  # after those that look at the pictures
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (done / "parts").iterdir()}
    report = json.loads((done / "report.json").read_text())
    for module, name in ((scores, "replies"), (scores, "divergences"), (runs, "generate"), (kept, "generate")):
        monkeypatch.setattr(module, name, None)  # nothing is generated, and no reply is scored
    study.main(out=done, **SMALL)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (done / "parts").iterdir()} == before
    assert json.loads((done / "report.json").read_text()) == report


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"draws": 0}, "at least 1 draw"),
        ({"refits": 1}, "--refits 1: one refit"),
        ({"preset": "emotion_circus"}, "emotion_circuits"),
        ({"seed": 1}, "other settings"),
        ({"limit": 1}, "--limit 1: 1 skeleton"),
        ({"judge": "oracle"}, "lexicon"),
        ({"arms": "prefill_3"}, "unknown arm 'prefill_3' in --arms"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(done, study, wrong, words):
    with pytest.raises(EmotraceError, match=words):
        study.main(out=done, **{**SMALL, **wrong})


def test_the_published_protocol_runs_on_a_model_of_fewer_layers(study, tmp_path, monkeypatch, undrawn):
    whole = et.presets.preset("emotion_circuits")
    short = {k: {**whole[k], "max_new_tokens": 6} for k in ("decoding", "decoding_steered", "decoding_circuit")}
    for k in ("decoding_steered", "decoding_circuit"):
        short[k]["min_new_tokens"] = 3
    short["steering"] = {**whole["steering"], "layers": (1, 2, 3)}
    short["influence"] = {**whole["influence"], "block": (4, 5), "doses": (0.1,)}
    monkeypatch.setattr(et.presets, "preset", lambda name: {**whole, **short})
    texts = [{"text": f"i the you my it a to {e} {i}", "emotion": e} for e in et.EMOTIONS for i in range(3)]
    et.judges.fit(texts, name="mine", least=1, folds=2).save(tmp_path / "judge")
    tester = {"second_judge": f"fitted:{tmp_path / 'judge'}"}
    study.main(out=tmp_path / "run", **{**SMALL, **ALONE, **tester, "limit": 2})
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["judge"]["name"], report["judge"]["second"]) == ("lexicon:v1", "fitted:mine")
    assert {test["score"] for test in report["paired"]} >= {"accuracy_fluent"}
    assert "judge lexicon:v1, tested by fitted:mine" in (tmp_path / "run" / "report.html").read_text()
    assert set(report["accuracy_second"]) == set(report["accuracy"])
    assert report["chosen"]["layers"] == [1, 2, 3]
    assert report["chosen"]["dose"] == pytest.approx(8 / 256**0.5)
    assert (
        report["chosen_circuit"] | {"neuron_positions": "steer", "head_positions": "all", "lambda": 1.0}
        == report["chosen_circuit"]
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["template"]["double_bos"]
    assert manifest["preset_settings"]["circuit"]["total"] == 560
    rows = [json.loads(line) for line in (tmp_path / "run" / "generations.jsonl").read_text().splitlines()]
    assert all(r["verdict_second"]["judge"] == "fitted:mine" for r in rows)
    penalty = {r["method"]: r["meta"]["decoding"]["repetition_penalty"] for r in rows}
    assert (penalty["prompt"], penalty["steer"], penalty["circuit"]) == (1.0, 1.05, 1.1)
    dirs = et.directions.load(tmp_path / "run" / "directions")
    assert dirs.attrs["after_final_norm"] == [{"layer": 5, "sublayer": "resid_post"}]
    influence = et.attribution.load_scores(tmp_path / "run" / "influence", "influence")
    assert (influence.attrs["readout"], influence.attrs["align"]) == ("final_norm", 1)


def test_the_published_protocol_is_that_of_the_paper(study):
    llama = SimpleNamespace(sites=SimpleNamespace(n_layers=28, d_model=3072))
    found = study.circuit_protocol.published("emotion_circuits", llama)
    assert [len(found.steering), len(found.modulation)] == [1, 1]
    setting = found.steering[0][0]
    assert (setting["layers"], setting["positions"]) == (list(range(11, 21)), "steer")
    assert setting["dose"] == pytest.approx(0.1443, abs=1e-4)  # one layer adds 14.4 % of the norm
    assert found.modulation[0][0] == {"neuron_positions": "steer", "head_positions": "all", "lambda": 1.0}
    assert found.by_label == {"anger": 0.8}
    assert (found.block, found.after_norm) == ((21, 22, 23, 24, 25), True)
    assert found.influence == {"doses": (0.1, 0.3, 0.5, 0.7), "readout_site": "final_norm", "align": True}
    assert study.circuit_protocol.encoding("emotion_circuits")["double_bos"]
    assert study.circuit_protocol.encoding(None) == {}


def test_a_folder_whose_store_lacks_components_is_refused_by_name(done, study, tmp_path):
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest.pop("captured") == ["resid_mid", "resid_post", "z", "neuron"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EmotraceError, match=r"captured: '\(nothing\)' there, \['resid_mid'"):
        study.main(out=tmp_path, **SMALL)


def test_no_flag_is_left_out_of_the_manifest(done, study):
    """But where things lie, what is only asked, what an endpoint costs, and what other entries say (identity, lines searched)."""
    flags = set(inspect.signature(study.main).parameters)
    elsewhere = {"out", "price", "dry_run", "dose_step", "attn_implementation", "device", "dtype", "bos", "remote"}
    assert flags - set(json.loads((done / "manifest.json").read_text())) == elsewhere


def test_a_dry_run_says_what_it_would_take_and_binds_no_folder(study, tmp_path, capsys):
    study.main(out=tmp_path / "run", dry_run=True, **{**SMALL, "elicit": "instruct"})
    said = capsys.readouterr().out
    assert "at most 1," in said
    assert "s a reply that is asked for" in said
    assert not (tmp_path / "run").exists()


def test_the_published_protocol_is_refused_for_a_shallow_model(study, tmp_path):
    with pytest.raises(EmotraceError, match="this model has 6 layers"):
        study.main(out=tmp_path / "run", **{**SMALL, "preset": "emotion_circuits"})


def test_arms_are_named_in_their_order_and_tuned_controls_are_circuits(study, done):
    arms, circuit = study.circuit_arms, et.Circuit.load(done / "circuit")
    assert arms.named("all") == arms.NAMES == tuple(a for a in ARMS if a not in arms.ALWAYS)
    assert arms.named("none") == ()
    assert arms.named("wrong_payload, prefill_1,steer") == ("prefill_1", "wrong_payload")
    scores = {f"{k}s": et.attribution.load_scores(done / "circuit" / k, f"{k}s") for k in ("neuron", "head")}
    made = arms.tuned(arms.NAMES, circuit, scores, seed=0)
    assert list(made) == ["random_tuned", "shared_set", "all_components"]
    assert made["random_tuned"].digest == circuit.random(1, matched=True).digest
    best = scores["neurons"]["contrast"].sel(layer=2).mean("emotion")
    wanted = best["unit"].values[(-best.values).argsort()[:20]].tolist()
    assert {tuple(made["shared_set"].members(e, "neuron", 2)) for e in circuit.labels} == {tuple(wanted)}
    assert len(made["all_components"].members("fear", "head", 2)) == circuit.payload.sizes[COMPONENTS["head"].dim]
    acts, asked = et.open_activations(done / "activations.zarr"), et.datasets.sev(SMALL["test"], limit=1)
    of = {key: (e, v) for key, e, v in acts.tokens[["key", "emotion", "valence"]].itertuples(index=False)}
    for key, donor in arms.donors(asked, acts, 0).items():
        (mine,) = (p.labels for p in asked if p.key == key)
        assert of[donor][0] != mine["emotion"]
        assert of[donor][1] == mine["valence"]
