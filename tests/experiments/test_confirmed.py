"""Records of `make confirm`: of the data and the model that lie here, and quoted as they are."""

import hashlib
import json
from pathlib import Path

import pytest

from emotrace import shipped

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "experiments" / "confirmed").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_the_data_that_lie_here(path):
    record = json.loads(path.read_text())
    data = ROOT / "data" / record["data"]["file"]
    assert record["data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert record["data"]["skeletons"] == len(data.read_text().splitlines())


def test_the_docs_quote_the_record_of_the_shipped_model():
    records = [json.loads(path.read_text()) for path in RECORDS]
    (record,) = (r for r in records if r["model"]["weights_hash"] == shipped.WEIGHTS["float32"])
    told = (ROOT / "docs" / "studies.md").read_text()
    for arm in ("prompt", "steer", "circuit", "prefill_4", "wrong_payload", "random_tuned", "shared_set", "ablate"):
        blind, fluent = record["accuracy"][arm]["value"], record["accuracy_fluent"][arm]
        lo, hi = fluent["ci95"]
        assert (
            f"{arm:>14}: {blind:6.1%} express the emotion, {fluent['value']:6.1%} fluently [{lo:.1%}, {hi:.1%}]" in told
        )
