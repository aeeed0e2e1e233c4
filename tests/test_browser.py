"""The report in a real browser, wide and narrow, light and dark: nothing missing, nothing cut, nothing too small."""

import os
import shutil

import pytest
from reports import CONFIG, FOUND, FRONT, FULL, MEAN, made

from tfnas.reporting import report
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Names as long as pretrained networks have them.
NAMES = [f"conv5_block{i}_depthwise_expansion_convolution" for i in range(1, 13)]
PICTURES = 7
LEAST_LETTERS = 8  # pixels high, of pictures
LEAST_CONTRAST = 4.5  # of the Web Content Accessibility Guidelines, level AA
LEAST_CONTRAST_OF_LINES = 2


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        # CI installs one: there a skip would hide that nothing was looked at.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox it starts in containers too; the page is this project's own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A report with every section, and with names that are hard to fit in."""
    posterior = Posterior(tuple(LayerGates(name, (4, 4), (0.02, 0.5), 9) for name in NAMES))
    interval = [0.95, 0.9, 0.975]
    measured = {"ensemble of the 5 best": {"accuracy": interval, "nll": interval, "ece": 0.1}}
    paired = {"better": 3, "worse": 2, "difference": -0.01, "p_value": 1.0}
    pruned = {**FULL, "name": "magnitude pruning, fine-tuned", "paired": paired}
    large = {**FULL, "parameters": 72_695_194, "multiply_adds": 11_000_000_000, "file_bytes": 300_000_000}
    work = made(
        tmp_path_factory.mktemp("report"),
        rows=(large, MEAN, pruned, FOUND),
        posterior=posterior,
        front=FRONT,
        predictive=measured,
    )
    file = work.path / "report.html"
    file.write_text(report.html(work, CONFIG), encoding="utf-8")
    return file


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, file):
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.said, page.asked_for = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.asked_for.append(asked.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    yield page
    page.close()


def test_browser_has_nothing_to_complain_of_and_loads_nothing_else(page, file):
    assert page.said == []
    assert [url for url in page.asked_for if not url.startswith("data:")] == [file.as_uri()]


def test_every_picture_is_drawn(page):
    sizes = page.evaluate(
        "Array.from(document.querySelectorAll('figure > svg[role=img]'), svg => [svg.clientWidth, svg.clientHeight])"
    )
    assert len(sizes) == PICTURES and all(min(size) > 100 for size in sizes)
    heat = page.evaluate("Array.from(document.querySelectorAll('svg image'), one => one.getBoundingClientRect().width)")
    assert heat and all(width > 1 for width in heat)


def test_page_is_no_wider_than_the_screen(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wide, tables and code, scrolls in a box of its own.
    cut = page.evaluate(
        """width => Array.from(document.querySelectorAll('body *'))
            .filter(one => !one.parentElement.closest('.wide, pre, svg'))
            .filter(one => one.getBoundingClientRect().right > width + 1 || one.getBoundingClientRect().left < -1)
            .map(one => one.outerHTML.slice(0, 80))""",
        width,
    )
    assert cut == []
    boxes = "Array.from(document.querySelectorAll('.wide, pre'), one => getComputedStyle(one).overflowX)"
    assert set(page.evaluate(boxes)) == {"auto"}


def test_text_of_pictures_is_whole_and_large_enough(page):
    texts = page.evaluate(
        """() => Array.from(document.querySelectorAll('svg text'), text => {
            const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect()
            return [text.textContent, parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a,
                Math.min(inner.left - outer.left, inner.top - outer.top,
                         outer.right - inner.right, outer.bottom - inner.bottom)]
        })"""
    )
    assert {*NAMES, "validation accuracy, %", "epoch of search"} <= {text for text, _, _ in texts}
    # What is turned by 90 degrees has no size along the page's x axis, and the same as its neighbors.
    assert [(text, size) for text, size, _ in texts if 0.1 < size < LEAST_LETTERS] == []
    assert [(text, room) for text, _, room in texts if room < -1] == []


def test_colors_of_text_can_be_told_from_the_page(page):
    colors = page.evaluate(
        """() => {
            const behind = one => {
                const color = getComputedStyle(one).backgroundColor
                return color == 'rgba(0, 0, 0, 0)' ? behind(one.parentElement) : color
            }
            return Array.from(document.querySelectorAll('h1, h2, p, td, th, pre, figcaption, summary'),
                one => [one.tagName, getComputedStyle(one).color, behind(one)])
                .concat(Array.from(document.querySelectorAll('svg text'), one =>
                    ['text', getComputedStyle(one).fill, behind(one.closest('figure'))]))
        }"""
    )
    assert {"P", "TD", "PRE", "FIGCAPTION", "SUMMARY", "text"} <= {tag for tag, _, _ in colors}
    weak = {color for color in map(tuple, colors) if contrast(*color[1:]) < LEAST_CONTRAST}
    assert weak == set()
    drawn = page.evaluate(
        """() => Array.from(document.querySelectorAll('svg path, svg use'), one => getComputedStyle(one).stroke)
            .filter(stroke => stroke.startsWith('rgb('))"""
    )
    assert drawn and {line for line in drawn if contrast(line, colors[0][2]) < LEAST_CONTRAST_OF_LINES} == set()
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (luminance(colors[0][2]) < 0.1) == dark


def luminance(color):
    """Relative luminance of 'rgb(r, g, b)', as WCAG defines it."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
