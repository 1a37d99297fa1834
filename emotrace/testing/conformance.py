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
from collections.abc import Callable

import nnsight
import torch
from torch import Tensor

from emotrace.edits import Ablate, Add
from emotrace.forwards import beginnings
from emotrace.forwards.capturing import capture
from emotrace.forwards.generation import generate
from emotrace.labels import SITES, EmotraceError
from emotrace.sites import LanguageModel, Site, heads
from emotrace.sites.finding import probe_ids, record_ids
from emotrace.testing import tiny
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
                _close(module("resid_mid", layer)(pre + attn), value["resid_mid", layer], f"LN1 {where}")
            else:
                _close(pre + sites.scale * (attn + mlp), post, f"the residual {where}")
            if sites.has("z", layer):
                _close(module("z", layer)(value["z", layer]), value["o_proj_out", layer], f"z {where}")
            if sites.has("neuron", layer):
                down, end = module("neuron", layer), module("mlp_out", layer)
                made = down(value["neuron", layer])
                if not any(m is down for m in end.modules()):  # a post-norm
                    made = end(made)
                _close(made, mlp, f"neuron {where}")


def check_reads(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """Each site of each layer, read alone in a trace, equals a plain hook bit for bit and has the width of the table."""
    want = recorded(model, forward_inputs(model, batch))
    for (site, layer), expected in want.items():
        with torch.no_grad(), model.trace(batch):
            got = nnsight.save(model.sites.read(site, layer))
        _same(got, expected, f"read of {site} at layer {layer}")
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
        _same(got, want[site, layer], f"read of {site} at layer {layer} among all others")


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
        new = value + _noise(value)
        with torch.no_grad(), model.trace(batch) as tracer:
            model.sites.write(site, new, layer)
            got = nnsight.save(tracer.result.logits)
        name = f"write of {site} at layer {layer}"
        assert not torch.equal(got, plain), f"{name} does not change the logits"
        with replaced(model, address, new), watched(model, address.mirror) as seen:
            want = forward(model, inputs)
        if address.kind != "mid":
            _same(got, want, name)
        else:
            _close(got, want, name)
            _close(seen[0].reshape(new.shape), new, f"{name} at the next norm")


def check_read_then_write(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """``write(read() + v)`` in one trace equals a hook that adds v, at each writable site of the middle layer."""
    middle = _middle(model)
    inputs = forward_inputs(model, batch)
    plain = forward(model, inputs)
    for (site, layer), value in recorded(model, inputs).items():
        address = model.sites.address(site, layer)
        if layer not in (None, middle) or not address.writable:
            continue
        v = _noise(value)[:1, :1]
        with torch.no_grad(), model.trace(batch) as tracer:
            model.sites.write(site, model.sites.read(site, layer) + v, layer)
            got = nnsight.save(tracer.result.logits)
        with replaced(model, address, value + v):
            want = forward(model, inputs)
        _close(got, want, f"read and write of {site} at layer {layer}")
        assert not torch.equal(got, plain), f"read and write of {site} does not change the logits"


def check_invokes(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """Two invokes of one trace see and edit their own rows only, modules that flatten their input included."""
    half = [{k: v[i : i + 1] for k, v in batch.items()} for i in (0, 1)]
    both = {k: v[:2] for k, v in batch.items()}
    inputs = forward_inputs(model, both)
    plain = forward(model, inputs)
    middle = _middle(model)
    for (site, layer), value in recorded(model, inputs).items():
        address = model.sites.address(site, layer)
        if layer not in (None, middle) or not address.writable:
            continue
        new = value + _noise(value)
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(half[0]):
                first = nnsight.save(model.sites.read(site, layer))
            with tracer.invoke(half[1]):
                model.sites.write(site, new[1:], layer)
            with tracer.invoke():
                got = nnsight.save(tracer.result.logits)
        name = f"invokes at {site}, layer {layer}"
        _close(first, value[:1], name)
        _close(got[:1], plain[:1], f"{name}: the row of the other invoke")
        with replaced(model, address, new):
            _close(got[1:], forward(model, inputs)[1:], name)


def check_absent(model: LanguageModel) -> None:
    """What the model lacks is refused by an error that lists what it has; a wrong layer or name likewise."""
    sites = model.sites
    for site in SITES:
        if not sites.has(site):
            message = _refusal(lambda site=site: sites.address(site, 0))
            for name in (site, *sites.names):
                assert name in message, f"the refusal of {site} does not name {name}: {message}"
        elif sites.layers(site):
            for layer in sorted(set(range(sites.n_layers)) - set(sites.layers(site))):
                message = _refusal(lambda site=site, layer=layer: sites.address(site, layer))
                assert f"layer {layer}" in message, message
            assert str(sites.n_layers - 1) in _refusal(lambda site=site: sites.address(site, sites.n_layers))
            assert "layer" in _refusal(lambda site=site: sites.address(site))
    message = _refusal(lambda: sites.address("resid_pots", 0))
    assert "Did you mean 'resid_post'?" in message, message


def check_own_places(model: LanguageModel, batch: dict[str, Tensor]) -> None:
    """The first and last projection of the middle layer, as `Site`, read and write like hooks; a wrong path is refused."""
    sites = model.sites
    layer = _middle(model)
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
        _same(got, seen[0], place.name)
        new = seen[0] + _noise(seen[0])
        with torch.no_grad(), model.trace(batch) as tracer:
            sites.write(place, new)
            edited = nnsight.save(tracer.result.logits)
        with replaced(model, address, new):
            _same(edited, forward(model, inputs), f"write of {place.name}")
    assert tried >= 1, f"no projection of {stack} is called"
    assert torch.equal(plain, forward(model, inputs)), "an edit outlived its trace"
    wrong = Site(f"{stack}.no_such_module")
    message = _refusal(lambda: sites.resolve(wrong))
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
        _same(got, theirs[layer], f"attn_pattern at layer {layer}")
        sums = got.sum(-1).transpose(1, 2)[real]
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-3), f"rows of attn_pattern do not sum to 1: {sums}"

    layer = model.sites.layers("attn_pattern")[0]
    pattern = theirs[layer]

    def write() -> None:
        with torch.no_grad(), model.trace(batch):
            model.sites.write("attn_pattern", pattern, layer)

    assert "read-only" in _refusal(write)


def check_padding(model: LanguageModel, lengths: tuple[int, ...] = (7, 4)) -> None:
    """Each prompt of a batch has the values that it has alone, to rounding, at every site.

    Prompts of several lengths where the model was loaded as one whose padding is neutral, else of one length.
    """
    rule = beginnings.of(model)
    if not rule.batched:
        return
    if rule.padded < max(lengths):
        lengths = (max(lengths),) * len(lengths)
    batch = tiny.batch(model._module, lengths=lengths)
    together = recorded(model, forward_inputs(model, batch))
    for row in range(len(lengths)):
        keep = batch["attention_mask"][row].bool()
        alone = {k: v[row : row + 1, keep] for k, v in batch.items()}
        single = recorded(model, forward_inputs(model, alone))
        for (site, layer), value in together.items():
            if site != "attn_pattern":
                _close(value[row : row + 1, keep], single[site, layer], f"{site} at layer {layer} of a padded prompt")


def check_heads(model: LanguageModel) -> None:
    """The heads of each layer are those that the model itself shows, and one is set to zero as by a hook on its columns."""
    sites, module = model.sites, model._module
    known = {
        i: sites.address("z", i) for i in (sites.layers("z") if sites.has("z") else ()) if sites.addresses["z"][i].heads
    }
    blocks = {i: sites.address("resid_post", i).path for i in known}
    shown = heads.heads(module, probe_ids(module), record_ids(module), known, blocks)
    for layer, address in known.items():
        n = address.heads
        assert shown.get(layer, n) == n, f"heads of layer {layer}: the table says {n}, the model shows {shown[layer]}"
        head, width, ids = n - 1, address.width // n, _ids(model, 6)
        edit = Ablate("z", layers=layer, heads=[head], positions="all")
        got = capture(model, [ids], "logits", positions="last", edits=[edit], progress=False)["logits"].values
        fed = _fed(model, ids)
        with watched(model, address) as seen:
            forward(model, fed)
        cut = seen[0].clone()
        cut[..., head * width : (head + 1) * width] = 0
        with replaced(model, address, cut):
            want = forward(model, fed)[:, -1]
        _close(torch.as_tensor(got).reshape(want.shape).to(want), want, f"head {head} of layer {layer}")


def check_generation(model: LanguageModel, steps: int = 3) -> None:
    """An edit of the prompt's positions makes the reply that hooks make which run the whole sequence anew at every step."""
    if not model.sites.encoder.causal:
        return
    layer, ids = _middle(model), _ids(model, 6)
    v = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(1))
    address, n = model.sites.address("resid_post", layer), len(ids)
    with watched(model, address) as seen:
        forward(model, _fed(model, ids))
    v = v * float(seen[0].float().std())
    edit = Add("resid_post", layers=layer, vector=v.numpy(), positions="prompt")
    replies = generate(model, [ids], [edit], max_new_tokens=steps, min_new_tokens=steps, progress=False)
    got, want = list(replies[0]["token_ids"]), list(ids)
    for step in range(len(got)):
        inputs = _fed(model, want)
        with watched(model, address) as seen:
            forward(model, inputs)
        new = seen[0].clone()
        new[..., :n, :] += v.to(new.dtype)
        with replaced(model, address, new):
            logits = forward(model, inputs)[0, -1]
        best = float(logits.max())
        assert best - float(logits[got[step]]) <= 1e-3 * max(abs(best), 1.0), (
            f"token {step} of an edited reply is {got[step]}, a plain hook at layer {layer} says {int(logits.argmax())}"
        )
        want.append(got[step])


def check_shared(model: LanguageModel) -> None:
    """Prompts that begin alike have the values that each has alone, however their beginnings are computed."""
    stem, layer = _ids(model, 24), _middle(model)
    prompts = [stem + _ids(model, 4, seed) for seed in (1, 2, 3)]
    limit = model.sites.encoder.max_length
    prompts = [ids[: limit or len(ids)] for ids in prompts]
    acts = capture(model, prompts, "resid_post", layers=[layer], positions="last", progress=False)
    got = torch.as_tensor(acts.sel(layer=layer, sublayer="resid_post").values)
    address = model.sites.address("resid_post", layer)
    for row, ids in enumerate(prompts):
        with watched(model, address) as seen:
            forward(model, _fed(model, ids))
        want = seen[0].reshape(len(ids), -1)[-1].float()
        _close(got[row].reshape(-1).float(), want, f"resid_post at layer {layer} of a prompt that begins like others")


def check_kept(model: LanguageModel, steps: int = 3) -> None:
    """Replies to prompts that begin alike are those of prompts computed whole, token by token; in float32, with edits too."""
    if not model.sites.encoder.causal or model._module.dtype != torch.float32:
        return
    stem, limit = _ids(model, 24), model.sites.encoder.max_length
    prompts = [(stem + _ids(model, 4 + seed, seed))[: limit and limit - steps] for seed in (1, 2, 3)]
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(1)).numpy()
    most = model.sites.kept_bytes
    for positions in ("steer", "all"):
        edits = [Add("resid_post", layers=_middle(model), vector=vector, scale="rms", positions=positions)]
        found = []
        for kept in (most, 0):
            model.sites.kept_bytes = kept
            try:
                rows = generate(model, prompts, edits, max_new_tokens=steps, progress=False)
            finally:
                model.sites.kept_bytes = most
            found.append([row["token_ids"] for row in rows])
        assert found[0] == found[1], (
            f"replies behind kept first tokens, edits at {positions}: {found[0]}, not {found[1]}"
        )


