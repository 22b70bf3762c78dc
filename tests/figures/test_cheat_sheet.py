"""The cheat sheet is one page, holds the symbols, and nothing on it lies over anything else."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures import style
from figures.lessons import cheat_sheet
from markov.objectives import CORNERS, Objective
from markov.theory import time_to_forget


@pytest.fixture(scope="module")
def page() -> Figure:
    figure = cheat_sheet.sheet()
    with style.look():
        FigureCanvasAgg(figure).draw()
    return figure


def boxes(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Every text and panel of the page itself, with left, bottom, right and top in pixels."""
    found: list[tuple[str, np.ndarray]] = [
        (one.get_text(), np.array(one.get_window_extent().extents)) for one in figure.texts
    ]
    for one in figure.axes:
        box = one.get_tightbbox()
        assert box is not None
        found.append((one.get_title(), np.array(box.extents)))
    return found


def overlap(one: np.ndarray, other: np.ndarray, slack: float = 1.0) -> bool:
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return bool((inner > slack).all())


def test_it_is_one_page_of_a4_and_equal_pages_are_equal_files(tmp_path: Path):
    pdf, png = cheat_sheet.write(tmp_path / "a")
    written = pdf.read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", written)) == 1
    box = re.search(rb"/MediaBox\s*\[([^\]]*)\]", written)
    assert box and np.allclose([float(x) for x in box[1].split()], [0, 0, 595.28, 841.89], atol=0.5)
    again = cheat_sheet.write(tmp_path / "b")
    assert [path.read_bytes() for path in again] == [written, png.read_bytes()]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [pdf.name, png.name]


def test_nothing_leaves_the_page_or_lies_over_anything_else(page: Figure):
    width, height = page.get_size_inches() * page.dpi
    found = boxes(page)
    assert len(found) > 50
    for name, (left, bottom, right, top) in found:
        assert left > 0.02 * width and right < 0.98 * width, name
        assert bottom > 0.01 * height and top < 0.99 * height, name
    over = [(a, b) for (a, x), (b, y) in combinations(found, 2) if overlap(x, y)]
    assert over == []
    assert overlap(np.array([0, 0, 9, 9]), np.array([5, 5, 12, 12]))
    assert not overlap(np.array([0, 0, 9, 9]), np.array([9, 0, 12, 9]))


def test_no_legend_lies_over_a_curve(page: Figure):
    for axes in page.axes:
        legend = axes.get_legend()
        assert legend is not None
        box = legend.get_window_extent().extents
        for line in axes.lines:
            points = axes.transData.transform(np.column_stack(line.get_data()))
            inside = ((points > box[:2]) & (points < box[2:])).all(axis=1)
            assert not inside.any(), (axes.get_title(), line.get_label())


def test_it_holds_the_square_the_symbols_and_four_pictures(page: Figure):
    told = [one.get_text() for one in page.findobj(Text)]
    assert all(style.LABELS[corner] in told for corner in CORNERS)
    fields = set(Objective._fields) | {"logp", "length", "ref", "weight", "logit", "retain_weight"}
    assert fields <= set(told)
    assert {"log π", "|y|", "β", "γ", "λ", "σ", "θ", "z", "w", "D"} <= set(told)
    assert len(page.axes) == 4


def test_its_words_on_the_start_are_what_the_law_gives():
    for corner, (reference, normalize) in CORNERS.items():
        one = Objective(0.7, 0.0, reference, normalize)
        weight = cheat_sheet._weight(one, [5.0, 20.0], [-5.0, -20.0])
        length = np.array([5.0, 20.0])
        z = 0.0 if reference else -0.7 * length / length**normalize
        assert np.allclose(weight, 2 / (1 + np.exp(-z)) / length**normalize)
        told = " ".join(cheat_sheet.SQUARE[corner])
        assert ("/|y|" in told.replace("log π/|y|", "")) == bool(normalize)
        assert ("ref" in told) == bool(reference)


def test_under_npo_short_answers_start_slowly_and_under_simnpo_all_lengths_fall_alike(page: Figure):
    shown = {str(line.get_label()): line for line in page.axes[3].lines}
    short, long = (
        np.asarray(shown[f"NPO, {count} tokens"].get_ydata()) for count in cheat_sheet.LENGTHS
    )
    assert short[5] > long[5]
    times = time_to_forget(Objective(4.0, 0.0, 0.0, 1.0), np.array([4.0, 80.0]), 0.5)
    assert np.allclose(times[0], times[1]) and "SimNPO, both" in shown
