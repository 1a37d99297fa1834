import html
import math
import re
from html.parser import HTMLParser

import matplotlib
import pytest

from emotrace import report as room
from emotrace.labels import EmotraceError
from emotrace.report import numbers, page, tables
from emotrace.report.samples import samples

VOID = {"meta", "img", "br", "link", "hr"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.images += [dict(attrs)] if tag == "img" else []
        self.links += [dict(attrs)["href"]] if tag == "a" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_a_whole_run_is_written_and_everything_named_exists(report, rows, dirs, found, manifest, tmp_path):
    settings = dict(matplotlib.rcParams)
    path = room.write(tmp_path / "run", report, rows, directions=dirs, agnosticism=found, manifest=manifest)
    assert dict(matplotlib.rcParams) == settings
    assert path == tmp_path / "run" / "report.html"
    names = ["accuracy", "agnosticism", "confusion", "dose", "layers", "similarity"]
    assert sorted(p.stem for p in (path.parent / "figures").iterdir()) == names
    text = path.read_text(encoding="utf-8")
    parser = parsed(text)
    assert len(parser.images) == 6
    for image in parser.images:
        assert (path.parent / image["src"]).is_file()
        assert len(image["alt"]) > 40
    assert len(parser.links) == 7
    assert all((path.parent / link).is_file() for link in parser.links)
    assert not list(path.parent.rglob("*.tmp"))
    assert "http" not in re.sub(r"<!doctype.*?>", "", text)


def test_texts_of_a_model_are_escaped_everywhere(report, rows, manifest):
    manifest["model"]["id"] = report["model"]["id"] = "<script>alert(1)</script>"
    text = page.render(
        report, manifest=manifest, page=page.Page(side_by_side=samples(rows), drawn=rows[:2], facts=["<b>then</b>"])
    )
    assert "<script" not in text
    assert "<foreign>" not in text
    assert "<b>then" not in text
    assert html.escape("<script>alert('x')</script>", quote=False).replace("'", "&#39;") in text
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
        assert word in text
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


def test_samples_do_not_depend_on_row_order_or_content(rows):
    first = samples(rows, groups=4, seed=1)
    for row in rows:
        row["gen_text"], row["verdict"]["match"] = "other", 1
    again = samples(rows[::-1], groups=4, seed=1)
    assert [(s["skeleton"], s["valence"]) for s in first] == [(s["skeleton"], s["valence"]) for s in again]
    assert len(first) == 4
    assert [(s["skeleton"], s["valence"]) for s in samples(rows, 4, seed=2)] != [
        (s["skeleton"], s["valence"]) for s in first
    ]


def test_samples_set_the_reply_of_each_method_beside_the_others(rows):
    sample = samples(rows, groups=1)[0]
    assert sample["methods"] == ["prompt", "steer"]
    assert sample["none"] == {"text": "It was a day.", "answer": "neutral", "right": ""}
    assert [r["emotion"] for r in sample["rows"]] == ["anger", "sadness", "happiness", "fear", "surprise", "disgust"]
    for row in sample["rows"]:
        assert [r["text"].split()[0] for r in row["replies"]] == ["prompt", "steer"]
        assert all(r["answer"] == row["emotion"] and r["right"] == "yes" for r in row["replies"])


def test_unjudged_and_missing_replies_are_shown_as_such(rows):
    kept = [r for r in rows if not (r["method"] == "steer" and r["emotion"] == "fear")]
    for row in kept:
        row["verdict"] = None if row["method"] == "prompt" else row["verdict"]
    sample = samples(kept, groups=1)[0]
    fear = next(r for r in sample["rows"] if r["emotion"] == "fear")
    assert fear["replies"][1] is None
    assert fear["replies"][0]["answer"] == "unjudged"
    parsed(page.render({}, page=page.Page(side_by_side=samples(kept))))


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
    parsed(page.render(report, shown, tables.frames(report), page=page.Page(side_by_side=samples(rows[:8]))))


def test_an_empty_report_is_a_page_without_sections(tmp_path):
    text = room.write(tmp_path, {}).read_text(encoding="utf-8")
    parsed(text)
    assert "<h2" not in text
    assert "an unnamed model" in text


def test_the_manifest_is_flat_and_the_command_stands_alone(report, manifest):
    text = page.render(report, manifest=manifest)
    assert "<td>model.config_hash</td><td>ab12</td>" in text
    assert "<pre>emotion_circuits.py --model &lt;tiny&gt; --out runs/demo</pre>" in text
    assert "<td>command</td>" not in text


def test_the_same_data_make_the_same_page_and_pictures(report, rows, tmp_path):
    del report["confusion"], report["sweep"]
    for name in ("a", "b"):
        room.write(tmp_path / name, report, rows)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 6
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_file_in_the_place_of_the_folder_is_refused(report, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(EmotraceError, match="give a folder"):
        room.write(tmp_path / "out", report)
