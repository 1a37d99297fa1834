"""What CONTRIBUTING.md says about adding one of each, done."""

from __future__ import annotations

import configparser
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
import typer
import xarray as xr
from typer.testing import CliRunner

import emotrace as et
from emotrace import arms, discovery, edits, labels, replies, spread
from emotrace.cli.groups import grouped
from emotrace.cli.options import Seed
from emotrace.datasets import Prompts
from emotrace.evaluation import Evaluation
from emotrace.forwards.entering import enter, inputs
from emotrace.ranks import Rank
from emotrace.report import page, style
from emotrace.report.figures import Shown
from emotrace.runlog import Log
from emotrace.testing import conformance, tiny
from emotrace.traced import runs
from emotrace.traced.steps import ordered
from tests import documented

ROOT = Path(__file__).resolve().parents[1]
TOLD = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROMPTS = ["The door was open", "A cold morning by the sea", "Who knocks?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contributing") / "model"
    tiny.save("llama", folder, num_hidden_layers=2)
    return et.load(str(folder))


def test_a_site(model):
    """A place of one's own is captured, and edited, under its path."""
    place = et.Site("model.layers.1.mlp.gate_proj")
    acts = et.capture(model, PROMPTS, place, progress=False)
    seen = {}
    hook = model._module.get_submodule(place.path).register_forward_hook(lambda m, i, o: seen.update(x=o[0, -1]))
    ids = model.sites.encode(PROMPTS[:1])
    with torch.no_grad():
        model._module(**{k: v for k, v in ids.items() if isinstance(v, torch.Tensor)})
    hook.remove()
    np.testing.assert_allclose(acts.sel(variable=f"{place.path}:output").values[0], seen["x"], atol=1e-6)
    assert et.generate(model, PROMPTS[:1], [et.Ablate(place)], max_new_tokens=2, progress=False)


@dataclass(frozen=True)
class Twice(edits.Scale):
    """2·h."""

    strength: float = 2.0


def test_an_edit(model):
    """A kind of edit is a frozen class; where its arithmetic is there already, that is all."""

    def run(edit):
        return et.capture(model, PROMPTS, "resid_post", edits=[edit], progress=False).sel(layer=1).values

    where = {"site": "mlp_out", "layers": [0], "positions": "all"}
    np.testing.assert_array_equal(run(Twice(**where)), run(et.Scale(**where, strength=2.0)))


class Vowels:
    """Reads bliss in texts of many vowels, and calm in others."""

    name, choices = "vowels", ("bliss", "calm")

    def judge(self, texts, *, progress=False):
        many = [sum(c in "aeiou" for c in text) > len(text) / 3 for text in texts]
        return [{"predicted": "bliss" if m else "calm", "judge": self.name, "reason": "counted"} for m in many]


ROWS = [
    {"key": str(i), "method": "steer", "draw": 0, "skeleton_id": str(i), "valence": "neutral", "emotion": aim, "gen_text": text,
     "token_ids": [1, 2, 3, i], "meta": {"length": 4}}
    for i, (aim, text) in enumerate([("bliss", "aaa"), ("bliss", "xxx"), ("calm", "xyz"), ("calm", "zzz")])
]  # fmt: skip


def test_a_judge(monkeypatch):
    """A judge is a name and ``judge(texts)``; what it may answer is ``choices``. A line of the table names it to ``--judge``."""
    monkeypatch.setitem(sys.modules, "emotrace.judges.vowels", sys.modules[__name__])
    monkeypatch.setitem(labels.JUDGES, "vowels", "vowels.Vowels")
    assert isinstance(et.judges.make("vowels"), Vowels)
    judged = et.judges.judge_rows(ROWS, Vowels(), progress=False)
    assert replies.accuracy_table(judged)["overall"]["value"] == 3 / 4
    assert list(replies.confusion_table(judged).columns) == ["bliss", "calm", "neutral", "unjudged"]


class Norm:
    """½‖h‖² of the last layer's residual."""

    name = "norm"

    def reads(self, model):
        return (("resid_post", model.sites.n_layers - 1),)

    def lower(self, model, pairs, clean):
        return (lambda values: values[0].square().sum(-1) / 2), ()


def test_a_metric(model):
    """A metric of discovery has a name, the sites that it reads, and a function of them."""
    pairs = discovery.pairs(model, PROMPTS[:1], ["The gate was open"], align="spans")
    options = {"method": "patching", "nodes": "mlp", "progress": False}
    found = discovery.scores(model, pairs, Norm(), **options)
    same = discovery.SiteFunction([("resid_post", 1)], lambda values: values[0].square().sum(-1) / 2)
    assert float(abs(found["score"]).max()) > 0
    np.testing.assert_array_equal(found["score"], discovery.scores(model, pairs, same, **options)["score"])


def test_a_measure():
    """A measure of replies is a column; its mean has n and an interval."""
    lines = replies.table(ROWS, ["length"], cluster="skeleton_id")
    assert replies.mean_of(lines, "length")[:4] == (4, 4, 4, 4)


