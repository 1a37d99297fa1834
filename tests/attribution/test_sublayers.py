"""Sublayer influence: the derivative against finite differences by plain hooks, the finite doses, resume, refusals."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import model as model_
from emotrace.attribution import backward, finite_doses, reference, sublayers
from emotrace.attribution import files as files_
from emotrace.attribution.sublayers import sublayer_influence
from emotrace.forwards import beginnings
from emotrace.forwards.beginnings import Beginnings
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from emotrace.testing.hooks import recorded, replaced, watched
from emotrace.traced import caches
from tests.helpers import families

LABELS = ("anger", "fear")
IDS = [[11, 12, 13, 14, 15, 16], [21, 22, 23], [31, 32, 33, 34]]
RESIDUAL = {"attn_out": "resid_mid", "mlp_out": "resid_post"}


@cache
def loaded(name="llama", dtype=torch.float32):
    return model_.load(tiny.build(name).to(dtype), tokenizer=tiny.tiny_tokenizer())


def directions_of(lm, seed=0):
    """Random unit directions at every residual that the model has."""
    sites = lm.sites
    subs = [s for s in ("resid_mid", "resid_post") if sites.has(s)]
    shape = (len(LABELS), sites.n_layers, len(subs), sites.d_model)
    values = np.random.default_rng(seed).normal(size=shape)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return xr.DataArray(
        values, dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": list(LABELS), "layer": np.arange(sites.n_layers), "sublayer": subs},
    )  # fmt: skip


def reference_of(directions):
    return reference.reference_direction(directions, [(2, "resid_post")])


def influence(lm, ids=None, directions=None, **options):
    directions = directions_of(lm) if directions is None else directions
    options = {"progress": False} | options
    if "reference" not in options:
        options["reference"] = reference_of(directions)
    return sublayer_influence(lm, IDS if ids is None else ids, directions, **options)


class Twin:
    """The literal twin: one prompt, one plain forward per shift, the shift made by a torch hook at the residual."""

    def __init__(self, lm, ids, readout="resid_post"):
        self.lm, self.column = lm, len(ids) - 1
        self.inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        self.values = recorded(lm, self.inputs)
        layer = lm.sites.n_layers - 1 if readout == "resid_post" else None
        self.end = lm.sites.address(readout, layer)

    def residual(self, layer, sublayer):
        return RESIDUAL[sublayer] if self.lm.sites.has(RESIDUAL[sublayer], layer) else "resid_post"

    def score(self, layer, sublayer, shift, covector):
        site = self.residual(layer, sublayer)
        new = self.values[site, layer].clone()
        new[0, self.column] += torch.as_tensor(shift, dtype=new.dtype)
        with replaced(self.lm, self.lm.sites.address(site, layer), new), watched(self.lm, self.end) as seen:
            with torch.no_grad():
                self.lm._module(**self.inputs)
            value = seen[-1] if self.end.path != self.lm.sites.address(site, layer).path else new
        return float(
            value.reshape(1, -1, value.shape[-1])[0, self.column].double() @ torch.as_tensor(covector).double()
        )


def local_of(lm, directions):
    without = [layer for layer in range(lm.sites.n_layers) if not lm.sites.has("resid_mid", layer)]
    return reference.local_directions(directions, range(lm.sites.n_layers), without)


@cache
def float64_llama():
    """A Llama that is float64 throughout; transformers' own RMSNorm computes in float32."""
    module = tiny.build("llama").double()
    for name, norm in list(module.named_modules()):
        if name.endswith("norm"):
            exact = torch.nn.RMSNorm(norm.weight.shape[0], norm.variance_epsilon, dtype=torch.float64)
            exact.load_state_dict(norm.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, exact)
    return model_.load(module, tokenizer=tiny.tiny_tokenizer())


def slope(score, step):
    """Central difference, with the cubic term of the curvature taken out (Richardson)."""
    one, two = ((score(k * step) - score(-k * step)) / (2 * k * step) for k in (1, 2))
    return (4 * one - two) / 3


EXACT = ("llama", "gpt2", "opt", "falcon", "gpt-neox", "opt-post-ln", "bert")
"""Families that can compute in float64 from end to end; the others do their norms or softmax in float32."""


