from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import emotrace as et
from emotrace.attribution import weights
from emotrace.attribution.weights import Norm, norm_of, output_projection, reading_norm
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from emotrace.traced import weights as leaf
from tests.helpers import families, loaded

PROMPTS = [[20, 30, 40, 50], [60, 70, 80, 90, 100]]
SITES = {"z": "attn_out", "neuron": "mlp_out"}


@pytest.mark.parametrize("name", families(tiny.NAMES, "opt-post-ln", "deepseek-v3", "olmo2", "bloom"))
def test_matrix_bias_and_norm_make_the_branch_of_every_layer(name):
    model = loaded(name)
    for site, end in SITES.items():
        for layer in model.sites.layers(site) if model.sites.has(site) else ():
            p = output_projection(model, site, layer)
            acts = et.capture(model, PROMPTS, [site, end], layers=layer, progress=False)
            x = torch.from_numpy(acts.sel(site, layer=layer).values).flatten(1)
            want = acts.sel(layer=layer, sublayer=end).values
            assert p.matrix.shape == (model.sites.address(site, layer).width, model.sites.d_model)
            assert p.matrix.dtype == torch.float32
            assert p.matrix.data_ptr() == p.weight.data_ptr()
            got = p.output(x) if p.norm is None else p.norm(p.output(x))
            np.testing.assert_allclose(got.numpy(), want, atol=2e-5 * np.abs(want).max())
            assert p.scale == pytest.approx(model.sites.scale)


@pytest.mark.parametrize("name", families(tiny.NAMES, "opt-post-ln", "deepseek-v3", "olmo2", "bloom"))
def test_the_norm_that_reads_the_middle_of_the_residual(name):
    model = loaded(name)
    sites = model.sites
    for layer in sites.layers("resid_mid") if sites.has("resid_mid") else ():
        address = sites.address("resid_mid", layer)
        norm = reading_norm(model, layer)
        if name == "olmo2" or sites.form == "post-ln":
            assert norm is None
            continue
        x = 3 * torch.randn(5, sites.d_model, generator=torch.Generator().manual_seed(layer))
        with torch.no_grad():
            want = model._module.get_submodule(address.mirror.path)(x)
        assert norm is not None
        np.testing.assert_allclose(norm(x).numpy(), want.numpy(), atol=1e-5)
    if not sites.has("resid_mid"):
        with pytest.raises(EmotraceError, match="resid_mid"):
            reading_norm(model, 0)


@pytest.mark.parametrize("post_normed", ["gemma2", "gemma3", "olmo2"])
def test_families_that_normalise_a_branch_before_adding_it(post_normed):
    for site in SITES:
        assert output_projection(loaded(post_normed), site, 1).norm is not None
        assert output_projection(loaded("gemma"), site, 1).norm is None


def test_a_square_conv1d_is_told_from_a_square_linear():
    for name, module in (("gpt2", "transformer.h.1.attn.c_proj"), ("llama", "model.layers.1.self_attn.o_proj")):
        model = loaded(name)
        weight = model._module.get_submodule(module).weight.detach()
        assert weight.shape[0] == weight.shape[1]
        matrix = output_projection(model, "z", 1).matrix
        assert torch.equal(matrix, weight if name == "gpt2" else weight.T)