def test_an_arm(monkeypatch):
    """An arm is an entry of the table; a study that has no function for it refuses to start."""
    made = arms.made_by("steered")
    monkeypatch.setitem(arms.ARMS, "louder", arms.Arm("louder", "#112233", "steered", drawn=True))
    with pytest.raises(et.EmotraceError, match="arms that are steered: louder"):
        arms.refuse_missing("steered", made)
    arms.refuse_missing("steered", [*made, "louder"])
    judged = [{**row, "method": "louder", "meta": {"length": 4, "repetition": 0.0, "fluent": True}} for row in ROWS]
    found = replies.summary(et.judges.judge_rows(judged, Vowels(), progress=False))
    assert found["accuracy"]["louder"]["overall"]["value"] == 3 / 4


def test_a_claim():
    needs = (replies.Comparison("steer", "none", "accuracy"),)
    rows = [
        {"key": f"k{i}", "skeleton_id": f"s{i}", "method": arm, "verdict": {"match": int(arm == "steer")}}
        for i in range(8)
        for arm in ("steer", "none")
    ]
    (found,), _ = replies.claims(
        rows, wanted=[replies.Claim("heard", "shouting is heard", needs, "what is said anyway")]
    )
    assert found["holds"]
    assert found["sentence"].startswith("Shouting is heard (steer − none: +100.0 points")


def test_a_study(model, tmp_path):
    """A study is an evaluation whose arms differ by prompts and edits alone; again it computes nothing."""
    study = Evaluation(model, Vowels(), tmp_path, {"max_new_tokens": 3}, progress=False)
    prompts = Prompts.of([{"text": t, "emotion": "calm", "key": str(i)} for i, t in enumerate(PROMPTS)])
    arm = study.replies("steer", prompts, [Twice("mlp_out", layers=[0])], method="steer")
    assert {row["method"] for row in arm} == {"steer"}
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert study.replies("steer", prompts, [Twice("mlp_out", layers=[0])], method="steer") == arm
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_a_figure(tmp_path):
    """A figure is a canvas with its claim and caption; it stands on the page under its name, beside its table."""
    figure = style.canvas(3, "One & two", "n = 2.")
    figure.add_subplot().plot([0, 1])
    scores = xr.DataArray([1.0, 2.0], dims="layer", name="score").to_dataframe()
    out = page.publish(tmp_path, {}, [Shown("mine", "Mine", figure)], {"scores_at_kl": (scores, "Of two layers.")}, {})
    text = out.read_text()
    assert (tmp_path / "figures" / "mine.png").is_file()
    assert all(words in text for words in ('id="figure-mine"', "n = 2.", "Of two layers.", ">Scores at KL<"))


@dataclass(frozen=True, kw_only=True)
class Loudness:
    """How loud a reply is."""

    seed: Seed
    factor: Annotated[float, typer.Option(help="of what is added", min=0)] = 1.5