@pytest.mark.parametrize(
    "name",
    families(
        [*EXACT, "gemma2", "olmo2", "granite", "minicpm3", "bloom", "qwen3-moe", "falcon-sequential", "modernbert"],
        "falcon",
    ),
)
def test_influence_equals_finite_differences_by_hooks(name):
    lm = float64_llama() if name == "llama" else loaded(name, torch.float64 if name in EXACT else torch.float32)
    step, near = (1e-3, 1e-8) if name in EXACT else (3e-2, 1e-4)
    directions = directions_of(lm)
    ref, local = reference_of(directions).astype(float), local_of(lm, directions).astype(float)
    got = influence(lm, directions=directions)
    twins = [Twin(lm, ids) for ids in IDS]
    for label in LABELS:
        covector = ref.sel(emotion=label).values / np.linalg.norm(ref.sel(emotion=label).values)
        for layer in range(lm.sites.n_layers):
            for sublayer in RESIDUAL:
                v = local.sel(emotion=label, layer=layer, sublayer=sublayer).values
                each = [
                    slope(lambda k, t=t, v=v, at=(layer, sublayer), c=covector: t.score(*at, k * v, c), step)
                    for t in twins
                ]
                found = got.sel(emotion=label, layer=layer, sublayer=sublayer)
                where = f"{sublayer} of layer {layer}, {label}"
                assert float(found["influence"]) == pytest.approx(np.mean(each), abs=near), where
                assert float(found["std"]) == pytest.approx(np.std(each), abs=10 * near), where
                rms = [
                    float(t.values[t.residual(layer, sublayer), layer][0, t.column].square().mean().sqrt())
                    for t in twins
                ]
                assert float(found["sigma"]) == pytest.approx(np.mean(rms), rel=1e-6), where
        base = np.mean([t.score(0, "mlp_out", np.zeros(1), covector) for t in twins])
        assert float(got["base"].sel(emotion=label)) == pytest.approx(base, abs=near)
    assert got["n"].values.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["llama", "falcon", "bert"])
def test_the_last_mlp_is_read_where_it_is_shifted(name):
    lm = loaded(name)
    directions = directions_of(lm)
    got = influence(lm, directions=directions).sel(layer=2, sublayer="mlp_out")
    np.testing.assert_allclose(got["influence"], 1, atol=1e-5)  # the reference is this very direction
    np.testing.assert_allclose(got["std"], 0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "granite", "falcon", "opt-post-ln", "bert"])
def test_finite_doses_are_those_of_hooks_and_approach_the_derivative(name):
    lm = loaded(name)
    directions = directions_of(lm)
    doses = (2.0, 0.5, 0.05)
    got = influence(lm, directions=directions, doses=doses, layers=[0, 1])
    ref, local = reference_of(directions), local_of(lm, directions)
    twins = [Twin(lm, ids) for ids in IDS]
    for sublayer in RESIDUAL:
        v = local.sel(emotion="fear", layer=1, sublayer=sublayer).values
        covector = ref.sel(emotion="fear").values
        for dose in doses:
            found = got.sel(emotion="fear", layer=1, sublayer=sublayer)
            size = dose * float(found["sigma"])
            differences = [
                t.score(1, sublayer, size * v, covector) - t.score(1, sublayer, 0 * v, covector) for t in twins
            ]
            assert float(found["finite"].sel(dose=dose)) == pytest.approx(np.mean(differences) / size, abs=2e-4)
    gap = np.abs(got["finite"] - got["influence"]).max(("emotion", "layer", "sublayer"))
    assert gap.sel(dose=0.05) < 0.1 * gap.sel(dose=2.0)
    assert gap.sel(dose=0.05) < 0.05
    assert got["finite"].dims == ("dose", "emotion", "layer", "sublayer")


