import json

import numpy as np
import pandas as pd

from emotrace.labels import EMOTIONS
from emotrace.report import publish, tables


def test_accuracy_holds_every_leaf_unrounded(report):
    table = tables.accuracy(report)
    assert len(table) == 2 * 5 * (1 + 6 + 3)
    for row in table.to_dict("records"):
        part = report[row["score"]][row["method"]]
        leaf = part["overall"] if row["by"] == "overall" else part[f"by_{row['by']}"][row["group"]]
        assert [row["value"], row["ci_low"], row["ci_high"]] == [leaf["value"], *leaf["ci95"]]
        assert (row["n"], row["n_unjudged"], row["worst_case"]) == (leaf["n"], leaf["n_unjudged"], leaf["worst_case"])
    control = table.query("method == 'random_steer' and by == 'overall' and score == 'accuracy'").iloc[0]
    assert json.loads(control["draws"]) == report["accuracy"]["random_steer"]["overall"]["draws"]


def test_csv_reads_back_to_the_same_numbers(report, found, tmp_path):
    frames = tables.frames(report, found)
    assert list(frames) == ["accuracy", "lift", "sweep", "confusion", "fluency", "layer_profile", "agnosticism"]
    publish(tmp_path, {}, [], frames, {})
    tmp_path /= "tables"
    back = pd.read_csv(tmp_path / "accuracy.csv")
    assert np.array_equal(back["value"], tables.accuracy(report)["value"])
    sweep = pd.read_csv(tmp_path / "sweep.csv")
    assert list(sweep["accuracy"]) == [p["accuracy"] for p in report["sweep"]]
    assert list(sweep.loc[sweep["chosen"], "layers"]) == ["2 3 4"]


def test_confusion_keeps_counts(report):
    table = tables.confusion(report).set_index(["method", "emotion", "answer"])["count"]
    assert table["steer", "fear", "neutral"] == report["confusion"]["steer"]["fear"]["neutral"]
    assert len(table) == 5 * 6 * 7


def test_lift_takes_both_shapes(report):
    both = tables.lift(report)
    assert list(both["method"].unique()) == ["prompt", "steer"]
    report["lift"] = report["lift"]["steer"]
    one = tables.lift(report)
    assert list(one["group"]) == ["overall", *EMOTIONS]
    assert set(one["method"]) == {"steer"}


def test_agnosticism_has_pooled_rows_and_rows_per_level(found):
    table = tables.agnosticism(found)
    assert len(table) == (2 + 8 + 3) * 6 * 2
    row = table.query("factor == 'valence' and level == 'negative' and layer == 3 and sublayer == 'resid_post'").iloc[0]
    cell = found.sel(held_out="valence=negative", layer=3, sublayer="resid_post")
    assert row["accuracy"] == float(cell["accuracy_by_level"])
    assert [row["ci_low"], row["ci_high"]] == cell["accuracy_by_level_ci"].values.tolist()
    assert row["min_cosine"] == float(cell["cosine"].min())
    pooled = table.query("factor == 'theme' and level == 'all' and layer == 0 and sublayer == 'resid_mid'").iloc[0]
    assert pooled["null_max"] == float(found["null_max"].sel(factor="theme", layer=0, sublayer="resid_mid"))


def test_absent_parts_have_no_table():
    assert tables.frames({}) == {}
