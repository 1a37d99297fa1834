"""Conformance of whole calls: what `capture` and `generate` make of prompts is what plain hooks make of each alone.

Every function takes a model of `emotrace.load` and asserts; `emotrace.testing.conformance.check` runs them with the others.
"""

from __future__ import annotations

import torch

from emotrace.edits import Ablate, Add
from emotrace.forwards import beginnings, kept
from emotrace.forwards.capturing import capture
from emotrace.forwards.generation import generate
from emotrace.sites import LanguageModel, heads
from emotrace.sites.finding import probe_ids, record_ids
from emotrace.testing import tiny
from emotrace.testing.comparing import close, middle_layer, one_prompt, random_ids
from emotrace.testing.hooks import forward, forward_inputs, recorded, replaced, watched


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
                close(value[row : row + 1, keep], single[site, layer], f"{site} at layer {layer} of a padded prompt")


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
        head, width, ids = n - 1, address.width // n, random_ids(model, 6)
        edit = Ablate("z", layers=[layer], heads=[head], positions="all")
        got = capture(model, [ids], "logits", positions="last", edits=[edit], progress=False)["logits"].values
        fed = one_prompt(model, ids)
        with watched(model, address) as seen:
            forward(model, fed)
        cut = seen[0].clone()
        cut[..., head * width : (head + 1) * width] = 0
        with replaced(model, address, cut):
            want = forward(model, fed)[:, -1]
        close(torch.as_tensor(got).reshape(want.shape).to(want), want, f"head {head} of layer {layer}")


def check_generation(model: LanguageModel, steps: int = 3) -> None:
    """An edit of the prompt's positions makes the reply that hooks make which run the whole sequence anew at every step."""
    if not model.sites.encoder.causal:
        return
    layer, ids = middle_layer(model), random_ids(model, 6)
    v = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(1))
    address, n = model.sites.address("resid_post", layer), len(ids)
    with watched(model, address) as seen:
        forward(model, one_prompt(model, ids))
    v = v * float(seen[0].float().std())
    edit = Add("resid_post", layers=[layer], vector=v.numpy(), positions="prompt")
    replies = generate(model, [ids], [edit], max_new_tokens=steps, min_new_tokens=steps, progress=False)
    got, want = list(replies[0]["token_ids"]), list(ids)
    for step in range(len(got)):
        inputs = one_prompt(model, want)
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
    stem, layer = random_ids(model, 24), middle_layer(model)
    prompts = [stem + random_ids(model, 4, seed) for seed in (1, 2, 3)]
    limit = model.sites.encoder.max_length
    prompts = [ids[: limit or len(ids)] for ids in prompts]
    acts = capture(model, prompts, "resid_post", layers=[layer], positions="last", progress=False)
    got = torch.as_tensor(acts.sel(layer=layer, sublayer="resid_post").values)
    address = model.sites.address("resid_post", layer)
    for row, ids in enumerate(prompts):
        with watched(model, address) as seen:
            forward(model, one_prompt(model, ids))
        want = seen[0].reshape(len(ids), -1)[-1].float()
        close(got[row].reshape(-1).float(), want, f"resid_post at layer {layer} of a prompt that begins like others")


def check_kept(model: LanguageModel, steps: int = 3) -> None:
    """Replies to prompts that begin alike are those of prompts computed whole, token by token; in float32, with edits too."""
    if not model.sites.encoder.causal or model._module.dtype != torch.float32:
        return
    stem, limit = random_ids(model, 24), model.sites.encoder.max_length
    prompts = [(stem + random_ids(model, 4 + seed, seed))[: limit and limit - steps] for seed in (1, 2, 3)]
    vector = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(1)).numpy()
    most = model.sites.kept_bytes
    for positions in ("steer", "all"):
        edits = [Add("resid_post", layers=[middle_layer(model)], vector=vector, scale="rms", positions=positions)]
        found = []
        for room in (most, 0):
            model.sites.kept_bytes, worth, kept.WORTH = room, kept.WORTH, 0
            try:
                rows = generate(model, prompts, edits, max_new_tokens=steps, progress=False)
            finally:
                model.sites.kept_bytes, kept.WORTH = most, worth
            found.append([row["token_ids"] for row in rows])
        assert found[0] == found[1], (
            f"replies behind kept first tokens, edits at {positions}: {found[0]}, not {found[1]}"
        )
