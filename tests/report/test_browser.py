"""The page of a report in a browser: opened, filtered, compared, by mouse and by keyboard, at three widths, light or dark."""

from __future__ import annotations

import shutil
import time
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

from emotrace import report as room
from emotrace.labels import ANSWERS, EMOTIONS

pytestmark = pytest.mark.browser
METHODS = ("none", "prompt", "steer", "random_steer")
MANY = 20_000
SECONDS = 3.0
"""In which a page of `MANY` replies is open, its first replies shown."""


@pytest.fixture(scope="module")
def browser():
    """Chromium by playwright; skips with the reason where either is absent."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install emotrace[browser])"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def replies(n):
    """Synthetic replies to n / (methods × emotions) prompts."""
    rng = np.random.default_rng(0)
    words = ["gate", "crane", "letter", "yard", "so", "angry", "glad", "calm", "never", "rain"]
    out = []
    for i in range(n):
        place, rest = divmod(i, len(METHODS) * len(EMOTIONS))
        emotion, method = EMOTIONS[rest // len(METHODS)], METHODS[rest % len(METHODS)]
        read = ANSWERS[int(rng.integers(len(ANSWERS)))] if method != "prompt" else emotion
        out.append(
            {
                "key": f"s{place}__{emotion}", "method": method, "draw": 0, "skeleton_id": f"s{place:04d}", "valence": "positive",
                "theme": "Work/Job", "scenario": f"Scenario {place}", "event": "It rained.", "emotion": emotion,
                "gen_text": f"{method} {' '.join(rng.choice(words, 14))} <b>{place}</b>",
                "verdict": {"predicted": read, "match": int(read == emotion)} if rest else None,
                "meta": {"fluent": bool(rest % 3), "perplexity": 4.2},
            }
        )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def many():
    return replies(MANY)


@pytest.fixture(scope="module")
def written(many, tmp_path_factory):
    """A page with two figures, claims and all replies; of one reply the projection of its tokens."""
    half = {"value": 0.5, "n": 9, "n_unjudged": 0, "ci95": [0.3, 0.7], "worst_case": 0.5}
    table = {"overall": half, "by_emotion": dict.fromkeys(EMOTIONS, half)}
    steer = next(row for row in many if row["method"] == "steer")
    report = {
        "accuracy": dict.fromkeys(METHODS, table), "accuracy_fluent": dict.fromkeys(METHODS, table), "warnings": ["Synthetic."],
        "confusion": {m: {e: dict.fromkeys(ANSWERS, 3) for e in EMOTIONS} for m in METHODS},
        "claims": [{"name": "steers", "short": "it steers", "sentence": "it steers (…).", "holds": True, "control": "chance",
                    "tests": [], "missing": [], "figure": "accuracy"}],
    }  # fmt: skip
    tokens = ["steer", " so", " glad"]
    along = xr.DataArray(
        [1.5, -2.0, 0.25], dims="token", coords={"key": ("token", [steer["key"]] * 3), "token_text": ("token", tokens)}
    )
    manifest = {"model": {"id": "tiny"}, "command": "run --out " + "x" * 200}
    out = tmp_path_factory.mktemp("page")
    return room.write(out, report, many, manifest=manifest, projections={"steer": along}).as_uri()


@pytest.fixture
def page(browser, written):
    """The page at 1280 px; no error and no request to anywhere may come up."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened = context.new_page()
    told = []
    opened.on("pageerror", lambda error: told.append(str(error)))
    opened.on(
        "request", lambda request: told.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    opened.goto(written)
    yield opened
    assert told == []
    context.close()


def status(page):
    return page.locator("#found-status").inner_text()


def settled(page, text):
    page.wait_for_function("text => document.getElementById('found-status').textContent.includes(text)", arg=text)


def test_twenty_thousand_replies_are_open_within_seconds(browser, written):
    opened = browser.new_page()
    start = time.monotonic()
    opened.goto(written)
    opened.wait_for_selector("#found .reply")
    assert time.monotonic() - start < SECONDS
    assert status(opened) == f"1 to 25 of {MANY:,}"
    assert opened.locator("#found .reply").count() == 25
    opened.close()


def test_replies_are_filtered_and_searched(page, many):
    page.select_option("#find-method", label="steer")
    page.select_option("#find-asked", label="fear")
    page.select_option("#find-verdict", label="read as anger")
    page.select_option("#find-fluent", "yes")
    mine = [
        r for r in many
        if (r["method"], r["emotion"]) == ("steer", "fear") and r["verdict"]["predicted"] == "anger" and r["meta"]["fluent"]
    ]  # fmt: skip
    settled(page, f" of {len(mine):,} ")
    page.fill("#find-search", "crane GATE")
    found = [r for r in mine if "crane" in r["gen_text"] and "gate" in r["gen_text"]]
    settled(page, f" of {len(found):,} ")
    assert page.locator("#found .who b").all_inner_texts() == ["steer"] * min(25, len(found))
    page.click("text=Show all")
    settled(page, f"1 to 25 of {MANY:,}")
    page.select_option("#find-verdict", "unjudged")
    settled(page, f" of {sum(r['verdict'] is None for r in many):,} ")
    page.fill("#find-search", "no such word")
    settled(page, "No reply is like that")


def test_two_methods_stand_side_by_side_with_their_differences(page, many):
    page.select_option("#find-method", label="steer")
    page.select_option("#find-beside", label="prompt")
    settled(page, f" of {sum(r['method'] == 'steer' for r in many):,} ")
    first = page.locator(".reply.two").first
    left, right = (first.locator("> div").nth(i) for i in (1, 2))
    asked, key = first.locator(".who b").inner_text(), page.locator(".of-prompt .soft").first.inner_text().split()[0]
    texts = {r["method"]: r["gen_text"] for r in many if (r["skeleton_id"], r["emotion"]) == (key, asked)}
    for side, method in ((left, "steer"), (right, "prompt")):
        assert texts[method] in side.inner_text()
        marked = side.locator("mark").all_inner_texts()
        other = texts["prompt" if method == "steer" else "steer"].split()
        assert method in marked
        assert f"<b>{int(key[1:])}</b>" not in marked
        assert len(texts[method].split()) - len(marked) <= len(other)


def test_pages_are_turned_by_keyboard_alone(page):
    page.focus("#next")
    page.keyboard.press("Enter")
    assert status(page).startswith("26 to 50 of")
    page.focus("#page")
    page.keyboard.press("Control+A")
    page.keyboard.type("800")
    page.keyboard.press("Tab")
    assert status(page) == f"19,976 to 20,000 of {MANY:,}"
    assert page.locator("#next").is_disabled()


def test_every_token_says_its_projection_on_hover_and_with_the_arrow_keys(page):
    page.select_option("#find-method", label="steer")
    page.fill("#find-search", "s0000")
    group = page.locator("[aria-label^='Projection of every token']")
    group.wait_for()
    assert group.locator(".token").all_inner_texts() == ["steer", " so", " glad"]
    group.locator(".token").nth(1).hover()
    shown = "e => [e.dataset.value, getComputedStyle(e, '::after').content !== 'none']"
    assert [token.evaluate(shown) for token in group.locator(".token").all()] == [
        ["1.5", False], ["−2", True], ["0.25", False]
    ]  # fmt: skip
    group.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert group.locator("[role=status]").inner_text() == "so −2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [480, 1280, 1920])
def test_nothing_is_wider_than_the_window_and_text_stands_out(browser, written, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(written)
    page.wait_for_selector("#found .reply")
    wide = page.evaluate(
        "() => [...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.unseen, thead, script, .skip, .picture > img') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    dark = scheme == "dark"
    assert (page.evaluate("getComputedStyle(document.querySelector('figure img')).filter") != "none") == dark
    for selector in ("main p", "caption", ".answer", ".verdict", "nav.contents a"):
        assert contrast(page, selector) >= 4.5, selector
    page.close()


def contrast(page, selector):
    """WCAG's contrast ratio of the first element's text to what is behind it."""
    ink, behind = page.evaluate(
        """selector => {
            const one = document.querySelector(selector);
            let under = one;
            while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
            return [getComputedStyle(one).color, getComputedStyle(under).backgroundColor]
                .map(text => text.match(/[0-9.]+/g).slice(0, 3).map(Number));
        }""",
        selector,
    )
    bright = [float(np.dot([0.2126, 0.7152, 0.0722], (np.array(c) / 255) ** 2.2)) + 0.05 for c in (ink, behind)]
    return max(bright) / min(bright)


def test_what_is_operated_has_a_name_and_headings_have_an_order(page):
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('select, input, button, img, nav, [role=group], [role=list], form')].filter(e => "
        "!(e.labels?.length || e.alt || e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim())).length"
    )
    assert unnamed == 0
    levels = page.evaluate(
        "() => [...document.querySelectorAll('main h1, main h2, main h3, main [role=heading]')]"
        ".map(e => Number(e.ariaLevel || e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#numbers"


def test_pictures_are_drawn_and_print_shows_what_is_folded(page, tmp_path):
    assert page.evaluate("() => [...document.images].every(i => i.complete && i.naturalWidth > 500)")
    assert page.locator("figure").count() == 2
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("#find").is_visible()
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")