def _fed(model: LanguageModel, ids: list[int]) -> dict[str, Tensor]:
    here = torch.tensor([ids], device=next(model._module.parameters()).device)
    return {"input_ids": here, "attention_mask": torch.ones_like(here)}


def _ids(model: LanguageModel, n: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    low = min(len(tiny.SPECIALS), model.sites.vocab_size - 1)
    return torch.randint(low, model.sites.vocab_size, (n,), generator=generator).tolist()


def _middle(model: LanguageModel) -> int:
    """The middle one of the layers that have sites."""
    layers = model.sites.layers("resid_post")
    return layers[len(layers) // 2]


def _noise(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
    return noise * value.float().std().to(value.dtype)


def _same(got: Tensor, want: Tensor, what: str) -> None:
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, a plain hook says {tuple(want.shape)}"
    deviation = float((got.detach().double() - want.detach().double()).abs().max())
    assert torch.equal(got, want), f"{what} differs from a plain hook by {deviation:.2e}"


def _close(got: Tensor, want: Tensor, what: str) -> None:
    """Equal to the rounding of the dtype, relative to the largest value."""
    eps = torch.finfo(want.dtype).eps
    largest = float(want.double().abs().max())
    deviation = float((got.double() - want.double()).abs().max())
    assert deviation <= 256 * eps * largest, f"{what}: deviates by {deviation:.2e} from values up to {largest:.2e}"


def _refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except EmotraceError as error:
        return str(error)
    raise AssertionError("nothing was refused")
