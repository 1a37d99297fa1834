"""What ``emotion_circuits.py`` does by itself, and what the authors did (``--preset emotion_circuits``)."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import xarray as xr

import emotrace as et
from emotrace import acceptance, attribution, presets, replies
from emotrace import directions as directions_
from emotrace.arms import made_by
from emotrace.disk import plain
from emotrace.replies import Row
from emotrace.sites import LanguageModel

DOSES = (0.06, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.24, 0.28, 0.34, 0.4)
"""Size of one addition as a share of ‖h‖: strength · RMS(h) · v̂ has the norm (strength / √d) · ‖h‖."""
STRENGTHS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.5)
"""λ of the circuit."""
POSITIONS = ("steer", "last")
"""Where is added: from the last prompt token on, or there only; of a circuit at neurons and heads each."""
INFLUENCE_DOSES = (0.1, 0.3, 0.5, 0.7)
"""Finite doses of sublayer influence, in units of σ, as published."""
MIN_WHOLE = 0.1
"""Below this share of complete accepted groups, everything is fitted on all replies, and the report warns."""

Setting = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """Settings of one run.

    Attributes:
        decoding: options of `emotrace.generate` by method; ``""`` for all that are not named.
        steering: lines of settings ``{positions, layers, dose}`` to search; a single setting is taken as it is.
        modulation: lines of settings ``{neuron_positions, head_positions, lambda}``.
        by_label: factor of λ of single emotions.
        influence: arguments of `attribution.sublayer_influence`.
        block: layers of the reference direction; None finds the longest stable block.
        after_norm: the last layer's directions are taken after the model's final norm.
        record: for the manifest.
    """

    decoding: Mapping[str, Mapping[str, Any]]
    steering: Sequence[Sequence[Setting]]
    modulation: Sequence[Sequence[Setting]]
    by_label: Mapping[str, float] = field(default_factory=dict)
    influence: Mapping[str, Any] = field(default_factory=lambda: {"doses": INFLUENCE_DOSES})
    block: tuple[int, ...] | None = None
    after_norm: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)

    def decoding_of(self, method: str) -> Mapping[str, Any]:
        """Options of generation for a method."""
        return self.decoding.get(method, self.decoding[""])

    def directions(self, lm: LanguageModel, acts: Any, accepted: Sequence[str]) -> xr.DataArray:
        """Context-agnostic directions; with ``after_norm`` the last layer's ``resid_post`` as its norm gives it."""
        common: dict[str, Any] = {"label": "emotion", "within": ("skeleton_id", "valence"), "accepted": accepted}
        found = directions_.centered_mean(acts, **common)
        if not self.after_norm:
            return found
        last = {"layer": lm.sites.n_layers - 1, "sublayer": "resid_post"}
        normed = directions_.centered_mean(acts, variable="final_norm", **common)
        found = found.copy(deep=True)
        found.loc[last] = normed.values
        found["norm"].loc[last] = normed["norm"].values
        return found.assign_attrs(after_final_norm=[last])

    def influence_options(self, acts: Any, dirs: xr.DataArray, accepted: Sequence[str]) -> dict[str, Any]:
        """Arguments of `attribution.sublayer_influence`; the paper's σ is that of the prompted activations."""
        if self.block is None:
            return dict(self.influence)
        reference = attribution.reference_direction(dirs, attribution.layer_block(dirs, self.block))
        sigma = directions_.mean_rms(acts, accepted=accepted)
        return {**self.influence, "reference": reference, "sigma": sigma, "accepted": accepted}


def lines(places: Sequence[Setting], name: str, sizes: Sequence[float]) -> list[list[Setting]]:
    """At each place every dose."""
    return [[{**place, name: size} for size in sizes] for place in places]


def encoding(preset: str | None) -> dict[str, Any]:
    """How prompts are encoded: the paper's have two BOS tokens and the day of the run in the template."""
    if preset is None:
        return {}
    found = presets.preset(preset)
    return {"double_bos": found["double_bos"], "date": datetime.date.today().isoformat()}


def ours(lm: LanguageModel, max_new_tokens: int, step: int = 1) -> Protocol:
    """One decoding for all methods; steering and circuit, at every ``step``-th dose and λ, searched on held-out skeletons."""
    windows = sorted(replies.layer_windows(lm.sites.n_layers), key=lambda w: _unlikely(w, lm.sites.n_layers))
    steering = lines([{"positions": p, "layers": w} for p in POSITIONS for w in windows], "dose", DOSES[::step])
    where = [{"neuron_positions": n, "head_positions": h} for n, h in product(POSITIONS, POSITIONS)]
    modulation = lines(where, "lambda", STRENGTHS[::step])
    return Protocol({"": {"max_new_tokens": max_new_tokens}}, steering, modulation)


