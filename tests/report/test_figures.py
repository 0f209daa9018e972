"""Figures: what is drawn is what the rows say, and the files are the same each time."""

import pytest

from afa_jax.report import figures


def row(network, convention, alpha, top1, diverged=0):
    return {"network": network, "convention": convention, "alpha": alpha, "top1": top1, "diverged": diverged}


ROWS = [
    row("a", "released", 0.01, [80.0, 82.0]),
    row("a", "released", 0.1, [81.0, 83.0]),
    row("a", "released", 1.0, [70.0, 71.0]),
    row("a", "released", 10.0, [99.0], diverged=1),
    row("a", "normalised", 1.0, [], diverged=2),
    row("b", "released", 0.01, [50.0, 52.0]),
    row("b", "normalised", 1.0, [60.0, 61.0]),
]


def test_an_alpha_works_where_all_seeds_finish_near_the_best():
    assert figures.working(ROWS, "a", "released", 2.0) == [0.01, 0.1]
    assert figures.working(ROWS, "a", "released", 0.5) == [0.1]
    assert figures.working(ROWS, "a", "normalised", 2.0) == []
    assert figures.working(ROWS, "b", "normalised", 2.0) == [1.0]


def test_a_panel_a_convention_and_a_line_a_network():
    figure = figures.alpha_range(ROWS, 2.0)
    assert [panel.get_title() for panel in figure.axes] == ["released", "normalised"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["a", "b"] and "blew up" in labels[-1]
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "a"]
    assert list(line.get_xdata()) == [0.01, 0.1, 1.0] and list(line.get_ydata()) == [81.0, 82.0, 70.5]
    figures.plt.close(figure)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_is_the_same_file(tmp_path, suffix):
    for name in ("first", "second"):
        figures.save(figures.alpha_range(ROWS, 2.0), tmp_path / name)
    first, second = ((tmp_path / name).with_suffix(suffix).read_bytes() for name in ("first", "second"))
    assert first == second and len(first) > 1000
