"""The lexicon judge: names the emotion of a short English reply from weighted cues, offline and blind.

Formula: ``score[e] = sum over distinct cues c of e of w_c * boost * (1.5 if c fired again, else 1) + form``.
``boost`` is 1.25 just after an intensifier ("so", "utterly"). A cue is dropped when a longer cue holds it,
when it touches a cancelling phrase ("happy to help"), or when a free negator stands in the three words before
it in its clause; a negated cue passes ``w * flip`` on ("not happy" counts for sadness). ``form`` (marks such
as ``?!``, ALL-CAPS words) is too small to outweigh a clear cue.

Pattern language of ``lexicon_v1.json`` (tokens parted by blanks): ``word``; ``stem*`` any ending; ``a|b*``
alternatives; ``[a|b]`` optional; ``_`` one word; ``__`` zero to three words; ``^`` sentence start;
``. ! ? ?! ...`` end marks; emoji and emoticons. Contractions are written out on both sides.
Source: own lexicon, written from general knowledge of English; no evaluation data was read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

from emotrace.judges.base import Verdict, texts_of
from emotrace.labels import ANSWERS, EMOTIONS
from emotrace.shown import progress as progress_bar

TIE_ORDER = ("disgust", "fear", "sadness", "surprise", "anger", "happiness")
MIN_SCORE = 0.5  # a smaller best score is neutral
MIN_MARGIN = 0.05  # a smaller lead is a tie: neutral below CLEAR_SCORE, else the first of TIE_ORDER
CLEAR_SCORE = 1.0
BOOST = 1.25
NEGATION_WINDOW = 3

_BREAKS = frozenset(',;:()"“”—–\n')
_TOKEN = re.compile(
    r"[:;=]['’]?-?[()\[\]dDpPoO/|3](?![a-zA-Z0-9])|<3|[a-zA-Z0-9]+(?:'[a-zA-Z]+)*|[.!?…]+|[,;:()\"“”—–\n]"
    r"|[\u2600-\u27bf\U0001f300-\U0001faff]"
)
_WHOLE = {"can't": "can not", "cannot": "can not", "won't": "will not", "let's": "let us"}
_ENDS = {"n't": " not", "'m": " am", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "'s": ""}
_CONTRACTION = re.compile(rf"\b(?:{'|'.join(_WHOLE)})\b|(?:{'|'.join(_ENDS)})\b")
_IS = re.compile(r"\b((?:every|no|some)?thing|it|that|what|who|how|t?here|s?he|where|why|this)'s\b")
_CAPS = re.compile(r"\b[A-Z]{3,}\b")
_LONG = re.compile(r"([a-z])\1{2,}")
_PIECE = re.compile(r"[a-z0-9]+\*?|[.!?]+|\^|[^\sa-zA-Z0-9|\[\]*_^]\S*|<3")


class LexiconError(ValueError):
    """A lexicon entry breaks the pattern language; the message names the entry."""


class PatternToken(NamedTuple):
    """One pattern token: the words and prefixes it takes, and how many tokens it may span."""

    words: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    low: int = 1
    high: int = 1

    def takes(self, token: str) -> bool:
        """Say whether the token fits (a piece without words is a gap, which takes any word)."""
        if not self.words and not self.prefixes:
            return token[0].isalnum()
        return token in self.words or token.startswith(self.prefixes)


class Cue(NamedTuple):
    """A compiled pattern: its group is an emotion or a list such as ``cancel``."""

    group: str
    text: str
    weight: float
    pieces: tuple[PatternToken, ...]


class Hit(NamedTuple):
    """A cue that fired on tokens ``[start, end)``."""

    cue: Cue
    start: int
    end: int


def spell_out(text: str) -> str:
    """Lower-case a text and write its contractions out ("I'm" becomes "i am")."""
    text = text.replace("’", "'").replace("‘", "'").lower()
    if "'" in text or "cannot" in text:
        text = _IS.sub(r"\1 is", text)
        text = _CONTRACTION.sub(lambda m: _WHOLE.get(m[0]) or _ENDS.get(m[0], m[0]), text)
    return text


def compile_pattern(group: str, text: str, weight: float) -> Cue:
    """Compile one pattern; raise `LexiconError` naming the entry when it breaks the pattern language."""
    where = f"lexicon entry {group!r}: {text!r}"
    if not isinstance(weight, (int, float)) or not weight > 0:
        raise LexiconError(f"{where}: the weight must be a number above 0, not {weight!r}")
    if not isinstance(text, str) or not text.strip():
        raise LexiconError(f"{where}: the pattern is empty")
    if any(re.search(r"[a-z]'", raw) and re.search(r"[|\[]", raw) for raw in text.split()):
        raise LexiconError(f"{where}: no contraction inside alternatives or an optional token")
    pieces: list[PatternToken] = []
    for raw in spell_out(text).split():
        if raw in ("_", "__"):
            pieces.append(PatternToken(low=1 if raw == "_" else 0, high=1 if raw == "_" else 3))
            continue
        optional = raw.startswith("[") and raw.endswith("]") and len(raw) > 2
        options = (raw[1:-1] if optional else raw).split("|")
        if ":" not in raw and any(not _PIECE.fullmatch(option) for option in options):
            raise LexiconError(f"{where}: bad token {raw!r}")
        if any(option.endswith("*") and len(option) < 3 for option in options):
            raise LexiconError(f"{where}: a stem before '*' needs two letters, got {raw!r}")
        words = frozenset(option for option in options if not option.endswith("*"))
        stems = tuple(option[:-1] for option in options if option.endswith("*"))
        pieces.append(PatternToken(words, stems, low=0 if optional else 1))
    if pieces[0].low == 0 or not (pieces[0].words or pieces[0].prefixes):
        raise LexiconError(f"{where}: the first token must be a word, a mark or '^'")
    return Cue(group, text, float(weight), tuple(pieces))


def tokenize(text: str, aliases: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Split a text into tokens ("^" opens each sentence) and the clause number of each."""
    tokens, clauses, clause = ["^"], [0], 0
    for raw in _TOKEN.findall(spell_out(text)):
        if raw[0] in ".!?…":
            mark = "?!" if {"?", "!"} <= set(raw) else "..." if raw.startswith(("…", "..")) else raw[0]
            clause += 1
            tokens += [mark, "^"]
            clauses += [clause, clause]
        elif raw in _BREAKS:
            clause += 1
        else:
            word = _LONG.sub(lambda m: m[1] * (2 if m[1] in "eo" else 1), raw)
            tokens += aliases.get(word, word).split()
            clauses += [clause] * (len(tokens) - len(clauses))
    return tokens, clauses


