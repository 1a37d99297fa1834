"""Extraction end to end on a tiny model: each vector against its formula over plain captures; folders continue or refuse."""

import json

import numpy as np
import pytest

import emotrace as et
from emotrace import directions, extraction
from emotrace.datasets import hold_out
from emotrace.labels import EmotraceError
from tests.helpers import loaded

QUERIES = et.datasets.Prompts.of(
    [
        {
            "key": f"{e}_{i}",
            "messages": [{"role": "user", "content": f"{e} {'x' * i}?"}],
            "emotion": e,
            "query_id": f"{e}_{i}",
        }
        for e in ("anger", "joy")
        for i in range(3)
    ]
)
TEXTS = et.datasets.Prompts.of(
    [
        {"key": f"{e}{i}", "text": f"{'word ' * (i % 3)}{e} {i}", "emotion": e}
        for e, n in (("anger", 6), ("fear", 5), ("neutral", 9))
        for i in range(n)
    ]
)
TOKENS = {"max_new_tokens": 4}


@pytest.mark.parametrize(
    ("site", "over"),
    [
        ("o_proj_out", "mean_generated"),
        ("resid_post", "last"),
        ("resid_post", "mean_all"),
        ("neuron", "mean_generated"),
    ],
)
def test_answer_vectors_are_the_mean_shift_of_the_models_own_answers(site, over):
    lm = loaded()
    found = extraction.answer_vectors(lm, QUERIES, site=site, over=over, decoding=TOKENS, progress=False)
    assert found.dims == ("emotion", "layer", "dim")
    assert found.attrs["site"] == site
    assert "{emotion}" in json.loads(found.attrs["templates"])["emotional"]
    prompts = extraction.answer_prompts(QUERIES)
    rows = et.generate(lm, prompts, progress=False, **TOKENS)
    acts = et.capture(lm, prompts.with_replies(rows), site, positions="all", progress=False, share_prefixes=False)
    x = acts.sel("residual" if site == "resid_post" else site)
    x = x.isel(sublayer=0) if "sublayer" in x.dims else x
    at = x.position_from_end.values
    inside = {"last": at == -1, "mean_generated": at >= -1, "mean_all": at > -99}[over]
    for e in ("anger", "joy"):
        shifts = []
        for i in range(3):
            a, b = (
                x.values[:, (x.key.values == f"{e}_{i}__{c}") & inside].astype(float).mean(1)
                for c in ("emotional", "neutral")
            )
            shifts.append(a - b)
        np.testing.assert_allclose(found.sel(emotion=e).values, np.mean(shifts, axis=0), atol=2e-5)
    assert found["n"].values.tolist() == [3, 3]


def test_answers_in_a_folder_are_made_once(tmp_path):
    lm = loaded()
    first = extraction.answer_vectors(lm, QUERIES, decoding=TOKENS, out=tmp_path / "a", progress=False)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "answers.jsonl", tmp_path / "a" / "activations.zarr")}
    again = extraction.answer_vectors(lm, QUERIES, decoding=TOKENS, out=tmp_path / "a", progress=False)
    assert (first.values == again.values).all()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    saved = directions.load(tmp_path / "a" / "vectors")
    assert (saved.values == first.values).all()
    assert saved.attrs["site"] == "o_proj_out"
    for change, message in (
        ({"over": "last"}, "over: 'mean_generated' there, 'last' now"),
        ({"decoding": {"max_new_tokens": 5}}, "decoding"),
        ({"queries": QUERIES[:4]}, "prompts: "),
    ):
        settings = {"queries": QUERIES, "decoding": TOKENS} | change
        with pytest.raises(EmotraceError, match=message):
            extraction.answer_vectors(lm, settings.pop("queries"), out=tmp_path / "a", progress=False, **settings)


def test_prompts_of_both_answers():
    prompts = extraction.answer_prompts(QUERIES)
    assert prompts.keys[:2] == ("anger_0__neutral", "anger_0__emotional")
    assert prompts[1].messages[0]["content"].startswith("Always reply in anger.")
    assert "anger." not in prompts[0].messages[0]["content"]
    bare = extraction.answer_prompts(QUERIES, {"neutral": "", "emotional": "Be {emotion}."})
    assert [m["role"] for m in bare[0].messages] == ["user"]
    for queries, templates, message in (
        (QUERIES, {"neutral": "x"}, "unknown template 'emotional'"),
        (QUERIES, {"neutral": "x", "emotional": "y"}, "has no {emotion}"),
        (["plain"], extraction.TEMPLATES, "chat messages and the labels"),
    ):
        with pytest.raises(EmotraceError, match=message):
            extraction.answer_prompts(queries, templates)


