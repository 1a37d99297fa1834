"""Conformance: does emotrace read and write a model where it says it does?

Every function takes a model of `emotrace.load` and asserts; `check` runs them all. Run it on a model of your own::

    import emotrace as et
    from emotrace.testing import conformance

    conformance.check(et.load("path/to/model"))

What is compared with are plain torch hooks on the module paths of the site table, so that neither nnsight nor
`emotrace.traced` is judged by itself.
"""

from __future__ import annotations

import itertools

import nnsight
import torch
from torch import Tensor

from emotrace.labels import SITES
from emotrace.sites import LanguageModel, Site
from emotrace.testing import tiny
from emotrace.testing.comparing import close, middle_layer, noise, refusal, same
from emotrace.testing.conformance_calls import check_generation, check_heads, check_kept, check_padding, check_shared
from emotrace.testing.hooks import forward, forward_inputs, recorded, replaced, watched


def check(model: LanguageModel, batch: dict[str, Tensor] | None = None) -> None:
    """Run the whole suite.

    Args:
        model: as `emotrace.load` returns it, with weights.
        batch: ids and mask with some padding; None makes random ones.

    Raises:
        AssertionError: naming the site and layer that deviate.
    """
    batch = tiny.batch(model._module) if batch is None else batch
    check_equations(model, batch)
    check_reads(model, batch)
    check_order(model, batch)
    check_writes(model, batch)
    check_read_then_write(model, batch)
    check_invokes(model, batch)
    check_padding(model)
    check_shared(model)
    check_kept(model)
    check_heads(model)
    check_generation(model)
    check_absent(model)
    check_own_places(model, batch)
    if model.sites.has("attn_pattern"):
        check_pattern(model, batch)


