"""What a notebook shows of an object whose value a cell ends with."""

import re
import xml.etree.ElementTree

import numpy as np

from tfnas.search_space.architecture import Architecture
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior

POSTERIOR = Posterior(
    (
        LayerGates("first<conv>", (3, 1), (0.02, 0.98), 9),
        LayerGates("a$b^c$", (2,), (0.5,), 18),
    )
)
ARCHITECTURE = Architecture({"first<conv>": [True, True, False, True], "gone": [False, False]})


def ranking(held_out=True):
    from tfnas.ranking import ranking as ranking_lib
    from tfnas.ranking.racing import Outcome

    candidates = [Architecture({"conv": np.arange(4) <= i}) for i in range(3)]
    scores = [ranking_lib.Score(0.5, 0.75, 80), ranking_lib.Score(0.25, 0.875, 80), ranking_lib.Score(1.0, 0.5, 20)]
    outcome = Outcome(
        1, order=[1, 0, 2], num_examples=[80, 80, 20], survivors=[1, 0], ties=[0], evaluations=180, unproven=1
    )
    fresh = ranking_lib.Score(0.375, 0.8, 20) if held_out else None
    return ranking_lib.Ranking(
        candidates, scores, "loss", outcome, fresh, lambda architecture: 1000 * architecture.kept
    )


def drawing(page):
    """The texts of a page's only picture."""
    (svg,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    root = xml.etree.ElementTree.fromstring(svg)
    return ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_posterior_has_a_bar_for_each_layer():
    page = POSTERIOR._repr_html_()
    # (0.98 * 3 + 0.02) * 9 + 2 * 0.5 * 18 of 4 * 9 + 2 * 18 weights
    assert (
        "2 gated layers, 72 kernel weights, 45 of them expected to be kept; 2 of 3 groups of channels are decided"
        in page
    )
    texts = drawing(page)
    # The layers' names as they are, whatever stands in them, and 1 - (3 * 0.02 + 0.98) / 4 kept of the first.
    assert {"first<conv>", "a$b^c$", "74 %", "50 %"} <= set(texts)


def test_architecture_draws_what_is_kept():
    page = ARCHITECTURE._repr_html_()
    assert "3 of 6 channels kept in 2 masks; 1 keep none" in page
    assert {"first<conv>", "gone", "3 of 4", "0 of 2"} <= set(drawing(page))


def test_ranking_is_a_table_and_a_histogram():
    page = ranking()._repr_html_()
    assert "3 candidates by loss" in page and "25 % of the evaluations saved" in page
    assert "0.375" in page and "80.0 %" in page and "20 fresh examples" in page
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr.*?</tr>", page)]
    assert [row[0] for row in rows] == ["candidate", "1", "0", "2"]
    assert rows[1] == ["1", "0.250", "87.5", "%", "80", "2,000", "2", "of", "4", "wins"]
    assert rows[2][-1] == "ties" and rows[3][-1] == "-"
    assert page.count('class="chosen"') == 1
    assert "accuracy, %" in drawing(page)
    assert "fresh" not in ranking(held_out=False)._repr_html_()


def test_the_same_page_each_time():
    assert POSTERIOR._repr_html_() == POSTERIOR._repr_html_()


def test_pictures_have_their_colors_on_a_page_that_has_none():
    """The report gives colors names, which no notebook knows: each name has the color itself beside it."""
    html = ARCHITECTURE._repr_html_()
    names = re.findall(r"var\(--\w+[^)]*\)", html)
    assert names and all(re.fullmatch(r"var\(--\w+, #[0-9A-F]{6}\)", name) for name in names)
