"""Claims: what a comparison of methods shows, said only where every test that the claim names holds. Pure.

A claim is a sentence, the comparisons that must all be won for it, and what they control for. The comparisons of all claims are
one family: p is corrected over it (Holm). What is not shown is said to be not shown, and what was not tested not to be tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

from emotrace.arms import ARMS
from emotrace.labels import EmotraceError
from emotrace.replies.family import ALPHA, AS_PAYLOAD, EQUAL_KL, Comparison, Tested, compared
from emotrace.replies.row import Row
from emotrace.signatures import typed
from emotrace.stats.permutation import p_said


class Claim(NamedTuple):
    """A sentence, and what it rests on.

    Attributes:
        name: short.
        says: the sentence.
        needs: comparisons that must all be won.
        control: what is ruled out, in words.
        figure: of the report, that shows it.
    """

    name: str
    says: str
    needs: tuple[Comparison, ...]
    control: str
    figure: str = "accuracy"


class Found(TypedDict):
    """A claim after its tests.

    Attributes:
        name: of the claim.
        sentence: what may be printed: the claim, or that it was not shown or not tested, with its figures.
        short: the same without figures, for a title.
        holds: None where it was not tested.
        tests: of its comparisons.
        missing: arms without replies.
        control: what is ruled out where it holds.
        figure: that shows it.
    """

    name: str
    sentence: str
    short: str
    holds: bool | None
    tests: list[Tested]
    missing: list[str]
    control: str
    figure: str


def _needed(how: str, suffix: str) -> Claim:
    return Claim(
        f"needed_{how}",
        f"the circuit is needed for an emotion asked in words ({how} ablation)",
        (Comparison(f"random_ablate{suffix}", f"ablate{suffix}", "accuracy_given_fluent"),),
        "damage that as many random components do, at the same positions; among fluent replies",
        "ablation",
    )


CLAIMS: Final = (
    Claim(
        "steers", "steering along the directions makes the model express the emotion aimed at",
        (Comparison("steer", "none"), Comparison("steer", "random_steer"), Comparison("steer", "wrong_emotion")),
        "what the model says anyway, random directions of equal norm, and another emotion's direction",
    ),
    Claim(
        "modulates", "the circuit makes the model express the emotion aimed at",
        (Comparison("circuit", "none"), Comparison("circuit", "random_circuit")),
        "what the model says anyway, and random components of equal number and norm at the same strength",
    ),
    Claim(
        "components", "the circuit is emotion-specific in its components",
        (Comparison("circuit", "random_tuned"), Comparison("circuit", "shared_set")),
        "the emotion's payload on random components, and on one set for all emotions, each tuned by the same search",
    ),
    Claim(
        "payload", "the payload leads, not the components that it is added at",
        (Comparison(AS_PAYLOAD, "wrong_payload", "accuracy"),),
        "components that express their own emotion whatever is added there: another emotion's payload is, and is read",
    ),
    Claim(
        "opening", "the first tokens do not explain the circuit",
        (Comparison("circuit", "prefill_4", "accuracy_from_third"),),
        "the model's own replies begun with the four commonest first tokens, judged from the third token on",
    ),
    Claim(
        "opening_steer", "the first tokens do not explain steering",
        (Comparison("steer", "prefill_4", "accuracy_from_third"),),
        "the model's own replies begun with the four commonest first tokens, judged from the third token on",
    ),
    _needed("zero", ""),
    _needed("mean", "_mean"),
    _needed("resample", "_resample"),
    Claim("beats_prompting", "the circuit beats asking in words", (Comparison("circuit", "prompt"),), "the same prompts"),
    Claim("beats_steering", "the circuit beats steering", (Comparison("circuit", "steer"),), "the same prompts"),
    Claim(
        "beats_steering_at_equal_kl", "the circuit beats steering at an equal distance from the un-edited model",
        (Comparison("circuit", "steer", EQUAL_KL),), "doses that cost unequally", "comparison",
    ),
)  # fmt: skip
"""Of the main job, in the order of its report."""
if lost := {arm for claim in CLAIMS for c in claim.needs for arm in (c.a, c.b)} - {*ARMS, AS_PAYLOAD}:
    raise EmotraceError(f"claims compare what is no arm: {', '.join(sorted(lost))}.")


@typed
def claims(
    rows: Iterable[Row],
    *,
    wanted: Sequence[Claim] = CLAIMS,
    given: Sequence[Mapping[str, Any]] = (),
    doubt: str = "",
    verdict: str = "verdict",
    cluster: str = "skeleton_id",
    permutations: int = 10_000,
    seed: int = 0,
) -> tuple[list[Found], list[Tested]]:
    """Which claims hold, each with its tests; and the family, corrected over all of them.

    A claim holds where each of its comparisons is won: a scores higher than b, and Holm's p over all comparisons made is below
    `ALPHA`. Of an arm that was drawn several times the draw counts that is hardest to beat.

    Args:
        rows: judged rows of all arms, with ``meta.fluent``.
        wanted: claims.
        given: tests of `EQUAL_KL` comparisons, of `frontiers`.
        doubt: why the judge may carry no claim; then none holds.
        verdict: that is tested: ``verdict``, or ``verdict_second`` where another judge tests what the first chose.
        cluster: label that is exchanged and drawn as a whole.
        permutations: of each test.
        seed: of each test.

    Returns:
        (claims, family).

    Raises:
        EmotraceError: for a comparison by an unknown score, or rows without what a score reads.
    """
    comparisons = dict.fromkeys(comparison for claim in wanted for comparison in claim.needs)
    options: dict[str, Any] = {"verdict": verdict, "cluster": cluster, "permutations": permutations, "seed": seed}
    family = compared(rows, list(comparisons), given=given, **options)
    return [_found(claim, family, doubt) for claim in wanted], list(family.values())


def _found(claim: Claim, family: Mapping[Comparison, Any], doubt: str) -> Found:
    missing = [c for c in claim.needs if c not in family]
    tests = [family[c] for c in claim.needs if c in family]
    arms = sorted({arm for c in missing for arm in (c.a, c.b)})
    figures = "; ".join(figure_of(test) for test in tests)
    lost = ", ".join(f"{t['a']} − {t['b']}" for t in tests if not t["holds"])
    why = doubt or (lost and f"{lost}: not above 0 with Holm's p below {ALPHA:g}")
    untested = " and ".join(f"{c.a} against {c.b}" for c in missing)
    holds: bool | None = None
    if why and tests:
        holds, short, figures = False, f"not shown: {claim.says}", f"{figures}; {why}"
    elif missing:
        short, figures = f"not tested: {claim.says}", f"needs {untested}"
    else:
        holds, short = True, claim.says[0].upper() + claim.says[1:]
    return {
        "name": claim.name, "sentence": f"{short} ({figures}).", "short": short, "holds": holds, "tests": tests,
        "missing": arms if missing else [], "control": claim.control, "figure": claim.figure,
    }  # fmt: skip


def figure_of(test: Mapping[str, Any]) -> str:
    """A test in a few words: difference, interval, corrected p."""
    lo, hi = test["ci95"]
    score = str(test["score"]).replace("accuracy_", "").replace("_", " ")
    by = "" if score == "accuracy" else f", {score}"
    at = f" of {test['kl']:.2g} nats" if "kl" in test else ""
    p = p_said(test["p_holm"], test["p_holm"] if test["p"] <= test["p_floor"] else 0.0)
    difference = f"{100 * test['difference']:+.1f} points [{100 * lo:+.1f}, {100 * hi:+.1f}]".replace("-", "−")
    return f"{test['a']} − {test['b']}{by}{at}: {difference}, Holm's p {p}"


def sentence_of(found: Iterable[Mapping[str, Any]], name: str) -> str:
    """What may be printed of one claim; empty where the report knows nothing of it.

    Raises:
        EmotraceError: for a name that is no claim's.
    """
    if name not in {claim.name for claim in CLAIMS}:
        raise EmotraceError(f"{name!r} is no claim; there are {', '.join(c.name for c in CLAIMS)}.")
    return next((str(one["sentence"]) for one in found if one["name"] == name), "")