def _unlikely(window: Sequence[int], n_layers: int) -> tuple[float, float]:
    """How far a window's middle is from the model's, then its size from half of it: directions act in the middle layers."""
    return abs((window[0] + window[-1] + 1) / 2 - n_layers / 2), abs(len(window) - n_layers / 2)


def published(preset: str, lm: LanguageModel) -> Protocol:
    """The authors' settings, nothing searched.

    Not imitated: activations rounded to float16, circuits in a model of half precision, and their judge, which
    ``--judge openai --target-aware`` asks.

    Raises:
        EmotraceError: for a model with fewer layers than these settings name.
    """
    found = presets.preset(preset)
    steering, influence, circuit = found["steering"], found["influence"], found["circuit"]
    most, n_layers = max(*steering["layers"], *influence["block"]), lm.sites.n_layers
    if n_layers <= most:
        raise et.EmotraceError(
            f"--preset {preset} steers at layers {steering['layers'][0]}-{steering['layers'][-1]} and takes its reference from "
            f"layers {influence['block'][0]}-{influence['block'][-1]}; this model has {n_layers} layers. Leave the preset out."
        )
    place = {"positions": steering["positions"], "layers": list(steering["layers"])}
    dose = steering["strength"] / math.sqrt(lm.sites.d_model)
    where = {k: circuit[k] for k in ("neuron_positions", "head_positions")}
    decoding = {"": dict(found["decoding"])}
    decoding |= {method: dict(found["decoding_steered"]) for method in made_by("steered")}
    decoding |= {method: dict(found["decoding_circuit"]) for method in made_by("modulated", "tuned")}
    return Protocol(
        decoding, [[{**place, "dose": dose}]], [[{**where, "lambda": circuit["strength"]}]],
        by_label=dict(circuit["strength_by_emotion"]),
        influence={"doses": influence["doses"], "readout_site": influence["readout"], "align": influence["align"]},
        block=tuple(influence["block"]),
        after_norm=bool(found["final_norm_last_row"]), record=plain(found),
    )  # fmt: skip


class Fitted(NamedTuple):
    """What directions and circuits are fitted on.

    Attributes:
        keys: of the prompts.
        by_emotion: emotion → how many prompts of how many, and whether only accepted ones.
        notes: for the report.
    """

    keys: list[str]
    by_emotion: dict[str, dict[str, Any]]
    notes: list[str]


def fitted(prompted: list[Row], inside: set[str]) -> Fitted:
    """Accepted replies of the fitting part; of an emotion that is hardly elicited all its prompts, since no emotion is left out.

    Where too few groups are whole even so, everything is fitted on all prompts.
    """
    rows = [row for row in prompted if row["key"] in inside]
    shares = replies.accuracy_table(rows)["by_emotion"]
    strong = set(acceptance.elicited(shares))
    weak = [emotion for emotion in shares if emotion not in strong]
    accepted = set(directions_.accepted(rows))
    good = [row for row in rows if row["key"] in accepted or row["emotion"] in weak]
    within = ("skeleton_id", "valence")
    groups = len({(row["skeleton_id"], row["valence"]) for row in rows})
    whole = len(directions_.complete_groups(good, "emotion", within)[0]) if good else 0
    notes = []
    if weak:
        counts = ", ".join(f"{e} {round((shares[e]['value'] or 0) * shares[e]['n'])} of {shares[e]['n']}" for e in weak)
        notes.append(
            f"few prompted replies express {counts}; their directions and circuits rest on all their prompts, accepted or not"
        )
    if whole < max(2, MIN_WHOLE * groups):
        good, strong = rows, set()
        notes.append(
            f"only {whole} of {groups} scenarios × valences have a reply to fit on for every emotion, so directions and circuits "
            "were fitted on all prompts, accepted or not"
        )
    by_emotion = {
        e: {"n": sum(r["emotion"] == e for r in good), "of": sum(r["emotion"] == e for r in rows), "accepted_only": e in strong}
        for e in shares
    }  # fmt: skip
    return Fitted([row["key"] for row in good], by_emotion, notes)


def ended(protocol: Protocol, stop: Sequence[str]) -> Protocol:
    """The protocol, replies ended by these texts under every method."""
    if not stop:
        return protocol
    return replace(protocol, decoding={m: {**how, "stop": list(stop)} for m, how in protocol.decoding.items()})


def sites_asked(lm: LanguageModel) -> list[str]:
    """The sites that directions, components and circuits are asked of, as far as the model has them."""
    residual = ["resid_pre"] * (lm.sites.form == "post-ln") + ["resid_mid", "resid_post"]
    return [site for site in (*residual, "z", "neuron") if lm.sites.has(site)]
