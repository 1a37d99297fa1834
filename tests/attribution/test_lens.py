"""The logit lens of stored states: the model's own logits at the last layer, without a model."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace.attribution import load_scores, logit_lens, token_covectors
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.helpers import loaded

IDS = [[11, 12, 13, 14, 60], [15, 16, 70]]
TOKENS = {"joy": 40, "fear": 7, "anger": 130}
FAMILIES = {
    "llama": {}, "gpt2": {}, "gpt-neox": {}, "phi": {}, "olmo2": {}, "falcon": {},
    "gemma2": {"final_logit_softcapping": 0.05}, "cohere": {}, "granite": {"logits_scaling": 7.0}, "minicpm3": {},
}  # fmt: skip


def perturbed(name, **options):
    """A model whose norms have gains and biases of their own."""
    module, generator = tiny.build(name, seed=2, **options), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return et.load(module, tokenizer=tiny.tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_layer_it_is_what_the_model_says(family):
    lm = perturbed(family, **FAMILIES[family])
    acts = et.capture(lm, IDS, "resid_post", positions="all", progress=False)
    made = token_covectors(lm, TOKENS)
    lens = logit_lens(acts, made)
    assert lens.dims == ("layer", "token", "vocab")
    assert lens["vocab"].values.tolist() == list(TOKENS)
    assert lens["vocab_id"].values.tolist() == list(TOKENS.values())
    with torch.no_grad():
        want = torch.cat([lm._module(torch.tensor([ids])).logits[0] for ids in IDS])[:, list(TOKENS.values())].double()
    got = lens.sel(layer=lm.sites.n_layers - 1).values
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    cap = FAMILIES[family].get("final_logit_softcapping", 0)
    assert made.attrs["softcap"] == cap
    if cap:
        assert np.abs(got).max() > 0.5 * cap  # where it bends
    assert lens.attrs["weights_hash"] == lm.sites.identity["weights_hash"]


def test_earlier_layers_go_through_the_models_own_final_norm_and_unembedding(tmp_path):
    lm = perturbed("gpt2")
    acts = et.capture(lm, IDS, "resid_post", positions="all", out=tmp_path / "a.zarr", progress=False)
    made = token_covectors(lm, list(TOKENS.values()), out=tmp_path)
    xr.testing.assert_identical(load_scores(tmp_path, "token_covectors"), made)
    lens = logit_lens(acts.where(position="last"), made, layers=[0, 1])
    norm = lm._module.get_submodule(lm.sites.address("final_norm").path)
    with torch.no_grad():
        x = torch.tensor(acts.sel(layer=[0, 1], sublayer="resid_post", position="last").values)
        want = lm._module.lm_head(norm(x))[..., list(TOKENS.values())]
    np.testing.assert_allclose(lens.values, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert lens["key"].values.tolist() == sorted(set(acts.column("key")), key=acts.column("key").tolist().index)
    assert (lens.attrs["source"], lens.attrs["plan_digest"]) == (str(acts.path), acts.attrs["plan_digest"])
    assert "position" in lens.attrs["selection"]


def test_it_needs_no_torch(tmp_path):
    lm = loaded()
    et.capture(lm, IDS, "resid_post", out=tmp_path / "a.zarr", progress=False)
    token_covectors(lm, TOKENS, out=tmp_path)
    script = (
        "import sys, emotrace as et; from emotrace import attribution; "
        f"acts = et.open_activations({str(tmp_path / 'a.zarr')!r}); "
        f"made = attribution.load_scores({str(tmp_path)!r}, 'token_covectors'); "
        "print(attribution.logit_lens(acts, made).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(3, 2, 3) False"


def test_words_are_single_tokens_as_written_or_after_a_blank():
    lm = loaded()
    encoder = lm.sites.encoder
    made = token_covectors(lm, ["a", "b", 50])
    assert made["vocab"].values.tolist() == ["a", "b", *encoder.token_texts([50])]
    assert encoder.token_texts(made["vocab_id"].values.tolist()) == ["a", "b", *encoder.token_texts([50])]


def test_refusals(tmp_path):
    lm = loaded()
    acts, made = et.capture(lm, IDS, ["resid_post", "resid_mid"], progress=False), token_covectors(lm, TOKENS)

    def refused(message, call, *args, **options):
        with pytest.raises(EmotraceError, match=message):
            call(*args, **options)

    refused(r"'joyful' is \d+ tokens of this model .*by its id", token_covectors, lm, ["joyful"])
    refused("tokens", token_covectors, lm, [9999])
    refused("a list of values or a mapping", token_covectors, lm, "ab")
    refused("named twice", token_covectors, lm, ["a", "a"])
    refused("at least one token", token_covectors, lm, [])
    refused("no logit lens", token_covectors, loaded("bert"), [11])
    refused("no token covectors", logit_lens, acts, made.assign_attrs(method="covectors"))
    other = et.capture(loaded(seed=5), IDS, "resid_post", progress=False)
    refused("was made with the model", logit_lens, other, made)
    refused("unknown layer of 'resid_post' 7", logit_lens, acts, made, layers=[7])
    refused("not 'resid_post'", logit_lens, acts.where(sublayer="resid_mid"), made)
    refused("not 'resid_post'", logit_lens, et.capture(lm, IDS, "z", progress=False), made)
    refused("taken whole", logit_lens, acts.where(dim=list(range(5))), made)
