"""Claims from runs: three models of which it is known what makes them express an emotion, told apart by one table of claims."""

from __future__ import annotations

from dataclasses import replace

import pytest

import emotrace as et
from emotrace import attribution, circuits, directions, replies
from emotrace.datasets import Prompts
from emotrace.evaluation import repeated
from emotrace.labels import EMOTIONS
from emotrace.testing.planted_claims import LAYER, TRUTHS, answer_of, planted_claim

LENGTH = 8
WANTED = {
    #              components payload opening needed
    "components": (True, False, True, True),
    "payload": (False, True, True, False),
    "opening": (False, True, False, False),
}


@pytest.fixture(scope="module", params=TRUTHS)
def told(request, tmp_path_factory):
    """Truth → its claims, of replies that the model gave in the arms that they name."""
    truth = request.param
    found = planted_claim(truth, skeletons=9)
    model, goal = found.model, found.plain.for_each(emotion=EMOTIONS)
    acts = et.capture(
        model, found.prompts, ("resid_mid", "resid_post", "neuron"), positions="last", components=True,
        out=tmp_path_factory.mktemp(truth) / "acts.zarr", progress=False,
    )  # fmt: skip
    dirs = directions.centered_mean(acts.where(sublayer=["resid_mid", "resid_post"]))
    covectors = attribution.covectors(model, dirs)
    circuit = circuits.discover(acts, covectors, neurons_per_layer=found.units, layers=[LAYER])
    scores = attribution.neuron_contributions(acts, covectors, layers=[LAYER])
    base = et.generate(model, found.plain, max_new_tokens=LENGTH, progress=False)
    rows = repeated(base, found.plain, goal)

    def answered(method, prompts, edits=(), n=LENGTH, **options):
        options |= {"max_new_tokens": n, "method": method, "batch_size": 128, "progress": False}
        rows.extend(et.generate(model, prompts, edits, **options))

    answered("prompt", found.prompts)
    others = replies.derangement(circuit.labels, 1)
    made = {
        "circuit": circuit, "random_tuned": circuit.random(1, matched=True),
        "shared_set": circuit.shared({"neuron": scores["contrast"]}, matched=True),
    }  # fmt: skip
    for method, one in made.items():
        answered(method, goal, one.edits(found.strength))
    aimed = Prompts(replace(p, labels=p.labels | {"payload_emotion": others[p.labels["emotion"]]}) for p in goal)
    answered("wrong_payload", aimed, circuit.with_payload_of(others).edits(found.strength))
    judge(rows)
    begin = replies.openings([r for r in rows if r["method"] == "prompt"], 4)
    begun = goal.with_replies([{"key": p.key, "token_ids": list(begin[p.labels["emotion"]].token_ids)} for p in goal])
    answered("prefill_4", begun, n=LENGTH - 4, prefill=True)
    for method, one in (("ablate", circuit), ("random_ablate", made["random_tuned"])):
        for emotion in EMOTIONS:
            answered(method, found.prompts.where(emotion=emotion), one.ablations(emotion, positions="steer"))
    judge(rows)
    return truth, {claim["name"]: claim for claim in replies.claims(rows)[0]}, rows


def judge(rows):
    """Verdicts on whole replies and from the third token on; every reply counts as fluent."""
    for row in rows:
        for name, ids in (("verdict", row["token_ids"]), ("verdict_from_third", row["token_ids"][2:])):
            said = answer_of(ids)
            row[name] = {"predicted": said, "match": int(said == row["emotion"])}
        row["meta"] |= {"fluent": True, "repetition": 0.0}


def test_what_was_planted_is_what_the_claims_say(told):
    truth, claims, rows = told
    shares = {m: f"{s['overall']['value']:.2f}" for m, s in replies.summary(rows)["accuracy"].items()}
    print(truth, shares)
    assert float(shares["prompt"]) > 0.95, shares
    got = tuple(claims[name]["holds"] for name in ("components", "payload", "opening", "needed_zero"))
    assert got == WANTED[truth], (shares, {n: c["sentence"] for n, c in claims.items()})
