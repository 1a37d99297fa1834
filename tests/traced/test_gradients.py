"""Gradients inside a trace: equal to plain autograd, and nothing left behind in the weights or in memory."""

import gc

import pytest
import torch

from emotrace import model as model_
from emotrace.testing import tiny
from emotrace.traced import gradients
from emotrace.traced.steps import Rms, Shift
from tests.helpers import hooked

IDS = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]])
WIDTH = 32


def fresh(name="llama", dtype=torch.float64, **options):
    return model_.load(tiny.build(name, **options).to(dtype), tokenizer=tiny.tiny_tokenizer())


def inputs_of(ids=IDS):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def program_of(lm, factor=1.0):
    sites = lm.sites
    first, mid, last = sites.address("mlp_out", 0), sites.address("attn_out", 1), sites.address("resid_post", 2)
    return [
        Shift(first.order, first.lower(lm), factor),
        Shift(mid.order, mid.lower(lm), factor),
        Rms(mid.order, mid.lower(lm)),
        last.read(lm),
    ]


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hooks(lm, row, column, covector):
    """Plain autograd: gradients at the outputs of layer 0's MLP and layer 1's attention, at one token."""
    leaves = [torch.zeros(1, 1, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    one = torch.zeros(1, IDS.shape[1], 1, dtype=torch.float64)
    one[:, column] = 1
    seen = []
    module = lm._module
    with (
        hooked(module.model.layers[0].mlp, "output", lambda h: h + one * leaves[0]),
        hooked(module.model.layers[1].self_attn, "output", lambda h: h + one * leaves[1]),
        hooked(module.model.layers[2], "output", lambda h: seen.append(h) or h),
    ):
        module(IDS[row : row + 1])
    return torch.autograd.grad((seen[0][0, column] @ covector), leaves)


@pytest.mark.parametrize("column", [4, 2])
def test_slopes_equal_plain_autograd(column):
    lm = fresh()
    covectors, along = vectors(3, WIDTH), vectors(2, 3, WIDTH, seed=1)
    slopes, scores, sizes = gradients.slopes(lm, inputs_of(), program_of(lm), [column] * 2, covectors, along)
    assert slopes.shape == (3, 2, 2)
    assert (scores.shape, sizes.shape) == ((3, 2), (1, 2))
    for row in range(2):
        for label in range(3):
            want = by_hooks(lm, row, column, covectors[label])
            for i in range(2):
                assert float(slopes[label, i, row]) == pytest.approx(float(want[i][0, 0] @ along[i, label]), rel=1e-9)


def test_scores_and_rms_are_those_of_a_plain_forward():
    lm, covectors = fresh(), vectors(2, WIDTH)
    seen = {}
    module = lm._module
    with (
        hooked(module.model.layers[2], "output", lambda h: seen.setdefault("post", h)),
        hooked(module.model.layers[1].self_attn, "output", lambda h: seen.setdefault("attn", h)),
        torch.no_grad(),
    ):
        module(IDS)
    _, scores, sizes = gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], covectors, vectors(2, 2, WIDTH))
    torch.testing.assert_close(scores, (seen["post"][:, 4] @ covectors.T).T)
    torch.testing.assert_close(sizes[0], seen["attn"][:, 4].square().mean(-1).sqrt())


def test_the_factor_scales_a_shift():
    lm, covectors, along = fresh(), vectors(1, WIDTH), vectors(2, 1, WIDTH, seed=1)
    once, *_ = gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], covectors, along)
    twice, *_ = gradients.slopes(lm, inputs_of(), program_of(lm, 2.0), [4, 4], covectors, along)
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_are_left_alone(frozen):
    lm = fresh()
    lm._module.requires_grad_(not frozen)
    before = {n: p.detach().clone() for n, p in lm._module.named_parameters()}
    gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], vectors(2, WIDTH), vectors(2, 2, WIDTH))
    for name, parameter in lm._module.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad is not frozen
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_them(around):
    lm, covectors, along = fresh(), vectors(1, WIDTH), vectors(2, 1, WIDTH, seed=1)
    want, *_ = gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], covectors, along)
    with around():
        got, *_ = gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], covectors, along)
    assert torch.equal(got, want)
    assert not got.requires_grad


def test_no_graph_outlives_its_batch():
    lm, covectors, along = fresh(), vectors(2, WIDTH), vectors(2, 2, WIDTH)

    def alive():
        gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], covectors, along)
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
        return len(tensors), sum(x.grad_fn is not None for x in tensors)

    first = alive()
    for _ in range(4):
        assert alive() == first
    assert first[1] == 0, "tensors with a graph are still alive"


def test_half_precision_is_summed_in_float32():
    lm = fresh(dtype=torch.bfloat16)
    covectors, along = vectors(1, WIDTH).float(), vectors(2, 1, WIDTH, seed=1).float()
    slopes, scores, _ = gradients.slopes(lm, inputs_of(), program_of(lm), [4, 4], covectors, along)
    assert slopes.dtype == scores.dtype == torch.float32
    wide, *_ = gradients.slopes(fresh(), inputs_of(), program_of(fresh()), [4, 4], covectors.double(), along.double())
    torch.testing.assert_close(slopes.double(), wide, atol=0.2 * float(wide.abs().max()), rtol=0)