def test_along_is_the_product_whatever_the_block(monkeypatch):
    p = output_projection(loaded("llama"), "neuron", 0)
    v = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).double()
    want = v @ p.matrix.double().T
    monkeypatch.setattr(leaf, "ROWS", 5)
    torch.testing.assert_close(p.along(v), want, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(p.along(v[0]), want[0], rtol=1e-14, atol=1e-14)


class Gemma(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(gain), 1e-6

    def forward(self, x):
        return (1 + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Silent(Gemma):
    """Says nothing of its eps."""

    def __init__(self, gain):
        super().__init__(gain)
        del self.epsilon


def norms(dtype):
    gain = torch.linspace(0.2, 2.0, 16)
    layer = nn.LayerNorm(16, eps=1e-5)
    layer.weight.data, layer.bias.data = gain.clone(), torch.linspace(-1, 1, 16)
    rms = nn.RMSNorm(16, eps=1e-6)
    rms.weight.data = gain.clone()
    plain = nn.LayerNorm(16, elementwise_affine=False)
    return [m.to(dtype) for m in (layer, rms, plain, Gemma(gain), Silent(gain))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_recognised_by_what_they_compute(dtype):
    for module, centred in zip(norms(dtype), (True, False, True, False, False), strict=True):
        norm = norm_of(module, 16)
        assert isinstance(norm, Norm)
        assert norm.centred is centred
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            want = module(x).double()
        torch.testing.assert_close(norm(x), want, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.08)


def test_a_direction_pulled_through_a_norm():
    x, v = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)).double()
    for module in norms(torch.float32):
        norm = norm_of(module, 16)
        assert norm is not None
        got = (norm.pulled(v) * x).sum(-1) / norm.size(x)
        torch.testing.assert_close(got, (v * (norm(x) - norm.bias)).sum(-1))


def test_the_identity_is_no_norm_and_other_modules_are_refused():
    assert norm_of(nn.Dropout().eval(), 16) is None
    for module in (nn.Tanh(), nn.Linear(16, 16), nn.GELU()):
        with pytest.raises(EmotraceError, match=r"somewhere.*neither RMSNorm nor LayerNorm"):
            norm_of(module, 16, "somewhere")


@pytest.mark.parametrize(
    ("name", "site", "layer", "word"),
    [
        ("llama", "resid_mid", 0, "Choices: z, neuron"),
        ("llama", "neurn", 0, "Did you mean 'neuron'"),
        ("llama", "z", 9, "no layer 9"),
        ("mixtral", "neuron", 0, "mixtures of experts"),
        ("deepseek-v3", "neuron", 1, "layer 1 of"),
    ],
)
def test_what_there_is_not_is_refused(name, site, layer, word):
    with pytest.raises(EmotraceError, match=word):
        output_projection(loaded(name), site, layer)


def test_weights_that_are_not_here_are_refused():
    model = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    model._module.model.layers[0].self_attn.o_proj.to("meta")
    with pytest.raises(EmotraceError, match="not here"):
        output_projection(model, "z", 0)


def test_vectors_refuse_what_they_cannot_match():
    rng = np.random.default_rng(0)
    v = xr.DataArray(
        rng.normal(size=(2, 3, 2, 8)),
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": ["anger", "fear"], "layer": range(3), "sublayer": ["resid_mid", "resid_post"]},
    )
    values, unit = weights.vectors(v, "emotion", [2, 0], "resid_post", 8, "here")
    assert values == ["anger", "fear"]
    want = v.sel(sublayer="resid_post", layer=[2, 0]).values
    np.testing.assert_allclose(unit.numpy(), want / np.linalg.norm(want, axis=-1, keepdims=True))
    for bad, word in (
        (v.expand_dims(fold=2), "fold"),
        (v.where(v["emotion"] != "fear"), "finite"),
        (v.rename(dim="width"), "Choices"),
    ):
        with pytest.raises(EmotraceError, match=word):
            weights.vectors(bad, "emotion", [0], "resid_post", 8, "here")


def test_a_bfloat16_model_keeps_its_weights_as_they_are():
    module = tiny.build("gpt2").to(torch.bfloat16)
    p = output_projection(et.load(module, tokenizer=tiny.tiny_tokenizer()), "neuron", 1)
    weight = module.transformer.h[1].mlp.c_proj.weight
    assert p.weight.data_ptr() == weight.data_ptr()
    assert p.matrix.dtype == torch.float32
    v = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(p.along(v), weight.detach().double() @ v, rtol=1e-12, atol=1e-12)
