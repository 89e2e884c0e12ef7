"""The page in a real browser: no errors, nothing fetched, usable by keyboard, not cut on a narrow screen.

Skipped where there is no playwright or no Chromium: `pip install playwright`, and a browser that it or the system has.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from waterfill import report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
FAINT = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = (color) => parts(color).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const clear = (color) => color === 'transparent' || /, 0\\)$/.test(color);
    const behind = (node) => {
        while (node && clear(getComputedStyle(node).backgroundColor)) node = node.parentElement;
        return node ? getComputedStyle(node).backgroundColor : 'rgb(255, 255, 255)';
    };
    const found = [];
    for (const node of document.querySelectorAll('p, td, th, li, dt, dd, h1, h2, a, svg text')) {
        const style = getComputedStyle(node), svg = node.tagName === 'text';
        const cell = svg && node.classList.contains('cell') ? node.parentElement.querySelector('rect') : null;
        const back = cell ? getComputedStyle(cell).fill : behind(node);
        found.push([ratio(svg ? style.fill : style.color, back), node.textContent.slice(0, 30)]);
    }
    return found.filter(one => one[0] < 4.5);
}"""
"""Texts that hardly stand out from what is behind them, and how much."""
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium without a window."""
    with playwright.sync_playwright() as play:
        own = Path(play.chromium.executable_path)
        found = own if own.exists() else next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None:
            pytest.skip(f"needs Chromium: none of {', '.join(_NAMES)} is there, nor playwright's own")
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium refuses root
        launched = play.chromium.launch(executable_path=str(found), args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page_file(place, tmp_path_factory) -> Path:
    table = report.compare(place.model, recipes=[], rounding=True, held_out=[(place.inputs, place.labels)])
    described = report.describe(place.plain, against=place.model, comparison=table)
    return described.save(tmp_path_factory.mktemp("page") / "net.html")[0]


@pytest.fixture
def opened(browser, page_file, request) -> Iterator:
    """The page at a width and in colors; whatever it says or fetches fails the test."""
    width, colors = getattr(request, "param", (1280, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colors)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(f"{error}"))
    page.on("request", lambda sent: said.append(sent.url) if not sent.url.startswith("file:") else None)
    page.goto(page_file.as_uri())
    yield page
    context.close()
    assert not said


def column(page, number: int) -> list[str]:
    """The texts of a column of the table of layers, top to bottom, as far as they are shown."""
    return page.eval_on_selector_all(
        f"#layers tbody tr:not([hidden]) > :nth-child({number})", "cells => cells.map(cell => cell.textContent)"
    )


@pytest.mark.parametrize("opened", [(w, c) for w in (400, 1280) for c in ("light", "dark")], indirect=True)
def test_nothing_is_cut_at_any_width(opened) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = opened.evaluate(
        """() => [...document.querySelectorAll('svg.chart text')].filter(text => {
            const a = text.getBoundingClientRect(), b = text.ownerSVGElement.getBoundingClientRect();
            return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1);
        }).map(text => text.textContent)"""
    )
    assert outside == []


@pytest.mark.parametrize("opened", [(1280, "light"), (1280, "dark")], indirect=True)
def test_text_stands_out_from_what_is_behind_it(opened) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3) for prose, tables, ticks and cells of the area picture."""
    assert opened.evaluate(FAINT) == []


def test_a_column_is_sorted_by_its_numbers_from_the_keyboard(opened) -> None:
    heads = opened.eval_on_selector_all("#layers thead button", "all => all.map(one => one.textContent)")
    number = heads.index("bytes") + 1
    button = opened.locator("#layers thead button").nth(number - 1)
    button.focus()
    opened.keyboard.press("Enter")
    sizes = [int(text.replace(",", "")) for text in column(opened, number)]
    assert sizes == sorted(sizes, reverse=True) != sizes[::-1]
    assert opened.locator("#layers thead th").nth(number - 1).get_attribute("aria-sort") == "descending"
    opened.keyboard.press("Enter")
    assert [int(text.replace(",", "")) for text in column(opened, number)] == sizes[::-1]
    assert opened.locator("#layers thead [aria-sort]").count() == 1


def test_a_filter_shows_what_has_the_text_and_says_how_many(opened) -> None:
    every = len(column(opened, 1))
    opened.get_by_label("Show only").fill("CONV1")
    assert column(opened, 1) == ["conv1.weight"]
    assert opened.get_by_role("status").inner_text() == f"1 of {every} rows"


def test_one_weight_is_shown_at_a_time(opened) -> None:
    assert opened.locator("figure.weight:visible").count() == 1
    opened.locator("#weight").select_option(label="hidden.weight")
    assert opened.locator("figure.weight:visible figcaption").inner_text() == "hidden.weight"


def test_colors_can_be_switched_and_stay(opened) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    before = opened.evaluate(paper)
    opened.get_by_role("button", name="Switch to dark colors").click()
    assert opened.evaluate(paper) != before
    opened.reload()
    assert opened.evaluate(paper) != before and opened.get_by_role("button", name="Switch to light colors").count() == 1


def test_an_area_leads_to_its_row(opened) -> None:
    opened.locator("svg.wide a").first.click()
    target = opened.evaluate("document.querySelector(location.hash).querySelector('th').textContent")
    assert opened.locator("svg.wide a title").first.text_content().startswith(f"{target}: ")


def test_without_scripts_everything_is_there(browser, page_file) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("figure.weight:visible").count() > 1
    assert page.locator("#filter:visible").count() == 0 and page.locator("#layers tbody tr:visible").count() > 5
    context.close()


def test_a_screen_reader_finds_its_way(opened) -> None:
    assert opened.locator("main").count() == 1 and opened.locator("h1").count() == 1
    unnamed = opened.evaluate(
        """() => [...document.querySelectorAll('section, nav, .scroll, input, select, button')].filter(node =>
            !node.getAttribute('aria-label') && !node.getAttribute('aria-labelledby') && !node.labels?.length
            && !node.textContent.trim()).map(node => node.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "Skip to the content"
