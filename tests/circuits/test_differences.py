"""Difference vectors: streamed sums against a whole capture, groups, families, continuing after a kill."""

import json

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace import attribution
from emotrace.circuits import difference_vectors
from emotrace.datasets import Prompts
from emotrace.forwards import passes
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError
from emotrace.planned import DryRows
from tests.helpers import loaded


def prompts(n=3, seed=0, emotions=EMOTIONS[:3], drop=()):
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n):
        for valence in VALENCES:
            shared = rng.integers(9, 160, rng.integers(2, 6)).tolist()
            for emotion in emotions:
                key = f"work_{s:02}__{valence}__{emotion}"
                if key not in drop:
                    ids = [*shared, *rng.integers(9, 160, rng.integers(1, 4)).tolist()]
                    labels = {"skeleton_id": f"work_{s:02}", "valence": valence, "emotion": emotion}
                    rows.append({"key": key, "token_ids": ids, **labels})
    return Prompts.of(rows)


def run(model, given, **options):
    return difference_vectors(model, given, progress=False, **{"prompts_per_chunk": 7, "batch_size": 4, **options})


def whole(model, given, site, **options):
    acts = et.capture(model, given, [site], progress=False)
    return acts, et.directions.centered_mean(acts, variable=site, unit=False, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "bert"])
def test_equals_the_centred_mean_of_a_whole_capture(name):
    model, given = loaded(name), prompts()
    got = run(model, given)
    for site in ("z", "neuron"):
        acts, expected = whole(model, given, site)
        assert got[site].dims == expected.dims
        assert got[site].dtype == np.float32
        np.testing.assert_allclose(got[site].values, expected.values, atol=2e-6)
        np.testing.assert_allclose(got[site].sum("emotion").values, 0, atol=1e-5)
        np.testing.assert_allclose(got[f"{site}_mean"].values, acts.sel(site).mean("token").values, atol=2e-6)
    assert (got.attrs["n_groups"], got.attrs["label"]) == (9, "emotion")
    json.dumps(got.attrs)


def test_equals_the_formula_read_aloud():
    """Groups are scenario and valence; what one lacks is left out as a whole, and rows of one cell are averaged."""
    missing = "work_01__neutral__fear"
    given = prompts(emotions=("anger", "fear"), drop=(missing,))
    twice = Prompts([*given, *Prompts.of([{**row, "key": f"{row['key']}__2"} for row in rows_of(given)[:1]])])
    model = loaded("llama")
    acts = et.capture(model, twice, ["neuron"], progress=False).sel("neuron", layer=1)
    cells: dict = {}
    for i, p in enumerate(twice):
        at = (p.labels["skeleton_id"], p.labels["valence"])
        cells.setdefault(at, {}).setdefault(p.labels["emotion"], []).append(acts.values[i].astype(np.float64))
    full = [{e: sum(x) / len(x) for e, x in cell.items()} for cell in cells.values() if len(cell) == 2]
    got = run(model, twice, sites=["neuron"], layers=[1])
    for emotion in ("anger", "fear"):
        d = [cell[emotion] - (cell["anger"] + cell["fear"]) / 2 for cell in full]
        np.testing.assert_allclose(got["neuron"].sel(emotion=emotion, layer=1).values, sum(d) / len(d), atol=2e-6)
    assert (len(full), got.attrs["n_groups"]) == (8, 8)
    assert json.loads(got.attrs["incomplete"]) == [{"group": ["work_01", "neutral"], "missing": ["fear"]}]


def rows_of(given):
    return [{"key": p.key, "token_ids": list(p.token_ids), **p.labels} for p in given]


def test_valences_do_not_overwrite_each_other():
    """The original keyed groups by scenario alone: one of three valences survived. Here all of them count."""
    model, given = loaded("llama"), prompts()
    both = run(model, given)
    one = run(model, given.where(valence="negative"))
    assert (both.attrs["n_groups"], one.attrs["n_groups"]) == (9, 3)
    assert np.abs(both["z"].values - one["z"].values).max() > 1e-3
    np.testing.assert_allclose(
        both["z"].values, np.mean([run(model, given.where(valence=v))["z"].values for v in VALENCES], axis=0), atol=2e-6
    )


