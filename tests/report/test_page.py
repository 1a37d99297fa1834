import base64
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import matplotlib
import pytest

from emotrace import report as room
from emotrace.labels import EmotraceError
from emotrace.report import numbers, page, saved, tables

FORMATS = ("png", "svg", "pdf")
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Balanced(HTMLParser):
    """Every element that was opened is closed, no two have one id, and every link of the page leads to one."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links, self.ids, self.labelled = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.images += [found] if tag == "img" else []
        self.links += [found["href"]] if tag == "a" else []
        self.ids += [found["id"]] if "id" in found else []
        self.labelled += [found["for"]] if tag == "label" and "for" in found else []
        assert not {"src", "href"} & set(found) or tag in ("img", "a"), "nothing is fetched"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert {link.removeprefix("#") for link in [*parser.links, *parser.labelled]} <= set(parser.ids)
    return parser


def data_of(text):
    """What the script of a page reads."""
    return json.loads(re.search(r'<script type="application/json" id="replies-data">(.*?)</script>', text, re.S)[1])


def test_a_whole_run_is_one_file_with_pictures_inside(report, rows, dirs, found, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "FORMATS", FORMATS)
    settings = dict(matplotlib.rcParams)
    path = room.write(tmp_path / "run", report, rows, directions=dirs, agnosticism=found, manifest=manifest)
    assert dict(matplotlib.rcParams) == settings
    assert path == tmp_path / "run" / "report.html"
    names = ["accuracy", "agnosticism", "confusion", "dose", "layers", "similarity"]
    files = sorted(p.name for p in (path.parent / "figures").iterdir())
    assert files == sorted(f"{name}.{ending}" for name in names for ending in FORMATS)
    text = path.read_text(encoding="utf-8")
    parser = parsed(text)
    assert len(parser.images) == 6
    for image in parser.images:
        start, picture = image["src"].split(",")
        assert start == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(picture)).tag.endswith("svg")
        assert len(image["alt"]) > 40
    assert {f"#figure-{name}" for name in names} <= set(parser.links)
    assert {"numbers", "scores", "figures", "replies", "again", "manifest"} <= {link[1:] for link in parser.links}
    assert not list(path.parent.rglob("*.tmp"))
    assert "http" not in re.sub(r"<!doctype.*?>", "", text)
    assert len(data_of(text)["rows"]) == len(rows)


def test_texts_of_a_model_are_escaped_everywhere(report, rows, manifest):
    manifest["model"]["id"] = report["model"]["id"] = "<script>alert(1)</script>"
    text = page.render(report, manifest=manifest, page=page.Page(replies=rows, facts=["<b>then</b>"]))
    assert "<script>alert" not in text
    assert "<foreign>" not in text
    assert "<b>then" not in text
    assert any("<script>alert('x')</script> & so on" in said for said in data_of(text)["texts"])
    parsed(text)


def test_headline_numbers_are_those_of_the_report(report):
    shown = {h["name"]: h for h in numbers.headlines(report)}
    assert shown["steer"]["value"] == "93.0 %"
    assert shown["prompt"]["value"] == "98.5 %"
    low, high = report["accuracy"]["steer"]["overall"]["ci95"]
    assert shown["steer"]["interval"] == f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert shown["best control"]["value"] == "15.0 %"
    assert shown["best control"]["note"] == "random_steer; chance 17 %"
    assert shown["steer over none"]["value"] == "+87.0 points"


def test_scores_state_n_unjudged_and_worst_case(report):
    row = next(s for s in numbers.scores(report) if s["method"] == "steer")
    assert (row["n"], row["n_unjudged"], row["accuracy_target"]) == (2880, 3, "–")
    assert row["worst"] == f"{100 * report['accuracy']['steer']['overall']['worst_case']:.1f} %"
    assert "target-aware" not in page.render(report)
    report["accuracy_target"] = report["accuracy"]
    assert "target-aware" in page.render(report)


def test_a_second_judge_and_the_agreement_of_both_are_shown(report):
    assert "second judge" not in page.render(report)
    report["accuracy_second"] = report["accuracy"]
    report["judge_agreement"] = [
        {"method": "all", "n": 2880, "same": 0.9, "kappa": 0.8, "kappa_ci95": [0.7, 0.9], "alpha": math.nan,
         "alpha_ci95": [math.nan, math.nan]}
    ]  # fmt: skip
    text = page.render(report)
    for word in ("second judge", "0.80 [0.70, 0.90]", "2,880", "90.0 %"):
        assert word in re.sub("<[^>]+>", "", text)
    assert tables.agreement(report)["kappa_low"].tolist() == [0.7]


def test_corrected_p_stand_beside_the_others(report):
    report["paired"] = [
        {"a": "x", "b": "y", "difference": 0.1, "ci95": [0, 0.2], "p": 0.01, "p_floor": 0, "n_skeletons": 9}
    ]
    assert "Holm" not in page.render(report)
    report["paired"][0]["p_holm"] = 0.04
    assert "Holm" in page.render(report)
    assert numbers.paired(report)[0]["holm"] == "0.04"


def test_notices_warn_of_the_teaching_model_and_of_a_weak_judge(report):
    assert page.notices(report) == [page.TEACHING, *report["warnings"]]
    report["judge"]["accuracy"] = 0.64
    assert "64 %" in page.notices(report)[-1]
    assert page.notices({}) == []


@pytest.mark.parametrize(
    "absent",
    [
        "accuracy",
        "accuracy_fluent",
        "lift",
        "fluency",
        "confusion",
        "sweep",
        "chosen",
        "layer_profile",
        "judge",
        "model",
    ],
)
def test_any_part_may_be_absent(report, rows, absent):
    del report[absent]
    shown = room.draw(report)
    names = {"accuracy": "accuracy", "confusion": "confusion", "sweep": "dose"}
    assert {s.name for s in shown} == {name for part, name in names.items() if part != absent}
    parsed(page.render(report, shown, tables.frames(report), page=page.Page(replies=rows[:8])))


def test_an_empty_report_is_a_page_without_sections(tmp_path):
    text = room.write(tmp_path, {}).read_text(encoding="utf-8")
    parsed(text)
    assert "<h2" not in text
    assert "an unnamed model" in text


def test_the_manifest_is_flat_and_the_command_stands_alone(report, manifest):
    text = page.render(report, manifest=manifest)
    assert '<th scope="row">model.config_hash</th><td>ab12</td>' in text
    assert "<pre>emotion_circuits.py --model &lt;tiny&gt; --out runs/demo</pre>" in text
    assert '<th scope="row">command</th>' not in text


def test_the_same_data_make_the_same_page_and_pictures(report, rows, tmp_path):
    del report["confusion"], report["sweep"]
    for name in ("a", "b"):
        room.write(tmp_path / name, report, rows)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5 + len(saved.FORMATS)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_file_in_the_place_of_the_folder_is_refused(report, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(EmotraceError, match="give a folder"):
        room.write(tmp_path / "out", report)


def test_claims_stand_beside_their_tests(report):
    test = {"a": "steer", "b": "none", "score": "accuracy_fluent", "difference": 0.5, "ci95": [0.4, 0.6], "p": 0.001,
            "p_floor": 0.001, "p_holm": 0.004, "n_skeletons": 160, "holds": True}  # fmt: skip
    said = "not tested: it <steers>"
    claim = {"name": "steers", "sentence": said, "short": said, "holds": True, "tests": [test], "missing": [],
             "control": "chance", "figure": "accuracy"}  # fmt: skip
    report["claims"] = [claim, {**claim, "holds": None, "tests": [], "missing": ["circuit"], "figure": "nowhere"}]
    first, second = numbers.claims(report, ["accuracy"])
    assert first["tests"] == [
        "steer − none, accuracy fluent: +50.0 points [40.0, 60.0], p ≤ 0.001, Holm's p ≤ 0.004, 160 skeletons: won"
    ]
    assert (first["verdict"], second["verdict"]) == ("holds", "not tested")
    assert (second["missing"], second["figure"]) == ("circuit", "")
    text = page.render(report, room.draw(report)[:1])
    assert "it &lt;steers&gt;" in text
    assert "#figure-accuracy" in parsed(text).links


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        ("93.1 % [91.9, 94.2]", ["93.1 %", "[91.9, 94.2]"]),
        ("50 % [33 %, 83 %], n 12", ["50 %", "[33 %, 83 %],", "n 12"]),
        ("+50.0 points", ["+50.0 points"]),
        ("<b>", ["&lt;b&gt;"]),
    ],
)
def test_a_cell_breaks_before_its_interval_and_nowhere_else(cell, parts):
    assert page.pieces(cell) == "<span>" + " ".join(f'<span class="whole">{p}</span>' for p in parts) + "</span>"