def check_equations(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """The names mean what they say, on values of plain hooks.

    ``resid_pre + c·(attn_out + mlp_out) == resid_post`` or, post-LN, ``LN1(resid_pre + attn_out) == resid_mid``;
    ``W_O(z) == o_proj_out``; ``W_down(neuron) == mlp_out``, or what the post-norm of that name is given.
    """
    sites = model.sites
    value = recorded(model, forward_inputs(model, batch))

    def module(site: str, layer: int) -> torch.nn.Module:
        return model._module.get_submodule(sites.address(site, layer).path)

    for layer in sites.layers("resid_post"):
        if not sites.has("attn_out", layer):  # only the stream is known
            continue
        pre, attn, mlp, post = (value[s, layer] for s in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        where = f"at layer {layer}"
        with torch.no_grad():
            if sites.form == "post-ln":
                close(module("resid_mid", layer)(pre + attn), value["resid_mid", layer], f"LN1 {where}")
            else:
                close(pre + sites.scale * (attn + mlp), post, f"the residual {where}")
            if sites.has("z", layer):
                close(module("z", layer)(value["z", layer]), value["o_proj_out", layer], f"z {where}")
            if sites.has("neuron", layer):
                down, end = module("neuron", layer), module("mlp_out", layer)
                made = down(value["neuron", layer])
                if not any(m is down for m in end.modules()):  # a post-norm
                    made = end(made)
                close(made, mlp, f"neuron {where}")


def check_reads(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """Each site of each layer, read alone in a trace, equals a plain hook bit for bit and has the width of the table."""
    want = recorded(model, forward_inputs(model, batch))
    for (site, layer), expected in want.items():
        with torch.no_grad(), model.trace(batch):
            got = nnsight.save(model.sites.read(site, layer))
        same(got, expected, f"read of {site} at layer {layer}")
        if site != "attn_pattern":
            width = model.sites.address(site, layer).width
            assert got.shape[-1] == width, f"{site} at layer {layer} is {got.shape[-1]} wide, the table says {width}"


def check_order(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """All sites of all layers, read in one trace in `Address.order`, equal plain hooks bit for bit."""
    want = recorded(model, forward_inputs(model, batch))
    ordered = sorted(want, key=lambda cell: model.sites.address(*cell).order)
    with torch.no_grad(), model.trace(batch):
        values = nnsight.save([model.sites.read(site, layer) for site, layer in ordered])
    for (site, layer), got in zip(ordered, values, strict=True):
        same(got, want[site, layer], f"read of {site} at layer {layer} among all others")


def check_writes(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """A value written at each writable site gives the logits of a hook that puts it there, and other logits than none.

    Bit for bit, except ``resid_mid`` of a sequential residual, which goes through the attention's output; there the
    next norm's input must also be what was written.
    """
    inputs = forward_inputs(model, batch)
    plain = forward(model, inputs)
    for (site, layer), value in recorded(model, inputs).items():
        address = model.sites.address(site, layer)
        if not address.writable:
            continue
        new = value + noise(value)
        with torch.no_grad(), model.trace(batch) as tracer:
            model.sites.write(site, new, layer)
            got = nnsight.save(tracer.result.logits)
        name = f"write of {site} at layer {layer}"
        assert not torch.equal(got, plain), f"{name} does not change the logits"
        with replaced(model, address, new), watched(model, address.mirror) as seen:
            want = forward(model, inputs)
        if address.kind != "mid":
            same(got, want, name)
        else:
            close(got, want, name)
            close(seen[0].reshape(new.shape), new, f"{name} at the next norm")


def check_read_then_write(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """``write(read() + v)`` in one trace equals a hook that adds v, at each writable site of the middle layer."""
    middle = middle_layer(model)
    inputs = forward_inputs(model, batch)
    plain = forward(model, inputs)
    for (site, layer), value in recorded(model, inputs).items():
        address = model.sites.address(site, layer)
        if layer not in (None, middle) or not address.writable:
            continue
        v = noise(value)[:1, :1]
        with torch.no_grad(), model.trace(batch) as tracer:
            model.sites.write(site, model.sites.read(site, layer) + v, layer)
            got = nnsight.save(tracer.result.logits)
        with replaced(model, address, value + v):
            want = forward(model, inputs)
        close(got, want, f"read and write of {site} at layer {layer}")
        assert not torch.equal(got, plain), f"read and write of {site} does not change the logits"


def check_invokes(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """Two invokes of one trace see and edit their own rows only, modules that flatten their input included."""
    half = [{k: v[i : i + 1] for k, v in batch.items()} for i in (0, 1)]
    both = {k: v[:2] for k, v in batch.items()}
    inputs = forward_inputs(model, both)
    plain = forward(model, inputs)
    middle = middle_layer(model)
    for (site, layer), value in recorded(model, inputs).items():
        address = model.sites.address(site, layer)
        if layer not in (None, middle) or not address.writable:
            continue
        new = value + noise(value)
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(half[0]):
                first = nnsight.save(model.sites.read(site, layer))
            with tracer.invoke(half[1]):
                model.sites.write(site, new[1:], layer)
            with tracer.invoke():
                got = nnsight.save(tracer.result.logits)
        name = f"invokes at {site}, layer {layer}"
        close(first, value[:1], name)
        close(got[:1], plain[:1], f"{name}: the row of the other invoke")
        with replaced(model, address, new):
            close(got[1:], forward(model, inputs)[1:], name)


def check_absent(model: LanguageModel) -> None:
    """What the model lacks is refused by an error that lists what it has; a wrong layer or name likewise."""
    sites = model.sites
    for site in SITES:
        if not sites.has(site):
            message = refusal(lambda site=site: sites.address(site, 0))
            for name in (site, *sites.names):
                assert name in message, f"the refusal of {site} does not name {name}: {message}"
        elif sites.layers(site):
            for layer in sorted(set(range(sites.n_layers)) - set(sites.layers(site))):
                message = refusal(lambda site=site, layer=layer: sites.address(site, layer))
                assert f"layer {layer}" in message, message
            assert str(sites.n_layers - 1) in refusal(lambda site=site: sites.address(site, sites.n_layers))
            assert "layer" in refusal(lambda site=site: sites.address(site))
    message = refusal(lambda: sites.address("resid_pots", 0))
    assert "Did you mean 'resid_post'?" in message, message


def check_own_places(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """The first and last projection of the middle layer, as `Site`, read and write like hooks; a wrong path is refused."""
    sites = model.sites
    layer = middle_layer(model)
    stack = sites.address("resid_post", layer).path
    block = model._module.get_submodule(stack)
    inputs = forward_inputs(model, batch)
    plain = forward(model, inputs)
    weights = [f"{stack}.{p}" for p, m in block.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    tried = 0
    for path, side in itertools.product((weights[0], weights[-1]), ("input", "output")):
        place = Site(path, side)
        address = sites.resolve(place)
        with watched(model, address) as seen:
            forward(model, inputs)
        if len(seen) != 1:  # called several times, or not at all: a router, a shared projection
            continue
        tried += 1
        with torch.no_grad(), model.trace(batch):
            got = nnsight.save(sites.read(place))
        same(got, seen[0], place.name)
        new = seen[0] + noise(seen[0])
        with torch.no_grad(), model.trace(batch) as tracer:
            sites.write(place, new)
            edited = nnsight.save(tracer.result.logits)
        with replaced(model, address, new):
            same(edited, forward(model, inputs), f"write of {place.name}")
    assert tried >= 1, f"no projection of {stack} is called"
    assert torch.equal(plain, forward(model, inputs)), "an edit outlived its trace"
    wrong = Site(f"{stack}.no_such_module")
    message = refusal(lambda: sites.resolve(wrong))
    assert "no_such_module" in message, message
    assert stack in message, message


def check_pattern(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """``attn_pattern`` is transformers' own, its rows sum to 1, and a write is refused."""
    inputs = forward_inputs(model, batch)
    with torch.no_grad():
        theirs = model._module(**inputs, output_attentions=True).attentions
    real = batch["attention_mask"].bool()
    for layer in model.sites.layers("attn_pattern"):
        with torch.no_grad(), model.trace(batch):
            got = nnsight.save(model.sites.read("attn_pattern", layer))
        same(got, theirs[layer], f"attn_pattern at layer {layer}")
        sums = got.sum(-1).transpose(1, 2)[real]
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-3), f"rows of attn_pattern do not sum to 1: {sums}"

    layer = model.sites.layers("attn_pattern")[0]
    pattern = theirs[layer]

    def write() -> None:
        with torch.no_grad(), model.trace(batch):
            model.sites.write("attn_pattern", pattern, layer)

    assert "read-only" in refusal(write)