def test_accepted_keys_and_other_groups():
    model, given = loaded("llama"), prompts()
    keys = [k for k in given.keys if k != "work_02__positive__anger"]
    got = run(model, given, accepted=keys)
    _, expected = whole(model, given, "z", accepted=keys)
    np.testing.assert_allclose(got["z"].values, expected.values, atol=2e-6)
    assert got.attrs["n_groups"] == 8
    loose = run(model, given, accepted=keys, complete=False, within="skeleton_id")
    _, expected = whole(model, given, "z", accepted=keys, complete=False, within="skeleton_id")
    np.testing.assert_allclose(loose["z"].values, expected.values, atol=2e-6)


def test_chunks_and_batches_do_not_matter():
    model, given = loaded("llama"), prompts()
    base = run(model, given)
    for options in (
        {"prompts_per_chunk": 100},
        {"prompts_per_chunk": 1},
        {"batch_size": 1},
        {"prompts_per_chunk": None},
    ):
        np.testing.assert_allclose(run(model, given, **options)["neuron"].values, base["neuron"].values, atol=2e-6)


def test_models_with_some_of_it():
    """No neurons (mixture of experts): heads alone. Neurons in some layers: the others hold 0, and attrs say which."""
    got = run(loaded("mixtral"), prompts())
    assert set(got.data_vars) == {"z", "z_mean"}
    assert got.attrs["z_layers"] == [0, 1, 2]
    model = loaded("deepseek-v3")
    some = list(model.sites.layers("neuron"))
    assert 0 < len(some) < model.sites.n_layers
    got = run(model, prompts())
    assert got.attrs["neuron_layers"] == some
    others = [i for i in got["layer"].values if i not in some]
    assert not got["neuron"].sel(layer=others).values.any()
    _, expected = whole(model, prompts(), "neuron")
    np.testing.assert_allclose(got["neuron"].sel(layer=some).values, expected.values, atol=2e-6)


def test_continues_after_a_kill_with_the_same_bits(tmp_path, monkeypatch):
    model, given = loaded("llama"), prompts()
    base = run(model, given)
    real = passes.reductions

    def killed(*args, **options):
        for i, part in enumerate(real(*args, **options)):
            if i == 2:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(passes, "reductions", killed)
    with pytest.raises(KeyboardInterrupt):
        run(model, given, out=tmp_path)
    asked = []

    def counting(*args, left, **options):
        def noted(ranges):
            for one in left(ranges):
                asked.append((one.start, one.stop))
                yield one

        return real(*args, left=noted, **options)

    monkeypatch.setattr(passes, "reductions", counting)
    xr.testing.assert_identical(run(model, given, out=tmp_path), base)
    xr.testing.assert_identical(run(model, given, out=tmp_path), base)
    assert asked == [(14, 21), (21, 27)]
    xr.testing.assert_identical(attribution.load_scores(tmp_path, "differences"), base)
    with pytest.raises(EmotraceError, match="complete"):
        run(model, given, out=tmp_path, complete=False)


def test_dry_run():
    found = difference_vectors.plan(loaded("llama"), prompts(), prompts_per_chunk=7, batch_size=4)
    assert isinstance(found, DryRows)
    assert (found.rows, found.prompts, found.row_groups) == (27, 27, 4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sites": ["resid_post"]}, "unknown site 'resid_post'"),
        ({"sites": []}, "neither z nor neuron"),
        ({"layers": [3]}, "layer 3"),
        ({"label": "emotions"}, "Did you mean 'emotion'"),
        ({"within": ("skeleton",)}, "skeleton_id"),
        ({"accepted": ["nobody"]}, "none of the keys"),
        ({"prompts_per_chunk": 0}, "prompts_per_chunk=0"),
    ],
)
def test_bad_input(options, word):
    with pytest.raises(EmotraceError, match=word):
        run(loaded("llama"), prompts(), **options)


