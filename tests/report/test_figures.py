"""Figures: what is drawn is what the runs say, and the files are the same each time."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from afa_jax.errors import UserError
from afa_jax.report import figures
from afa_jax.report.analyses import ActivationMaps, Found
from afa_jax.report.figures import analysis, maps, settings, training, verification
from afa_jax.report.figures.style import looks
from tests.report import made


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


def lines(panel):
    """What is drawn in a panel, by label: x and y."""
    return {
        line.get_label(): (list(line.get_xdata()), pytest.approx(list(line.get_ydata())))
        for line in panel.lines
        if not line.get_label().startswith("_")
    }


def bars(panel):
    return [container for container in panel.containers if hasattr(container, "patches")]


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
    assert lines(figure.axes[0])["a"] == ([0.01, 0.1, 1.0], [81.0, 82.0, 70.5])


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_is_the_same_file(tmp_path, suffix):
    runs = made.labelled(made.run("l2"), made.run("afa"))
    for name in ("first", "second"):
        figures.save(training.curves(runs), tmp_path / name, "Losses")
    first, second = ((tmp_path / name).with_suffix(suffix).read_bytes() for name in ("first", "second"))
    assert first == second and len(first) > 1000


def test_title_and_alternative_text_are_in_the_files(tmp_path):
    figure = training.curves([made.run("l2")])
    figures.save(figure, tmp_path / "curves", "Losses")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.text["Title"] == "Losses" and image.text["Description"] == figure.get_label()
    text = "".join(ElementTree.parse(tmp_path / "curves.svg").getroot().itertext())
    assert "Losses" in text and figure.get_label() in text


def test_every_label_has_its_own_look():
    found = looks(map(str, range(28)))
    assert len(set(found.values())) == 28 and len({(look.colour, look.line) for look in found.values()}) == 28


def two_seeds():
    """Cross-entropy 1 and 3 at step 1, 0.5 and 0.7 at step 2 of `ast`, then 0.4 and 0.2 in `act`."""
    return [
        made.run("afa", seed, records=[
            made.record("ast", 1, "test", first, 0.5),
            made.record("ast", 2, "test", second, 0.6),
            made.record("act", 1, "test", third, 0.7),
        ])
        for seed, (first, second, third) in enumerate([(1.0, 0.5, 0.4), (3.0, 0.7, 0.2)])
    ]  # fmt: skip


def test_curves_are_means_with_bands_over_both_stages():
    figure = training.curves(made.labelled(*two_seeds()))
    assert [(p.get_title(), p.get_ylabel()) for p in figure.axes] == [
        ("test", metric)
        for metric in ("cross-entropy", "total loss")  # in training nothing was recorded
    ]
    test, total = figure.axes
    assert lines(test) == {"afa": ([1, 2, 3], [2.0, 0.6, 0.3])}
    assert lines(total) == {"afa": ([1, 2, 3], [4.0, 1.2, 0.6])}
    # The sample deviation of 1 and 3 is √2.
    edges = test.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for x, y in edges if x == 1} == {round(2 - math.sqrt(2), 6), round(2 + math.sqrt(2), 6)}
    boundary = [line for line in test.lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in boundary] == [[2, 2]]
    assert "test cross-entropy: afa 0.300 ± 0.141" in figure.get_label()


def test_a_run_without_the_total_loss_has_no_line_there():
    bare = {"stage": "l2", "step": 1, "split": "test", "cross_entropy": 0.5, "top1": 0.9}
    figure = training.curves(made.labelled(made.run("l2", records=[bare]), *two_seeds()))
    assert set(lines(figure.axes[0])) == {"l2", "afa"} and set(lines(figure.axes[1])) == {"afa"}
    _, total = training.curves(made.labelled(made.run("l2", records=[bare]))).axes
    assert [text.get_text() for text in total.texts] == ["not measured"]


def test_a_stage_that_is_thrown_away_is_not_drawn():
    one = made.run(
        "delta", records=[made.record("l2_fe", 1, "test", 9.0, 0.1), made.record("delta", 1, "test", 1.0, 0.5)]
    )
    one.summary["stages"].insert(0, {"name": "l2_fe", "steps": 5, "kept": False})
    assert lines(training.curves([one]).axes[0]) == {"delta": ([1], [1.0])}


@pytest.mark.parametrize("draw", [training.curves, training.schedules, settings.attentive_modules, settings.alpha_beta])
@pytest.mark.parametrize("other", [{"dataset": "letters"}, {"network": "resnet50"}, {"per_class": 6}])
def test_data_sets_and_networks_are_never_mixed(draw, other):
    with pytest.raises(UserError, match="One figure shows runs of one data set and network, not of 2"):
        draw(made.labelled(made.run(), made.run(**other)))


def test_learning_curves_by_schedule():
    runs = made.labelled(made.run("delta", top1=0.8), made.run("delta", top1=0.9, schedule="exponential"))
    figure = training.schedules(runs)
    assert lines(figure.axes[0]) == {"delta, step": ([1, 2], [70, 75]), "delta, exponential": ([1, 2], [80, 85])}
    styles = [line.get_linestyle() for line in figure.axes[0].lines]
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert styles == ["-", "--"] and len(colours) == 1
    assert "delta exponential 85.0 %" in figure.get_label()
    with pytest.raises(UserError, match="all runs have the schedule step"):
        training.schedules(runs[:1])


def test_top1_against_images_a_class():
    runs = made.labelled(
        *(made.run("afa", seed, top1, per_class=n) for n, values in {10: (0.6, 0.8), 30: (0.9, 0.9)}.items()
          for seed, top1 in enumerate(values)),
        made.run("l2", 0, 0.5, per_class=10),
        made.run("l2", 0, 0.7, per_class=0),
    )  # fmt: skip
    figure = settings.images_a_class(runs)
    panel = figure.axes[0]
    found = {c.get_label(): c for c in panel.containers}
    assert list(found["afa"][0].get_xdata()) == [10, 30] and list(found["afa"][0].get_ydata()) == pytest.approx(
        [70, 90]
    )
    assert list(found["l2"][0].get_ydata()) == [50]  # the whole split has no number of images a class
    segments = found["afa"][2][0].get_segments()
    assert segments[0][:, 1] == pytest.approx([70 - 10 * math.sqrt(2), 70 + 10 * math.sqrt(2)])
    assert "afa: 10: 70.0 ± 14.1 %, 30: 90.0 ± 0.0 %." in figure.get_label()
    with pytest.raises(UserError, match=r"two or more data\.per_class"):
        settings.images_a_class(runs[:2])


def test_the_heat_map_has_a_cell_a_pair_and_frames_the_best():
    runs = made.labelled(
        made.run("delta", 0, 0.6, alpha=0.01, beta=0.1), made.run("delta", 1, 0.8, alpha=0.01, beta=0.1),
        made.run("delta", 0, 0.9, alpha=0.1, beta=0.1), made.run("delta", 0, 0.5, alpha=0.1, beta=1.0),
        made.run("l2", 0, 0.4),
    )  # fmt: skip
    figure = settings.alpha_beta(runs)
    panel = figure.axes[0]
    grid = np.ma.filled(panel.images[0].get_array(), np.nan)
    np.testing.assert_allclose(grid, [[70, 90], [np.nan, 50]])
    assert [t.get_text() for t in panel.get_xticklabels()] == ["0.01", "0.1"]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["0.1", "1"]
    assert panel.patches[0].get_xy() == (0.5, -0.5) and panel.get_title() == "delta"
    assert "best alpha 0.1 and beta 0.1 with 90.0 %" in figure.get_label()
    with pytest.raises(UserError, match="two or more alphas or betas"):
        settings.alpha_beta(runs[-1:])


def test_settings_that_tell_runs_apart_go_by_their_short_names():
    runs = made.labelled(made.run("delta", alpha=0.1), made.run("delta", alpha=0.2), made.run("afa", alpha=0.1),
                         made.run("afa", alpha=0.2, taps=8))  # fmt: skip
    assert [run.label for run in runs] == [
        *("delta, alpha=0.1", "delta, alpha=0.2"),
        *("afa, taps=4, ast.alpha=0.1, act.alpha=0.1", "afa, taps=8, ast.alpha=0.2, act.alpha=0.2"),
    ]


def test_a_recipe_with_an_alpha_a_stage_has_both():
    one = made.run("afa", alpha=0.1)
    assert settings.weights(one, "alpha") == (0.1,)
    one.experiment["methods"]["act"]["alpha"] = 0.5
    assert settings.weights(one, "alpha") == (0.1, 0.5)


def test_time_and_top1_by_attentive_modules():
    runs = made.labelled(made.run("afa", 0, 0.9, taps=4, speed=100.0), made.run("afa", 0, 0.8, taps=8, speed=50.0),
                         made.run("l2", 0, 0.5))  # fmt: skip
    runs[1].experiment["tap_layers"] = "a, b ,c"  # named ones count, not `taps`
    accuracy, time = settings.attentive_modules(runs).axes
    assert lines(accuracy) == {} and [c.get_label() for c in accuracy.containers] == ["afa"]
    assert list(accuracy.containers[0][0].get_xdata()) == [3, 4]
    assert list(accuracy.containers[0][0].get_ydata()) == pytest.approx([80, 90])
    assert list(time.containers[0][0].get_ydata()) == pytest.approx([1.0, 0.5])  # 50 images
    with pytest.raises(UserError, match="two or more taps"):
        settings.attentive_modules(runs[2:])


def test_parameters_of_network_and_attention():
    runs = [made.run("afa", seed, attention={"ast": 400_000, "act": 61_984}) for seed in (0, 1)]
    figure = settings.parameters([*runs, made.run("l2")])
    (found,) = bars(figure.axes[0])
    assert [bar.get_width() for bar in found] == [11_000_000, 400_000, 61_984]
    assert "resnet18 11.00M, resnet18, afa: ast 0.40M, resnet18, afa: act 61,984" in figure.get_label()
    with pytest.raises(UserError, match="no run has attentive modules"):
        settings.parameters([made.run("l2")])


def test_filter_distances_are_sorted_means_over_seeds():
    one, other = np.linspace(0, 1, 101), np.linspace(0, 3, 101)
    runs = made.labelled(made.run("delta", 0), made.run("delta", 1), made.run("l2", 0))
    found = [Found(run, {"layer1": q, "layer2": 2 * q}) for run, q in zip(runs, (one, other, one), strict=True)]
    figure = analysis.filter_distances(found)
    assert [panel.get_title() for panel in figure.axes] == ["layer1", "layer2"]
    x, y = figure.axes[1].lines[0].get_data()
    np.testing.assert_allclose(x, np.arange(101))
    np.testing.assert_allclose(y, 2 * (one + other)[::-1] / 2)
    assert "layer1, delta: median 1, largest 2" in figure.get_label()


def test_the_gap_by_recipe():
    runs = made.labelled(made.run("l2", 0), made.run("l2", 1), made.run("afa", 0))
    losses = [(0.1, 0.5), (0.3, 0.5), (0.2, 0.4)]
    found = [Found(run, {"train": a, "test": b, "gap": b - a}) for run, (a, b) in zip(runs, losses, strict=True)]
    figure = analysis.generalisation_gap(found)
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in bars(figure.axes[0])}
    assert heights["training loss"] == pytest.approx([0.2, 0.2]) and heights["gap"] == pytest.approx([0.3, 0.2])
    assert "gap, l2: 0.300 ± 0.141" in figure.get_label()


def test_parts_and_detectors_stand_beside_the_source():
    runs = made.labelled(made.run("l2"), made.run("delta"))
    parts = [
        Found(run, {"target": {"sum": s}, "source": {"sum": 5.0}}) for run, s in zip(runs, (6.0, 7.0), strict=True)
    ]
    (found,) = bars(analysis.parts(parts).axes[0])
    assert [bar.get_height() for bar in found] == [5, 6, 7]
    counts = [
        Found(run, {"target": {"object": n}, "source": {"object": 3, "color": 1}})
        for run, n in zip(runs, (4, 9), strict=True)
    ]
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in bars(analysis.detectors(counts).axes[0])}
    assert heights == {"source network": [3, 1], "l2": [4, 0], "delta": [9, 0]}


@pytest.mark.parametrize("draw", [analysis.filter_distances, analysis.generalisation_gap, analysis.parts,
                                  analysis.detectors, maps.activation_maps])  # fmt: skip
def test_an_analysis_that_is_not_there_is_told(draw):
    with pytest.raises(UserError, match=r"no run has its file in analysis/; make it with tools/analyse\.py"):
        draw([])


def some_maps(seed=0, photos=5, channels=(3, 17, 42), layer="layer4"):
    random = np.random.default_rng(seed)
    shape = (photos, len(channels), 4, 4)
    pictures = np.full((photos, 16, 16, 3), 100, np.uint8)
    names = tuple(f"{i}.png" for i in range(photos))
    return ActivationMaps(pictures, names, layer, channels, np.ones(shape, np.float32), random.uniform(0, 1, shape))


def test_activation_maps_side_by_side():
    runs = made.labelled(made.run("l2"), made.run("delta"))
    figure = maps.activation_maps([Found(run, some_maps(i)) for i, run in enumerate(runs)])
    shown = [panel for panel in figure.axes if panel.images]
    # Of five photos with three channels four have room in a row; each has itself, the source, and two runs.
    assert len(shown) == 5 * (1 + 3 * 3)
    titles = [panel.get_title() for panel in shown if panel.get_title()]
    assert titles.count("channel 17") == 5 and "4.png" in titles
    texts = {text.get_text() for panel in shown for text in panel.texts}
    assert texts == {"source network", "l2", "delta"}
    assert "source network 100 %" in figure.get_label()


def test_only_maps_of_the_same_photos_layer_and_channels_stand_together():
    runs = made.labelled(*(made.run(r, s) for r in ("l2", "delta") for s in (0, 1)), made.run("l2", network="other"))
    kinds = [some_maps(0), some_maps(1), some_maps(2), some_maps(3, layer="layer3"), some_maps(0)]
    groups = maps.alike([Found(run, content) for run, content in zip(runs, kinds, strict=True)])
    # A second seed is not shown beside the first, nor by itself.
    assert [[(one.run.recipe, one.run.seed) for one in group] for group in groups] == [
        [("l2", 0), ("delta", 0)],
        [("l2", 0)],
    ]
    with pytest.raises(UserError, match="only for the same photos"):
        maps.activation_maps([Found(runs[0], kinds[0]), Found(runs[3], kinds[3])])


def test_the_map_lies_on_the_grey_photo():
    low, high = (
        maps._overlaid(np.full((2, 2, 3), 255, np.uint8), np.array([[0.0, 1.0]])),
        (0.267004, 0.004874, 0.329415),
    )
    np.testing.assert_allclose(low[0, 0], 0.6 * np.array(high) + 0.4, atol=1e-6)


def verified(recipe, seed, curve, impostors=1000, **settings):
    one = made.run(recipe, seed, **settings)
    one.summary["verification"] = {
        "pairs": {"genuine": 50, "impostor": impostors},
        "tar_at_far": [{"far": far, "tar": tar} for far, tar in curve if far in (0.01, 0.1)],
        "roc": [list(point) for point in curve],
    }
    return one


def test_true_against_false_accepts():
    """Mean over seeds at the rates that all have; dotted where fewer than ten of 1,000 pairs are accepted."""
    runs = made.labelled(
        verified("l2", 0, [(0.001, 0.1), (0.01, 0.5), (0.1, 0.7), (1.0, 1.0)]),
        verified("l2", 1, [(0.01, 0.7), (0.1, 0.8), (1.0, 1.0)], impostors=900),
        verified("afa", 0, [(0.001, 0.4), (0.01, 0.8), (0.1, 0.9), (1.0, 1.0)]),
        made.run("delta"),
    )
    figure = verification.roc(runs)
    panel = figure.axes[0]
    assert panel.get_xscale() == "log" and set(lines(panel)) == {"l2", "afa"}
    assert lines(panel)["afa"] == ([0.01, 0.1, 1], [80, 90, 100])
    assert lines(panel)["l2"] == ([0.1, 1], [75, 100])  # 9 of the second seed's 900 pairs are too few
    dotted = {line.get_color(): line.get_xdata().tolist() for line in panel.lines if line.get_linestyle() == ":"}
    assert list(dotted.values()) == [[0.01, 0.1], [0.001, 0.01]]
    # The sample deviation of 50 and 70 is 10·√2.
    edges = panel.collections[0].get_paths()[0].vertices
    expected = {round(60 - 10 * math.sqrt(2), 6), round(60 + 10 * math.sqrt(2), 6)}
    assert {round(y, 6) for x, y in edges if x == 0.01} == expected
    assert [line.get_xdata()[0] for line in panel.lines if len(set(line.get_xdata())) == 1] == [0.01, 0.1]
    figure.canvas.draw()
    assert {"0.01", "0.1", "1"} <= {tick.get_text() for tick in panel.get_xticklabels()}
    label = figure.get_label()
    assert "l2: 60.0 ± 14.1 % at 0.01, 75.0 ± 7.1 % at 0.1." in label and "afa: 80.0 % at 0.01, 90.0 %" in label


def test_no_curve_of_accepts_without_verification():
    with pytest.raises(UserError, match="no run has verified identities"):
        verification.roc([made.run("l2")])
    curve = [(0.1, 0.5), (1.0, 1.0)]
    with pytest.raises(UserError, match="One figure shows runs of one data set and network"):
        verification.roc(made.labelled(verified("l2", 0, curve), verified("l2", 0, curve, network="resnet50")))
    drawn = verification.roc([verified("l2", 0, curve, impostors=4)])  # too few for any rate
    assert lines(drawn.axes[0]) == {"l2": ([], [])} and drawn.axes[0].lines[1].get_xdata().tolist() == [0.1, 1.0]


def test_every_kind_has_its_own_name():
    names = [kind.name for kind in figures.KINDS]
    assert len(set(names)) == len(names) and all(kind.title and kind.caption for kind in figures.KINDS)
