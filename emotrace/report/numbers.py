"""Numbers: the scores that the page shows, as texts, and the tables they stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from emotrace.replies.arms import SCORES
from emotrace.report import asking, style, tables
from emotrace.report.replies import CONTROLLED, CONTROLS, chance_of
from emotrace.stats.permutation import p_said

HOLM: Final = "; Holm: p with Holm's correction over the tests of this table"


class Grid(NamedTuple):
    """A table of the page.

    Attributes:
        caption: above it.
        head: names of the columns.
        rows: cells.
        heading: of a section of its own; empty for none.
        texts: so many columns at the left are texts; the others are numbers.
        id: by which a link finds it.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]
    heading: str = ""
    texts: int = 1
    id: str = ""


MORE: Final = {
    "accuracy_given_fluent": "of the fluent", "accuracy_from_third": "from the third", "accuracy_target": "target-aware",
    "accuracy_second": "second judge",
}  # fmt: skip
"""Scores that the table has where the report has them, and the head of their column."""


def headlines(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers that come first: the methods, the best control, the lift."""
    accuracy, fluent = report.get("accuracy") or {}, report.get("accuracy_fluent") or {}
    refits = (report.get("refits") or {}).get("accuracy") or {}
    out = []
    for method in ("prompt", "steer", "circuit"):
        if method in accuracy:
            leaf = accuracy[method].get("overall")
            second = style.number((fluent.get(method) or {}).get("overall"))
            notes = [f"{style.percent(second)} and fluent"] if second == second else []
            notes += ["interval over fits too"] if method in refits else []
            held = bounds(refits.get(method) or leaf)
            out.append({"name": method, "value": style.percent(leaf, 1), "interval": held, "note": "; ".join(notes)})
    controls = {m: accuracy[m].get("overall") for m in CONTROLS if m in accuracy}
    if controls:
        best = max(controls, key=lambda m: style.number(controls[m]))
        note = f"{best}; chance {style.percent(chance_of(report))}"
        out.append(
            {
                "name": "best control",
                "value": style.percent(controls[best], 1),
                "interval": bounds(controls[best]),
                "note": note,
            }
        )
    overall = {m: found["overall"] for m, found in style.lifts_of(report).items() if "overall" in found}
    for method in [m for m in CONTROLLED if m in overall][:1]:
        lift = overall[method]
        found_p = _p(lift)
        note = f"p {found_p}" if found_p.startswith("≤") else f"p = {found_p}"
        out.append({"name": f"{method} over none", "value": _points(lift), "interval": bounds(lift), "note": note})
    return out


def claims(report: Mapping[str, Any], figures: Sequence[str]) -> list[dict[str, Any]]:
    """Every claim with its tests in words, and the figure that shows it, if it is one of these.

    Its whole sentence stands there where its tests do not say why it is, or is not, shown.
    """
    verdicts = {True: ("holds", "yes"), False: ("not shown", "no"), None: ("not tested", "")}
    out = []
    for claim in report.get("claims") or []:
        verdict, right = verdicts[claim["holds"]]
        tests = claim.get("tests") or []
        lost = any(not test.get("holds") for test in tests)
        out.append(
            {
                "says": str(claim["short"]).split(": ", 1)[-1], "verdict": verdict, "right": right,
                "sentence": "" if tests and (lost or claim["holds"]) else str(claim["sentence"]),
                "control": str(claim["control"]), "tests": [_test(test) for test in tests],
                "missing": ", ".join(map(str, claim.get("missing") or [])),
                "figure": claim["figure"] if claim.get("figure") in figures else "",
            }
        )  # fmt: skip
    return out


def _test(test: Mapping[str, Any]) -> str:
    """``circuit − none, accuracy fluent: +50.0 points [33.3, 66.7], p .002, Holm's p .01, 24 skeletons: won``."""
    row = paired({"paired": [test]})[0]
    said = [f"{row['difference']} {row['interval']}".strip(), f"p {row['p']}"]
    said += [f"Holm's p {row['holm']}"] * bool(row["holm"]) + [f"{row['n']} skeletons"]
    won = {True: ": won", False: ": not won"}.get(test.get("holds"), "")  # type: ignore[arg-type] - absent is neither
    return f"{row['a']} − {row['b']}, {row['score']}: {', '.join(said)}{won}"


def grids(report: Mapping[str, Any]) -> list[Grid]:
    """The tables of scores, lifts and paired tests, and by emotion; those of which there is something."""
    methods, tests = scores(report), paired(report)
    corrected = any(row["holm"] for row in tests)
    more = {k: name for k, name in MORE.items() if any(row[k] != "–" for row in methods)}
    scored = any(row["score"] for row in tests)
    interval = "95 % interval from a bootstrap over skeletons, p from sign flips over skeletons"
    found = [
        Grid(
            "Share of replies whose emotion, as read by a judge who does not know what was asked, is the asked one; 95 % "
            "intervals from a bootstrap over skeletons. Worst case: every unjudged reply counts as a miss. Of several draws "
            "controls show the highest, ablated random components the lowest. Of the fluent: only fluent replies are counted. "
            "From the third: the judge reads the reply without its first two tokens.",
            ["method", "accuracy", "… and fluent", *more.values(), "n", "unjudged", "worst case"],
            [
                [
                    row["method"] + (f" ({row['draws']} draws)" if row["draws"] > 1 else ""), row["accuracy"], row["fluent"],
                    *(row[k] for k in more), str(row["n"]), str(row["n_unjudged"]), row["worst"],
                ]
                for row in methods
            ],
        ),
        Grid(
            "Lift: accuracy less that of the same prompts with nothing asked and nothing edited, paired by prompt; "
            f"{interval}.",
            ["method", "emotion", "lift", "95 % interval", "p", "n"],
            [[row[k] for k in ("method", "name", "value", "interval", "p", "n")] for row in lifts(report)],
            texts=2,
        ),
        Grid(
            "Paired: the first method's share of matches less the second's, on the prompts judged in both; "
            f"{interval}, n their number (among fluent replies: that of both){HOLM if corrected else ''}.",
            ["methods", *scored * ["score"], "difference", "95 % interval", "p", *corrected * ["Holm"], "n"],
            [
                [f"{row['a']} − {row['b']}", *scored * [row["score"]],
                 *(row[k] for k in ("difference", "interval", "p", *corrected * ["holm"], "n"))]
                for row in tests
            ],
            texts=1 + scored,
            id="paired",
        ),
        Grid(
            _refits_caption(report.get("refits") or {}),
            ["figure", "accuracy", "95 % interval", "refits", "… and fluent", "95 % interval ", "refits "],
            [
                [name, *(text for score in ("accuracy", "accuracy_fluent") for text in _refitted(report["refits"][score][name]))]
                for name in (report.get("refits") or {}).get("accuracy", ())
            ],
            id="refits",
        ),
        Grid(
            "What the chosen edits do at the last prompt token of held-out training prompts: to the projection on the emotion's "
            "direction (last layer), and to logits, of tokens that tell an emotion's replies from others and of the emotion's "
            "name, less the other emotions' (95 % intervals over skeletons). Mediated: share of the effect that is gone where "
            "the component along the directions is held in the last layer. Edits that raised the name alone would only repeat "
            "the instruction's word.",
            ["method", "projection", "words of replies", "mediated", "name", "mediated "],
            [
                [arm, _effect(of.get("projection")), *(text for name in ("replies", "names") for text in _logits(of.get(name)))]
                for arm, of in ((report.get("mediation") or {}).get("arms") or {}).items()
            ],
            id="mediation",
        ),
        Grid(
            "Agreement of the two judges: share of replies with one answer, Cohen's κ and Krippendorff's α (0: as by chance), "
            "95 % intervals from a bootstrap over skeletons; n replies that both judged.",
            ["method", "one answer", "κ", "α", "n"],
            [
                [str(line["method"]), style.percent(line["same"], 1), _coefficient(line, "kappa"), _coefficient(line, "alpha"),
                 f"{line['n']:,}"]
                for line in report.get("judge_agreement") or []
            ],
            id="judge_agreement",
        ),
    ]  # fmt: skip
    head, rows = asking.by_emotion(report)
    how = (report.get("elicitation") or {}).get("chosen", "")
    optimistic = (report.get("accepted_train") or {}).get("optimistic")
    which = "on which this way was chosen (optimistic)" if optimistic else "on which nothing was chosen"
    caption = (
        f"By emotion: share of prompted replies accepted, asked by {how}, to training skeletons {which}, and share of fluent "
        "replies on target to the test file, each with its 95 % interval. No emotion is left out of any figure; the last row has "
        "only those of which at least half of the prompted training replies are accepted."
    )
    found.append(Grid(caption, head, rows, "By emotion", id="by_emotion"))
    return [grid for grid in found if grid.rows]


def _refits_caption(found: Mapping[str, Any]) -> str:
    return (
        "Intervals that include the fit: directions and circuit were fitted again to {n} other draws of {skeletons} of the {of} "
        "training skeletons (a mean over so many varies as one over a fitting part drawn anew), settings {settings}; variances "
        "over test skeletons and fits added, t by Welch and Satterthwaite. Refits: lowest to highest."
    ).format(**found) if found else ""  # fmt: skip


def _effect(leaf: Mapping[str, Any] | None) -> str:
    if not leaf:
        return "–"
    low, high = leaf["ci95"]
    return f"{leaf['effect']:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def _logits(leaf: Mapping[str, Any] | None) -> list[str]:
    share = (leaf or {}).get("mediated")
    return [_effect(leaf), "–" if share is None else style.percent(share)]


def _refitted(leaf: Mapping[str, Any]) -> list[str]:
    low, high = min(leaf["refits"]), max(leaf["refits"])
    return [style.percent(leaf["value"], 1), bounds(leaf), f"{style.percent(low, 1)} to {style.percent(high, 1)}"]


def _coefficient(line: Mapping[str, Any], name: str) -> str:
    """``0.72 [0.68, 0.75]``; a dash where there was nothing to disagree about."""
    value, (low, high) = style.number(line[name]), line[f"{name}_ci95"]
    return "–" if value != value else f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def fluency(report: Mapping[str, Any]) -> list[Grid]:
    """The table of fluency by method; none where it is not known."""
    found = tables.fluency(report)
    caption = """Median perplexity of the reply under the un-edited model, mean length in tokens, mean share of repeated 3-grams,
        share of fluent replies. Where the prompted replies end at the limit of new tokens, that is the upper bound of length, and
        leaves out none."""
    head = [str(name).replace("_", " ") for name in found]
    rows = [[_fluent(str(name), value) for name, value in row.items()] for row in found.to_dict("records")]
    return [Grid(" ".join(caption.split()), head, rows, "Fluency by method", id="fluency")] if rows else []


def scores(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method for the table under the headline numbers."""
    out = []
    for method in style.methods_of(report.get("accuracy") or {}):
        leaf = report["accuracy"][method].get("overall") or {}
        others = {s: ((report.get(s) or {}).get(method) or {}).get("overall") for s in SCORES}
        out.append(
            {
                "method": method,
                "draws": len(leaf.get("draws") or []),
                **{k: (leaf.get(k) if leaf.get(k) is not None else "–") for k in ("n", "n_unjudged")},
                "worst": style.percent(leaf.get("worst_case"), 1),
                "accuracy": cell(leaf),
                "fluent": cell(others["accuracy_fluent"]),
                **{k: cell(others[k]) for k in MORE},
            }
        )
    return out


def lifts(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per method and emotion for the table of lifts."""
    found = style.lifts_of(report)
    return [
        {
            "method": m,
            "name": n,
            "value": _points(leaf),
            "interval": bounds(leaf),
            "p": _p(leaf),
            "n": str(leaf.get("n", "–")),
        }
        for m in found
        for n, leaf in found[m].items()
    ]


def paired(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per paired test: which two methods, by which score, how far apart, and how sure that is."""
    out = []
    for test in report.get("paired") or []:
        value = test.get("difference", test.get("value"))
        out.append(
            {
                "a": str(test.get("a", "")),
                "b": str(test.get("b", "")),
                "score": str(test.get("score", "")).replace("_", " "),
                "difference": _points(value),
                "interval": bounds(test),
                "p": _p(test),
                "holm": _holm(test) if "p_holm" in test else "",
                "n": str(test.get("n_skeletons", test.get("n_clusters", "–"))),
            }
        )
    return out


def published(report: Mapping[str, Any]) -> str:
    """What the paper reports, and why it cannot be held against the numbers of the page; empty where it is not given."""
    found = report.get("published") or {}
    if not found:
        return ""
    parts = ", ".join(f"{m} {style.percent(found[m], 2)}" for m in style.methods_of(found))
    return (
        f"Published for Llama-3.2-3B: {parts}. There the judge was told the asked emotion and each method had its own "
        "decoding, so these figures are not comparable with the numbers on this page."
    )


def cell(leaf: object) -> str:
    """``93.1 % [91.9, 94.2]``; a dash where there is nothing."""
    return f"{style.percent(leaf, 1)} {bounds(leaf)}".strip() if leaf else "–"


def bounds(leaf: object) -> str:
    """``[91.9, 94.2]``, in percent."""
    low, high = style.interval(leaf)
    return f"[{100 * low:.1f}, {100 * high:.1f}]".replace("-", "−") if low == low and high == high else ""


def _fluent(name: str, value: object) -> str:
    if name == "share_fluent":
        return style.percent(value, 1)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def _points(leaf: object) -> str:
    value = style.number(leaf)
    return f"{100 * value:+.1f} points".replace("-", "−") if value == value else "–"


def _holm(test: Mapping[str, Any]) -> str:
    """Corrected p; ``≤`` where the test's own could not have been less."""
    own, floor = style.number(test.get("p")), style.number(test.get("p_floor"))
    return p_said(test["p_holm"], test["p_holm"] if own <= floor * (1 + 1e-9) else 0.0).removeprefix("= ")


def _p(test: Mapping[str, Any]) -> str:
    """p, or ``≤`` and the least p that as many random patterns can give."""
    value, floor = style.number(test.get("p")), style.number(test.get("p_floor"))
    return p_said(value, floor).removeprefix("= ")