def test_a_model_without_neurons_says_so_when_asked():
    with pytest.raises(EmotraceError, match="no site 'neuron'"):
        run(loaded("mixtral"), prompts(), sites=["neuron"])


def test_published_attention_vectors(oracles):
    """Specification §9, rows 8 and 9: norms, means and deviations of the summary; the emotions add up to zero."""
    vectors = oracles.npy("emotion_circuits/attention_difference_vectors.npy")
    summary = oracles.json("emotion_circuits/attention_difference_summary.json")
    assert vectors.shape == (6, 28, 3072)
    for e, emotion in enumerate(EMOTIONS):
        for layer in range(28):
            about = summary[emotion]["layers"][str(layer)]
            x = vectors[e, layer]
            assert about["count"] == 448
            ours = [float(np.linalg.norm(x)), float(x.mean()), float(x.std())]
            assert [about[k] for k in ("norm", "mean", "std")] == pytest.approx(ours, rel=2.0**-22)
    residue = np.linalg.norm(vectors.sum(0), axis=-1) / np.linalg.norm(vectors, axis=-1).sum(0)
    assert residue.max() < 2e-6


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gemma2", "granite"])
@pytest.mark.parametrize("positions", ["last", (0, 3)])
def test_stored_activations_give_the_means_of_a_loop_over_prompts_and_rows(name, positions):
    model, given = loaded(name), prompts(drop=("work_01__neutral__fear",))
    got_all = et.capture(model, given, ["z", "neuron", "resid_post"], positions=positions, progress=False)
    keys = [p.key for p in given][1:]
    got = difference_vectors(got_all, accepted=keys, complete=False)
    table = got_all.tokens
    for site in ("z", "neuron"):
        x = got_all.sel(site).transpose("token", "layer", ...).values.astype(np.float64)
        of = {key: x[(table.key == key).to_numpy()].mean(0) for key in keys}
        delta = {e: [] for e in EMOTIONS[:3]}
        for s in range(3):
            for valence in VALENCES:
                there = {e: of[k] for e in EMOTIONS[:3] if (k := f"work_{s:02}__{valence}__{e}") in of}
                for e, value in there.items():
                    delta[e].append(value - np.mean(list(there.values()), 0))
        want = np.array([np.mean(delta[e], 0) for e in EMOTIONS[:3]])
        want -= want.mean(0)
        np.testing.assert_allclose(got[site].values, want, atol=2e-6 * np.abs(want).max())
    if positions == "last":
        streamed = difference_vectors(model, given, accepted=keys, complete=False, progress=False)
        for variable in streamed:
            scale = float(np.abs(streamed[variable]).max())
            assert np.abs(got[variable] - streamed[variable]).max() <= 1e-6 * scale
        assert got.attrs["n_rows"] == streamed.attrs["n_rows"] == len(keys)
    assert got.attrs["n_token_rows"] == int(table.key.isin(keys).sum())
    assert got.attrs["selection"] == "[]"


def test_stored_differences_are_refused_in_words():
    acts = et.capture(loaded("llama"), prompts(), ["z", "resid_post"], progress=False)
    for message, wrong in [
        ("unknown variable 'neuron'", lambda: difference_vectors(acts, sites=["neuron"])),
        ("unknown site 'resid_post'", lambda: difference_vectors(acts, sites=["resid_post"])),
        ("unknown layer 7", lambda: difference_vectors(acts, layers=[0, 7])),
        ("neither z nor neuron", lambda: difference_vectors(acts.where(layer=0), sites=[])),
        ("unknown label 'mood'", lambda: difference_vectors(acts, label="mood")),
        ("'z' is narrowed along 'head_dim'", lambda: difference_vectors(acts.where(head_dim=[0, 1]))),
    ]:
        with pytest.raises(EmotraceError, match=message):
            wrong()
    assert difference_vectors(acts.where(layer=1, head=[1, 3]))["z"].sizes["head"] == 2