class Lexicon:
    """Compiled cues, indexed by first token: a text only tries the cues its words can open."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        cues = [compile_pattern(e, entry["p"], entry["w"]) for e in EMOTIONS for entry in data["cues"][e]]
        cues += [compile_pattern(g, p, 1.0) for g in ("cancel", "not_negating") for p in data[g]]
        self.aliases: dict[str, str] = data["aliases"]
        self.negators = frozenset(data["negators"])
        self.intensifiers = frozenset(data["intensifiers"])
        self.flip: dict[str, dict[str, float]] = data["flip"]
        self.form: dict[str, dict[str, float]] = data["form"]
        self._words: dict[str, list[Cue]] = {}
        self._stems: dict[str, list[Cue]] = {}
        for cue in cues:
            for word in cue.pieces[0].words:
                self._words.setdefault(word, []).append(cue)
            for stem in cue.pieces[0].prefixes:
                self._stems.setdefault(stem, []).append(cue)
        self._longest = max(map(len, self._stems))
        self._openers = lru_cache(maxsize=50_000)(self._find_openers)

    def _find_openers(self, token: str, following: str) -> tuple[Cue, ...]:
        stems = (self._stems.get(token[:size], []) for size in range(2, min(len(token), self._longest) + 1))
        cues = (*self._words.get(token, []), *(cue for cues in stems for cue in cues))
        return tuple(cue for cue in cues if _match(cue.pieces[:2], 1, (following,), 0) >= 0)

    def hits(self, tokens: Sequence[str]) -> list[Hit]:
        """List every cue that fires, with its span."""
        pairs = enumerate(zip(tokens, (*tokens[1:], "."), strict=True))
        tries = ((cue, start) for start, pair in pairs for cue in self._openers(*pair))
        found = (Hit(cue, start, _match(cue.pieces, 1, tokens, start + 1)) for cue, start in tries)
        return [hit for hit in found if hit.end >= 0]

    def weigh(self, text: str) -> tuple[dict[str, float], dict[str, list[str]]]:
        """Score the six emotions and list the cues that fired for each (formula: module docstring)."""
        tokens, clauses = tokenize(text, self.aliases)
        hits = self.hits(tokens)
        cancelled = {i for h in hits if h.cue.group == "cancel" for i in range(h.start, h.end)}
        bound = cancelled | {i for h in hits if h.cue.group == "not_negating" for i in range(h.start, h.end)}
        cues = [h for h in hits if h.cue.group in EMOTIONS and cancelled.isdisjoint(range(h.start, h.end))]
        cues = _outermost(cues)
        ends = _first_ends(cues)
        scores: dict[str, float] = dict.fromkeys(EMOTIONS, 0.0)
        fired: dict[str, list[str]] = {e: [] for e in EMOTIONS}
        times: dict[int, int] = {}
        for hit in cues:
            cue, first = hit.cue, hit.start
            times[id(cue)] = nth = times.get(id(cue), 0) + 1
            weight = cue.weight * (1.0, 0.5, 0.0)[min(nth, 3) - 1]
            weight *= BOOST if first and tokens[first - 1] in self.intensifiers else 1.0
            before = [i for i in range(max(0, first - NEGATION_WINDOW), first) if tokens[i] in self.negators]
            before = [i for i in before if clauses[i] == clauses[first] and i not in bound]
            negated = any(ends.get(i, first + 1) > first for i in before)  # no cue before this one holds the negator
            for emotion, share in (self.flip[cue.group] if negated else {cue.group: 1.0}).items():
                scores[emotion] += share * weight
                fired[emotion].append(f"not {cue.text}" if negated else cue.text)
        marks = {mark: tokens.count(mark) for mark in self.form} | {"CAPS": len(_CAPS.findall(text))}
        for mark, shares in self.form.items():
            for emotion, share in shares.items():
                scores[emotion] += share * min(2, marks[mark])
        return scores, fired


def _outermost(hits: list[Hit]) -> list[Hit]:
    """Hits, in order of their starts, that no longer one holds."""
    widest: dict[int, int] = {}
    for hit in hits:
        widest[hit.start] = max(hit.end, widest.get(hit.start, 0))
    reach, before = 0, {}
    for start, end in widest.items():
        before[start], reach = reach, max(reach, end)
    return [h for h in hits if before[h.start] < h.end == widest[h.start]]


def _first_ends(hits: list[Hit]) -> dict[int, int]:
    """Token → the first end of a hit that holds it."""
    ends: dict[int, int] = {}
    for hit in hits:
        for i in range(hit.start, hit.end):
            ends[i] = min(hit.end, ends.get(i, hit.end))
    return ends


def _match(pieces: tuple[PatternToken, ...], at: int, tokens: Sequence[str], pos: int) -> int:
    """Match ``pieces[at:]`` on ``tokens[pos:]``, shortest gaps first; return the end, or -1."""
    if at == len(pieces):
        return pos
    piece = pieces[at]
    for taken in range(piece.high + 1):
        end = _match(pieces, at + 1, tokens, pos + taken) if taken >= piece.low else -1
        if end >= 0:
            return end
        if pos + taken >= len(tokens) or not piece.takes(tokens[pos + taken]):
            return -1
    return -1


@cache
def lexicon() -> Lexicon:
    """Load the shipped lexicon once."""
    return Lexicon(json.loads(_text()))


@cache
def lexicon_digest() -> str:
    """Hash of the shipped lexicon and of what answers depend on beside it."""
    rest = (TIE_ORDER, MIN_SCORE, MIN_MARGIN, CLEAR_SCORE, BOOST, NEGATION_WINDOW)
    return hashlib.sha256(f"{_text()}{rest}".encode()).hexdigest()[:16]


def _text() -> str:
    return (resources.files("emotrace.judges") / "lexicon_v1.json").read_text("utf-8")


def score(text: str) -> dict[str, float]:
    """Give each of the six emotions its non-negative score (formula: module docstring)."""
    return lexicon().weigh(text)[0]


def predict(text: str) -> tuple[str, float, str]:
    """Answer one of `ANSWERS`, the lead over the runner-up, and the cues that decided it."""
    if not text.strip():
        return "neutral", 0.0, "empty text"
    scores, fired = lexicon().weigh(text)
    ranked = sorted(EMOTIONS, key=lambda e: -scores[e])
    best, margin = scores[ranked[0]], scores[ranked[0]] - scores[ranked[1]]
    if best < MIN_SCORE or (margin < MIN_MARGIN and best < CLEAR_SCORE):
        return "neutral", margin, "no clear cue"
    answer = next(e for e in TIE_ORDER if best - scores[e] < MIN_MARGIN)
    cues = ", ".join(dict.fromkeys(fired[answer])) or "marks and capitals only"
    return answer, margin, f"{answer} {scores[answer]:.2f}: {cues}"


class LexiconJudge:
    """A judge that reads a reply without its target and answers from the lexicon."""

    name = "lexicon:v1"
    choices = ANSWERS

    @property
    def depends_on(self) -> dict[str, Any]:
        """The cues, which verdicts depend on."""
        return {"lexicon": lexicon_digest()}

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """Judge each text: the answer, this judge's name and the reason.

        Args:
            texts: each judged alone; a blank one is neutral.
            progress: show a bar on stderr.
        """
        bar = progress_bar(texts_of(self.name, texts), desc=f"judge {self.name}", unit="text", enabled=progress)
        return [{"predicted": a, "judge": self.name, "reason": reason} for a, _, reason in map(predict, bar)]