def test_the_derivative_is_the_limit_of_finite_doses():
    """Central differences of two opposite doses leave no first-order curvature."""
    lm = loaded()
    got = influence(lm, doses=(0.05, -0.05))
    np.testing.assert_allclose(got["finite"].mean("dose"), got["influence"], atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_computing_the_last_token_alone_changes_nothing(name, monkeypatch):
    lm = loaded(name)
    shared = [[*range(60, 72), *ids] for ids in IDS]
    by_token = influence(lm, shared)
    monkeypatch.setattr(beginnings, "shared_up_to", lambda model: 0)
    whole = influence(lm, shared)
    assert not np.array_equal(by_token["influence"], whole["influence"]), "both were computed in the same way"
    xr.testing.assert_allclose(by_token, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["raises", "deviates"])
def test_a_family_whose_cache_is_not_exact_is_computed_whole(how, monkeypatch):
    lm = loaded()
    want = influence(lm)
    original = caches.behind

    def broken(begun, batch, setup):
        if how == "raises":
            raise NotImplementedError("no cache")
        fed = original(begun, batch, setup)
        return fed | {"position_ids": fed["position_ids"] + (begun.mask.shape[1] > 0) * batch["input_ids"] % 3}

    monkeypatch.setattr(caches, "behind", broken)
    monkeypatch.setattr(lm.sites, "beginnings", Beginnings())
    xr.testing.assert_allclose(influence(lm), want, rtol=1e-4, atol=1e-5)
    assert lm.sites.beginnings == Beginnings(shared=0, confirmed=True)


def test_a_common_beginning_is_computed_once():
    lm = loaded()
    shared = [[*range(60, 72), *ids] for ids in IDS]
    job = backward.Backward(
        lm, backward.cells(lm.sites, [0]), ("resid_post", 2), np.ones((2, 32)), np.ones((2, 2, 32)), shared
    )
    assert (job.last.alone, len(job.last.prefix)) == (True, 12)
    job(shared)
    (_, prefix), _ = job.last.memo["made"]
    assert prefix.mask.shape == (1, 12)


def test_the_order_of_cells_is_that_of_the_caller():
    lm = loaded()
    wanted = backward.cells(lm.sites, [0, 1])
    along = np.random.default_rng(0).normal(size=(4, 2, 32))
    end = ("resid_post", 2)
    slopes, scores, sizes = backward.Backward(lm, wanted, end, np.ones((2, 32)), along, IDS)(IDS)
    turned = backward.Backward(lm, wanted[::-1], end, np.ones((2, 32)), along[::-1].copy(), IDS)(IDS)
    np.testing.assert_array_equal(turned[0], slopes[:, ::-1])
    np.testing.assert_array_equal(turned[1], scores)
    np.testing.assert_array_equal(turned[2], sizes[::-1])


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_batches_order_and_padding_change_nothing(name):
    lm = loaded(name)
    want = influence(lm, batch_size=1)
    xr.testing.assert_allclose(influence(lm, batch_size=3), want, rtol=1e-4, atol=1e-5)
    xr.testing.assert_allclose(influence(lm, [IDS[2], IDS[0], IDS[1]], batch_size=2), want, rtol=1e-4, atol=1e-5)
    each = [influence(lm, [ids])["influence"] for ids in IDS]
    xr.testing.assert_allclose(sum(each) / 3, want["influence"], rtol=1e-4, atol=1e-5)


def test_prompts_of_one_token():
    lm = loaded()
    one, three = influence(lm, [[11]]), influence(lm, [[21, 22, 23]])
    got = influence(lm, [[11], [21, 22, 23]])
    np.testing.assert_allclose(got["influence"], (one["influence"] + three["influence"]) / 2, atol=1e-5)


def test_an_equal_prompt_counts_twice():
    lm = loaded()
    got = influence(lm, [IDS[0], IDS[0], IDS[1]])
    a, b = (influence(lm, [ids])["influence"] for ids in IDS[:2])
    np.testing.assert_allclose(got["influence"], (2 * a + b) / 3, atol=1e-5)
    assert got["n"].values.tolist() == [3, 3]


def plain():
    return et.datasets.Prompts.of([{"key": f"work_{i}__positive", "token_ids": ids} for i, ids in enumerate(IDS)])


def test_accepted_prompts_count_for_their_own_label():
    lm = loaded()
    accepted = ["work_0__positive__anger", "work_1__positive__anger", "work_1__positive__fear", "unknown"]
    got = influence(lm, plain(), accepted=accepted, doses=(0.5,))
    anger, fear = influence(lm, IDS[:2], doses=(0.5,)), influence(lm, [IDS[1]], doses=(0.5,))
    assert got["n"].values.tolist() == [2, 1]
    for name in ("influence", "std"):
        np.testing.assert_allclose(got[name].sel(emotion="anger"), anger[name].sel(emotion="anger"), atol=1e-5)
        np.testing.assert_allclose(got[name].sel(emotion="fear"), fear[name].sel(emotion="fear"), atol=1e-5)
    np.testing.assert_allclose(got["sigma"], (2 * anger["sigma"] + fear["sigma"]) / 3, rtol=1e-5)
    labelled = influence(lm, plain().for_each(emotion=LABELS), accepted=accepted, doses=(0.5,))
    for name in got.data_vars:
        np.testing.assert_allclose(labelled[name], got[name], atol=1e-5)


def test_the_original_s_readout_is_the_last_hidden_state():
    """Specification §9, row 18: ``hidden_states[-1]`` is after the final norm."""
    lm = float64_llama()
    directions = directions_of(lm)
    ref = reference_of(directions)
    got = influence(lm, directions=directions, readout_site="final_norm")
    with torch.no_grad():
        last = [lm._module(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1] for ids in IDS]
    np.testing.assert_allclose(got["base"], ref.values @ torch.stack(last).numpy().T.mean(1), rtol=1e-6)
    v = local_of(lm, directions).sel(emotion="fear", layer=0, sublayer="attn_out").values.astype(np.float64)
    covector = ref.sel(emotion="fear").values.astype(np.float64)
    covector /= np.linalg.norm(covector)
    twins = [Twin(lm, ids, "final_norm") for ids in IDS]
    each = [slope(lambda k, t=t: t.score(0, "attn_out", k * v, covector), 1e-3) for t in twins]
    found = got.sel(emotion="fear", layer=0, sublayer="attn_out")
    assert float(found["influence"]) == pytest.approx(np.mean(each), abs=1e-8)
    finite_ = influence(loaded(), directions=directions, readout_site="final_norm", doses=(0.05,), layers=[0])
    np.testing.assert_allclose(finite_["finite"].sel(dose=0.05), got["influence"].sel(layer=[0]), atol=0.05)


def test_align_turns_the_sign_of_what_points_away():
    lm = loaded()
    got, turned = influence(lm, doses=(0.5,)), influence(lm, doses=(-0.5,), align=True)
    flipped = turned["flipped"].values
    assert flipped.any()
    assert not flipped.all()
    assert not got["flipped"].any()
    np.testing.assert_allclose(turned["influence"], np.where(flipped, -got["influence"], got["influence"]), atol=1e-6)
    assert (got.attrs["align"], turned.attrs["align"]) == (0, 1)
    np.testing.assert_allclose(
        turned["finite"].values[0][flipped], -got["finite"].values[0][flipped], rtol=1e-3, atol=1e-4
    )


def test_a_parallel_layer_says_that_both_sublayers_shift_resid_post():
    got = influence(loaded("gpt-neox"), doses=(0.5,))
    assert (got["read_at"] == "resid_post").all()
    assert got["shifted_at"].values[0].tolist() == ["attn_out", "mlp_out"]
    assert got.attrs["form"] == "parallel"
    assert "resid_post for both" in got.attrs["shift"]
    for name in ("influence", "finite", "sigma"):
        a, b = got[name].transpose("sublayer", ...).values
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_forms_say_where_they_are_shifted():
    post_ln = influence(loaded("bert"))
    assert post_ln["shifted_at"].values[0].tolist() == ["resid_mid", "resid_post"]
    assert "norm" in post_ln.attrs["shift"]
    scaled = influence(loaded("granite"))
    assert scaled["shifted_at"].values[0].tolist() == ["attn_out", "mlp_out"]
    assert "c = 0.22" in scaled.attrs["shift"]


def test_layers_are_those_asked_and_change_no_value():
    lm = loaded()
    got = influence(lm, layers=[2, 0])
    assert got["layer"].values.tolist() == [0, 2]
    xr.testing.assert_allclose(got["influence"], influence(lm)["influence"].sel(layer=[0, 2]), rtol=1e-5)


def test_the_reference_is_by_default_that_of_the_stable_block():
    lm = loaded()
    directions = directions_of(lm)
    got = sublayer_influence(lm, IDS, directions, progress=False)
    block = reference.stable_block(directions)
    want = influence(lm, reference=reference.reference_direction(directions, block))
    xr.testing.assert_identical(got, want)
    assert got.attrs["reference_block"] == '[[2, "resid_post"]]'


def test_sigma_can_be_given():
    lm = loaded()
    sigma = xr.DataArray(
        np.arange(1.0, 7.0).reshape(3, 2), dims=("layer", "sublayer"),
        coords={"layer": [0, 1, 2], "sublayer": ["resid_mid", "resid_post"]},
    )  # fmt: skip
    got = influence(lm, sigma=sigma, doses=(0.01,))
    np.testing.assert_array_equal(got["sigma"], sigma)
    assert got.attrs["sigma_from"] == "given"
    np.testing.assert_allclose(got["finite"].sel(dose=0.01), got["influence"], atol=0.02)


def test_it_runs_where_gradients_are_off_and_leaves_weights_alone():
    lm = loaded()
    want = influence(lm)
    for around in (torch.no_grad, torch.inference_mode):
        with around():
            xr.testing.assert_identical(influence(lm), want)
    assert all(p.grad is None and p.requires_grad for p in lm._module.parameters())


def test_a_run_that_was_killed_is_continued(tmp_path, monkeypatch):
    lm = loaded()
    monkeypatch.setattr(sublayers, "CHUNK", 1)
    want = influence(lm, doses=(0.5,))
    calls = []

    def killing(at):
        def call(self, batch, original=backward.Backward.__call__):
            if len(calls) == at:
                raise KeyboardInterrupt
            calls.append(len(batch))
            return original(self, batch)

        return call

    with monkeypatch.context() as context:
        context.setattr(backward.Backward, "__call__", killing(2))
        with pytest.raises(KeyboardInterrupt):
            influence(lm, doses=(0.5,), out=tmp_path)
    assert len(calls) == 2
    original, count = finite_doses.Reruns.batch, []

    def stopping(self, rows):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return original(self, rows)

    with monkeypatch.context() as context:
        context.setattr(backward.Backward, "__call__", killing(3))  # one prompt is left
        context.setattr(finite_doses.Reruns, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            influence(lm, doses=(0.5,), out=tmp_path)
    assert len(calls) == 3
    with monkeypatch.context() as context:
        context.setattr(backward.Backward, "__call__", killing(3))  # none is left
        got = influence(lm, doses=(0.5,), out=tmp_path)
    xr.testing.assert_identical(got, want)
    xr.testing.assert_identical(files_.load_scores(tmp_path, "influence"), want)
    with pytest.raises(EmotraceError, match=r"other settings \(batch_size: "):
        influence(lm, batch_size=2, out=tmp_path)
    with pytest.raises(EmotraceError, match=r"other settings \(.*readout: "):
        influence(lm, readout_site="final_norm", out=tmp_path)


def test_the_dataset_survives_its_files(tmp_path):
    got = influence(loaded(), doses=(0.5,))
    files_.save_scores(got, tmp_path)
    xr.testing.assert_identical(files_.load_scores(tmp_path), got)


def test_a_dry_run_counts_and_computes_nothing():
    dry = sublayer_influence.plan(loaded(), IDS, directions_of(loaded()), doses=(0.1, 0.3))
    assert (dry.prompts, dry.tokens, dry.labels, dry.sublayers) == (3, 13, 2, 6)
    assert dry.forwards == 3 * 2 * 13
    assert "2 backward passes" in str(dry)


ERRORS = {
    "readout": ({"readout_site": "final"}, "Did you mean 'final_norm'"),
    "label": ({"label": "theme"}, "label dim"),
    "layer": ({"layers": [3]}, "layers are 0 to 2"),
    "no layers": ({"layers": []}, "empty"),
    "dose": ({"doses": (0.0,)}, "not zero"),
    "two doses": ({"doses": (0.1, 0.1)}, "different"),
    "batch": ({"batch_size": 0}, "at least 1"),
    "accepted string": ({"accepted": "work_0"}, "a list of names"),
    "nothing accepted": ({"accepted": ["work_0"]}, "0__anger"),
    "sigma dims": ({"sigma": xr.DataArray(np.ones(3), dims="layer")}, "layer, sublayer"),
    "sigma places": (
        {"sigma": xr.DataArray(np.ones((1, 1)), coords={"layer": [0], "sublayer": ["resid_mid"]})},
        "sublayer of sigma 'resid_post'",
    ),
    "reference": ({"reference": xr.DataArray(np.ones(32), dims="dim")}, r"dims \(emotion, dim\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input(case):
    options, message = ERRORS[case]
    with pytest.raises(EmotraceError, match=message):
        influence(loaded(), **options)


def test_misfits_of_model_prompts_and_directions():
    lm, directions = loaded(), directions_of(loaded())
    few = directions.isel(layer=slice(2))
    with pytest.raises(EmotraceError, match="not of this model"):
        influence(lm, directions=directions.isel(dim=slice(8)))
    with pytest.raises(EmotraceError, match="unknown layer of the directions 2"):
        influence(lm, directions=few, reference=reference_of(directions), layers=[2])
    with pytest.raises(EmotraceError, match="no site 'final_norm'"):
        influence(loaded("bert"), readout_site="final_norm")
    with pytest.raises(EmotraceError, match="unknown emotion of prompt"):
        influence(lm, [{"token_ids": IDS[0], "emotion": "joy"}])
    with pytest.raises(EmotraceError, match="place of a direction"):
        influence(lm, directions=directions.sel(sublayer=["resid_post"]), reference=reference_of(directions))