def test_a_flag():
    """A group of flags is a class whose fields are options; any command takes it as one parameter."""
    app = typer.Typer()
    heard: list[Loudness] = []
    for name, loudness in (("say", Loudness(seed=7)), ("sing", Loudness(seed=0, factor=4.0))):

        @app.command(name)
        @grouped
        def said(*, loudness: Loudness = loudness) -> None:
            heard.append(loudness)

    for words in (["say", "--factor", "2"], ["sing", "--seed", "3"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert heard == [Loudness(seed=7, factor=2.0), Loudness(seed=3, factor=4.0)]
    assert CliRunner().invoke(app, ["say", "--factor", "-1"]).exit_code == 2


def test_a_page(tmp_path, monkeypatch):
    """Every page is in a toctree. What one prints is compared with the fence behind; what it leaves out says why."""
    trees = [
        tree
        for path in (ROOT / "docs").rglob("*.md")
        for tree in re.findall(r"```{toctree}\n(.*?)```", path.read_text(), re.S)
    ]
    named = {line.split("/")[-1] for tree in trees for line in tree.splitlines()} | {"index"}
    written = {Path(page).stem for page in documented.pages() if page.startswith("docs/")}
    assert written <= named
    assert len(written) > 10
    (tmp_path / "docs").mkdir()
    fences = ("python\nx = 1 + 1\nprint(x, 'of many')", "text\n2 …", "python\nraise RuntimeError")
    told = "\n<!-- not run: it fails -->\n".join(
        ("".join(f"```{f}\n```\n" for f in fences[:2]), f"```{fences[2]}\n```\n")
    )
    (tmp_path / "docs" / "mine.md").write_text(f"# Mine\n\n{told}")
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    assert documented.pages()[2:] == ["docs/mine.md"]
    first, second = documented.blocks("docs/mine.md")
    printed = documented.run(first, {})
    assert first.printed is not None
    assert documented.same(printed, first.printed)
    assert not documented.same(printed.replace("2", "3"), first.printed)
    assert second.why_not == "it fails"


def test_work_for_several_ranks(tmp_path):
    """A rank that is killed leaves its pieces to the others; the file has the bytes of one process."""
    pieces = [[(i,), (i + 1,)] for i in range(0, 8, 2)]
    asked = []

    def make(piece, dies=None):
        if piece == dies:
            raise KeyboardInterrupt
        asked.append(piece)
        return [{"key": i, "square": i * i} for (i,) in pieces[piece]]

    with Log(tmp_path / "alone.jsonl", ("key",)) as log:
        log.append([row for i in range(4) for row in make(i)])
    asked.clear()
    with Log(tmp_path / "many.jsonl", ("key",)) as log:
        with pytest.raises(KeyboardInterrupt):
            spread.joined(log, {"made": "squares"}, Rank(1, 2), pieces, lambda i: make(i, 3))
        spread.joined(log, {"made": "squares"}, Rank(0, 2), pieces, make)
    assert sorted(asked) == [0, 1, 2, 3]
    assert asked[0] == 1
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def largest(model, fed, steps):
    """The largest entry at each place that is read."""
    seen = {}
    runs.capture(model, fed, steps, lambda number, value: seen.update({number: float(value.abs().max())}), 0)
    return seen


def test_a_way_to_run_a_model(model):
    """Steps in the order of execution, carried out by a function that is entered."""
    steps = [model.sites.resolve("resid_post", layer).read(model, layer) for layer in (1, 0)]
    found = enter(model, largest, inputs(model, model.sites.encoder.ids(Prompts.of(PROMPTS[:1]))), ordered(steps))
    want = et.capture(model, PROMPTS[:1], "resid_post", positions="prompt", progress=False)
    for layer in (0, 1):
        assert found[layer] == float(abs(want.sel(layer=layer)).max())


def test_a_family(monkeypatch):
    """One that no table has is found, proven, and held against hooks."""
    monkeypatch.setitem(tiny.FAMILIES, "olmo", ("OlmoForCausalLM", tiny.FAMILIES["llama"][1]))
    monkeypatch.setattr(tiny, "NAMES", (*tiny.NAMES, "olmo"))
    stranger = et.load(tiny.build("olmo", attn_implementation="eager"), tokenizer=tiny.tiny_tokenizer())
    assert (stranger.sites.form, stranger.sites.unproven) == ("sequential", {})
    batch = tiny.batch(stranger._module)
    conformance.check_equations(stranger, batch)
    conformance.check_reads(stranger, batch)


def test_every_name_in_the_guide_is_there():
    """Files, modules and names that CONTRIBUTING.md speaks of exist; a prompt's life has twenty lines, what is new two."""
    life, new = (
        TOLD.split(f"## {title}\n")[1].split("\n## ")[0] for title in ("One prompt's life", "Where a new one goes")
    )
    assert [line.split(".")[0] for line in life.strip().splitlines()[2:]] == [str(i) for i in range(1, 21)]
    assert {part.count("\n") for part in new.split("\n\n")[1].split("\n* ")} == {1}
    files = set(re.findall(r"`(\w[\w.]*/[\w./]*)`", TOLD))
    assert len(files) > 8
    assert [f for f in sorted(files) if not ((ROOT / f).exists() or (ROOT / "emotrace" / f).exists())] == []
    for name in set(re.findall(r"`(\w+(?:\.\w+)+)\(?\)?`", TOLD)):
        first, *parts = name.removeprefix("et.").split(".")
        if not name.endswith((".html", ".json", ".py", ".pyi", ".md")) and (
            hasattr(et, first) or (ROOT / "emotrace" / first).is_dir()
        ):
            found = et
            for part in (first, *parts):
                found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")


def test_the_results_in_a_prompts_life_have_the_names_that_it_gives_them(model):
    """Fields of a reply, and variables of a head's score."""
    lines = {int(n): text for n, text in re.findall(r"^(\d+)\. (.*)$", TOLD, re.MULTILINE)}
    reply, scored = (set(re.findall(r"`(\w+)`", lines[n])) for n in (7, 14))
    assert reply <= set(et.generate(model, PROMPTS[:1], max_new_tokens=1, progress=False)[0])
    asked = Prompts.of([{"text": t, "emotion": e} for t, e in zip(PROMPTS, ("joy", "fear", "joy"), strict=True)])
    acts = et.capture(model, asked, ("resid_mid", "resid_post"), progress=False)
    dirs = et.directions.centered_mean(acts, label="emotion", within=None)
    assert scored <= set(et.attribution.head_contributions(model, asked, dirs, progress=False).data_vars)
    assert len(reply) > 4
    assert len(scored) > 2


def test_the_house_is_drawn_in_the_order_of_its_layers():
    """From the ground up."""
    linter = configparser.ConfigParser()
    linter.read(ROOT / ".importlinter", encoding="utf-8")
    layers = [set(re.findall(r"\w+", line)) for line in linter["importlinter:contract:house"]["layers"].splitlines()][
        ::-1
    ]
    drawn = [set(layer.split(", ")) for layer in " ".join(TOLD.split("```")[1].split("\nlazy")[0].split()).split(" → ")]
    at = [next(i for i, layer in enumerate(layers) if rooms <= layer) for rooms in drawn]
    assert at == sorted(set(at))