def test_text_vectors_are_fitted_on_one_part_and_scored_on_the_other(tmp_path):
    lm = loaded()
    found = extraction.text_vectors(lm, TEXTS, out=tmp_path / "t", progress=False)
    fit, held = hold_out(TEXTS, 0.25, 0)
    acts = et.capture(lm, TEXTS, "resid_post", positions="last", progress=False, share_prefixes=False)
    x = acts.sel(sublayer="resid_post")

    def rows(e, part):
        chosen = (x.emotion.values == e) & np.isin(x.key.values, part.keys)
        return x.values[:, chosen].astype(float)

    for e in ("anger", "fear"):
        a, b = rows(e, fit), rows("neutral", fit)
        v = found.vectors.sel(emotion=e).values
        np.testing.assert_allclose(v, a.mean(1) - b.mean(1), atol=2e-5)
        np.testing.assert_allclose(found.statistics["difference"].sel(emotion=e), a.mean(1) - b.mean(1), atol=2e-5)
        for layer in range(3):
            plus, minus = (rows(s, held)[layer] @ v[layer] for s in (e, "neutral"))
            share = np.mean([(p > m) + 0.5 * (p == m) for p in plus for m in minus])
            assert found.auroc.sel(emotion=e, layer=layer).item() == pytest.approx(share)
    assert found.vectors["n"].values.tolist() == [sum(p.labels["emotion"] == e for p in fit) for e in ("anger", "fear")]
    assert {p.name for p in (tmp_path / "t").iterdir()} >= {
        "activations.zarr",
        "vectors",
        "statistics",
        "extraction.json",
    }
    with pytest.raises(EmotraceError, match="method: 'difference' there"):
        extraction.text_vectors(lm, TEXTS, method="probe", out=tmp_path / "t", progress=False)


def test_the_last_token_is_that_of_the_text_whatever_is_beside_it():
    lm = loaded()
    whole = extraction.text_vectors(lm, TEXTS, batch_size=20, progress=False).vectors
    alone = extraction.text_vectors(lm, TEXTS, batch_size=1, progress=False).vectors
    np.testing.assert_allclose(whole.values, alone.values, atol=2e-5)


def test_the_published_last_row_is_after_the_final_norm():
    lm = loaded()
    plain = extraction.text_vectors(lm, TEXTS, progress=False).vectors
    theirs = extraction.text_vectors(lm, TEXTS, final_norm_last_row=True, progress=False).vectors
    np.testing.assert_array_equal(theirs.values[:, :-1], plain.values[:, :-1])
    fit, _ = hold_out(TEXTS, 0.25, 0)
    normed = et.capture(lm, TEXTS, "final_norm", positions="last", progress=False, share_prefixes=False).sel(
        "final_norm"
    )
    inside = np.isin(normed.key.values, fit.keys)
    a, b = (normed.values[inside & (normed.emotion.values == e)].astype(float).mean(0) for e in ("anger", "neutral"))
    np.testing.assert_allclose(theirs.sel(emotion="anger").values[-1], a - b, atol=2e-5)
    assert theirs.attrs["after_final_norm"] == [{"layer": 2, "sublayer": "resid_post"}]


def test_dry_runs_and_refusals():
    lm = loaded()
    dry = extraction.answer_vectors.plan(lm, QUERIES, decoding=TOKENS)
    assert (dry.prompts, dry.rows) == (12, 12 * 5)
    assert extraction.text_vectors.plan(lm, TEXTS).rows == 20
    for call, message in (
        (lambda: extraction.answer_vectors(lm, QUERIES, site="logits"), "unknown site with layers 'logits'"),
        (lambda: extraction.answer_vectors(lm, QUERIES, site="z"), "make o_proj_out together"),
        (lambda: extraction.answer_vectors(lm, QUERIES, over="mean"), "unknown over"),
        (lambda: extraction.text_vectors(lm, ["a"]), "unknown label 'emotion'"),
        (lambda: extraction.text_vectors(lm, TEXTS, against="calm", emotions=["anger"]), "calm|no prompts"),
        (lambda: extraction.text_vectors(lm, TEXTS, site="mlp_out", final_norm_last_row=True), "belongs to resid_post"),
    ):
        with pytest.raises(EmotraceError, match=message):
            call()
