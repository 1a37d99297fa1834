import json

import numpy as np
import pytest
import xarray as xr

from emotrace.labels import EmotraceError
from emotrace.report import explorer


def read(found):
    """Rows as mappings of what their places stand for."""
    data = json.loads(found.json)
    names = ("prompt", "method", "asked", "draw", "read", "match", "fluent", "perplexity", "text")
    lists = {"prompt": "prompts", "method": "methods", "asked": "asked", "read": "read", "text": "texts"}
    return [
        {n: data[lists[n]][v] if n in lists else v for n, v in zip(names, line, strict=True)} for line in data["rows"]
    ]


def test_every_reply_is_there_with_what_was_read_in_it(rows):
    rows[5] |= {"verdict": None, "meta": {}}
    shown = read(explorer.data(rows))
    assert sorted((r["method"], r["asked"], r["text"]) for r in shown) == sorted(
        (r["method"], r["emotion"], r["gen_text"]) for r in rows
    )
    assert [(r["read"], r["match"], r["fluent"], r["perplexity"]) for r in shown if not r["read"]] == [
        ("", -1, -1, None)
    ]
    first = shown[0]["prompt"]
    assert first[0].split(", ")[1] in ("positive", "neutral", "negative")
    assert first[2].startswith("I built a new anvil stand for the smithy. The ")


def test_the_order_of_prompts_depends_on_the_seed_alone(rows):
    before = explorer.data(rows, seed=1)
    order = [r["prompt"][1] for r in read(before)]
    assert explorer.data(rows[::-1], seed=1).json == before.json
    changed = [{**r, "gen_text": "other", "verdict": {"predicted": "fear", "match": 1}} for r in rows]
    assert [r["prompt"][1] for r in read(explorer.data(changed, seed=1))] == order
    assert [r["prompt"][1] for r in read(explorer.data(rows, seed=2))] != order


def test_rows_of_ones_own_labels_are_grouped_by_their_plain_prompt():
    rows = [
        {"key": f"q{i}__{e}", "prompt": f"q{i}", "emotion": e, "gen_text": e} for i in range(2) for e in ("awe", "joy")
    ]
    shown = read(explorer.data(rows))
    assert [r["prompt"][1] for r in shown][:2] == [shown[0]["prompt"][1]] * 2
    assert {r["asked"] for r in shown} == {"awe", "joy"}
    assert {r["method"] for r in shown} == {"none"}
    assert explorer.data([]) is None


def test_projections_stand_at_the_tokens_of_their_method(rows):
    key = next(r["key"] for r in rows if r["method"] == "steer")
    values = xr.DataArray(
        [0.12345, np.nan], dims="token", coords={"key": ("token", [key] * 2), "token_text": ("token", [" so", "<b>"])}
    )
    found = explorer.data(rows, projections={"steer": values.assign_coords(layer=3, sublayer="resid_post")})
    assert found.projected == "steer: resid_post, layer 3"
    data = json.loads(found.json)
    ((at, tokens),) = data["tokens"].items()
    assert tokens == [[" so", 0.123], ["<b>", None]]
    line = read(found)[int(at)]
    assert (line["method"], line["asked"]) == ("steer", key.split("__")[-1])
    with pytest.raises(EmotraceError, match="lacks token_text"):
        explorer.data(rows, projections={"steer": values.drop_vars("token_text")})


def test_data_cannot_end_its_element():
    said = explorer.as_script(["</script><!--", "\u2028"])
    assert "<" not in said
    assert json.loads(said) == ["</script><!--", "\u2028"]
