"""Tables from runs."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import stdtr

from afa_jax.config import default
from afa_jax.report import tables
from afa_jax.report.published import PUBLISHED, published
from afa_jax.report.runs import _ADDED, ORDER, Run, told_apart
from afa_jax.transfer.recipes import RECIPES

DOGS = "stanford_dogs120"


def run(recipe, top1=None, seed=0, **changes):
    """A run with settings by dotted name; without `top1` one that failed."""
    config = default()
    standard = {"data.name": DOGS, "network": "resnet101", "source.weights": "imagenet1k_v1", "recipe": recipe}
    config.update_from_flattened_dict({**standard, **changes})
    methods = [recipe] if recipe in config.methods else ["ast", "act"]
    known = {"experiment": config.to_dict(), "recipe": recipe, "seed": seed, "stages": [{"name": m} for m in methods]}
    return Run(Path(recipe), known if top1 is None else {**known, "last_top1": top1 / 100})


def several(recipe, *values, **changes):
    return [run(recipe, value, seed, **changes) for seed, value in enumerate(values)]


def test_a_recipe_is_a_row_and_a_data_set_a_column():
    made = [*several("l2", 50, 70), *several("afa", 90, **{"data.name": "food101"}), *several("afa", 80)]
    (table,) = tables.compare(made)
    assert table.columns == (DOGS, "food101") and [row.label for row in table.rows] == ["l2", "afa"]
    l2, afa = table.rows
    assert l2.cells[0].values == pytest.approx((50, 70)) and l2.cells[1] is None
    assert [cell.values for cell in afa.cells] == [pytest.approx((80,)), pytest.approx((90,))]
    assert l2.cells[0].text == "60.0 ± 14.1 (n = 2)" and afa.cells[0].text == "80.0 (n = 1)"


def test_every_recipe_has_its_place_in_tables():
    assert set(ORDER) == set(RECIPES) and len(ORDER) == len(RECIPES)


def test_networks_have_tables_of_their_own():
    assert [t.network for t in tables.compare([*several("l2", 1), *several("l2", 2, network="resnet50")])] == [
        "resnet101",
        "resnet50",
    ]


def test_runs_that_failed_are_told_and_not_averaged():
    (table,) = tables.compare([*several("l2", 50), run("l2", seed=1), run("act"), run("act", seed=1)])
    assert [row.cells[0].text for row in table.rows] == ["50.0, 1 failed", "–, 2 failed"]
    shown = "\n".join(render(table) for render in (tables.markdown, tables.latex, tables.text))
    assert shown.count("2 failed") == 3


def test_settings_that_differ_among_siblings_are_told():
    made = told_apart([*several("afa", 1), *several("afa", 2, taps=8), *several("l2", 3, learning_rate=0.5)])
    assert [r.label for r in made] == ["afa, taps=4", "afa, taps=8", "l2"]
    # Settings of methods that a recipe does not use, and how a run was watched, tell nothing apart.
    quiet = [*several("afa", 1, **{"methods.dfa.alpha": 3.0}), *several("afa", 1, log_every=7)]
    assert [r.label for r in told_apart(quiet)] == ["afa", "afa"]


def welch(a, b):
    """Two-sided p of Welch's t-test, written out."""
    (m, n), va, vb = (len(a), len(b)), np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    t = (np.mean(a) - np.mean(b)) / np.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / (m - 1) + vb**2 / (n - 1))
    return 2 * stdtr(freedom, -abs(t))


def test_two_means_differ_as_welch_says():
    random = np.random.default_rng(0)
    answers = set()
    for shift in np.linspace(0, 3, 25):
        a, b = random.normal(size=4).tolist(), (shift + 2 * random.normal(size=6)).tolist()
        answers.add(tables.differ(a, b))
        assert tables.differ(a, b) == (welch(a, b) < 0.05)
    assert answers == {True, False}
    assert not tables.differ([1.0], [5.0, 5.1]) and not tables.differ([1.0, 1.0], [5.0, 5.0])


def test_a_figure_of_the_papers_is_not_that_of_every_point_of_a_grid():
    made = [
        *several("delta", 80, **{"methods.delta.alpha": 0.1}),
        *several("delta", 81, **{"methods.delta.alpha": 0.2}),
    ]
    (table,) = tables.compare(told_apart(made))
    assert [row.cells[0].published for row in table.rows] == [None, None]
    (table,) = tables.compare(told_apart([*several("afa", 80, taps=4), *several("afa", 81, taps=8)]))
    assert [row.cells[0].published for row in table.rows] == [(90.1, 0.0), (89.9, 0.1)]


def test_what_cross_validation_chose_does_not_tell_runs_apart():
    chosen = {"cross_validated": "alpha"}
    made = [
        run("ast", 80, 0, **chosen, **{"methods.ast.alpha": 0.1}),
        run("ast", 82, 1, **chosen, **{"methods.ast.alpha": 0.2}),
    ]
    assert [r.label for r in told_apart(made)] == ["ast", "ast"]
    beta = [run("ast", 80, 0, **chosen), run("ast", 82, 1, **chosen, **{"methods.ast.beta": 0.5})]
    assert [r.label for r in told_apart(beta)] == ["ast, beta=0.01", "ast, beta=0.5"]


def test_unequal_numbers_of_seeds_are_told_in_each_cell_and_failures_win_no_prize():
    (table,) = tables.compare([*several("l2", 80.0, 80.3, 80.1), *several("afa", 90.0, 90.2), run("afa", seed=2)])
    assert [row.cells[0].text for row in table.rows] == ["80.1 ± 0.2 (n = 3)", "90.1 ± 0.1 (n = 2), 1 failed"]
    assert not any(row.cells[0].best for row in table.rows)


def best(*groups):
    (table,) = tables.compare([r for recipe, values in groups for r in several(recipe, *values)])
    return [row.cells[0].best for row in table.rows], table


def test_the_best_is_bold_only_where_it_is_above_the_noise_of_each_other():
    far, near = ("afa", (90.0, 90.2, 90.1)), ("delta", (90.0, 90.4, 89.9))
    low = ("l2", (80.0, 80.3, 80.1))
    assert best(low, far)[0] == [False, True]
    assert best(low, far, near)[0] == [False, False, False]
    assert best(far)[0] == [False]
    assert best(("l2", (80.0,)), ("afa", (90.0,)))[0] == [False, False]
    assert "Bold" in best(low, far)[1].notes[1] and "No best one" in best(far, near)[1].notes[1]


def test_markdown_latex_csv_and_text_say_the_same():
    (table,) = tables.compare([*several("l2_sp", 80, 80.2, 80.1), *several("afa", 90, 90.2, 90.1)])
    assert tables.markdown(table).splitlines()[:4] == [
        f"| recipe | {DOGS} | published |",
        "| --- | --- | --- |",
        "| l2_sp | 80.1 ± 0.1 | 88.3 ± 0.2 |",
        "| afa | **90.1 ± 0.1** | 90.1 ± 0.0 |",
    ]
    latex = tables.latex(table)
    assert r"l2\_sp & 80.1 $\pm$ 0.1 & 88.3 $\pm$ 0.2 \\" in latex
    assert r"afa & \textbf{90.1 $\pm$ 0.1} & 90.1 $\pm$ 0.0 \\" in latex and r"Top-1 (\%) of resnet101" in latex
    lines = list(csv.DictReader(io.StringIO(tables.csv(table))))
    assert [float(line["mean"]) for line in lines] == pytest.approx([80.1, 90.1])
    assert lines[1]["best"] == "1" and lines[1]["published mean"] == "90.1" and lines[0]["runs"] == "3"
    assert [float(v) for v in lines[0]["values"].split()] == pytest.approx([80, 80.2, 80.1])
    assert "90.1 ± 0.1 *" in tables.text(table)


def test_a_column_without_published_figures_has_no_second_one():
    (table,) = tables.compare([*several("l2", 80, 81, **{"data.name": "digits"})])
    assert tables.markdown(table).splitlines()[0] == "| recipe | digits |"


@pytest.mark.parametrize(
    ("recipe", "changes", "figure"),
    [
        ("afa", {}, (90.1, 0.0)),
        ("afa", {"taps": 8}, (89.9, 0.1)),
        ("delta", {"taps": 8}, (88.7, 0.1)),
        ("afa", {"network": "mobilenet_v2"}, (82.1, 0.1)),
        ("afa", {"network": "inception_v3_no_aux"}, (91.6, 0.1)),
        ("delta", {"data.augmentation": "improved"}, (91.2, 0.2)),
        ("l2_sp_att", {"data.augmentation": "improved"}, (89.97, 0.2)),
        ("afa", {"data.augmentation": "improved"}, None),
        ("afa", {"data.name": "mit_indoors67", "network": "resnet50"}, (85.9, 0.1)),
        ("afa", {"network": "resnet50"}, None),
        ("afa_fixed_attention", {"data.name": "caltech256", "data.per_class": 60}, (88.7, 0.1)),
        ("afa", {"data.name": "caltech256", "data.per_class": 20}, None),
        ("delta", {"data.name": "food101", "network": "inception_v3"}, (80.8, 0.2)),
        ("bss", {}, None),
        ("afa", {"steps": 4500}, None),
        ("delta", {"schedule": "exponential"}, None),
        ("afa", {"source.weights": "train"}, None),
    ],
)
def test_published_figures(recipe, changes, figure):
    one = run(recipe, 1, **changes)
    assert published(one.experiment, one.dataset, recipe) == figure


def test_published_figures_are_all_there():
    """AFA Tables 3 (105 cells), 4 and 5 (15 + 20), 7 to 10 (20), 11 (2), 12 (42); DELTA 1 (27 more) and 2 (44)."""
    improved = [key for key in PUBLISHED if "improved" in key[0]]
    assert len(improved) == 24 + 20 and len(PUBLISHED) == 105 + 35 + 20 + 2 + 42 + 27 + 44


def test_a_figure_of_table_12_is_of_80_people():
    """Its deviation is not published."""
    faces = {"data.name": "polyu_nirfd", "network": "mobilefacenet"}
    one = run("afa", **faces)
    assert published(one.experiment, "polyu_nirfd, TAR at FAR 1e-06", "afa") == (97.2, None)
    assert (
        published(run("afa", **faces, **{"data.held_out": 5}).experiment, "polyu_nirfd, TAR at FAR 1e-06", "afa")
        is None
    )
    assert tables.reported((97.2, None)) == "97.2"


def test_older_summaries_are_the_same_runs():
    """Without settings that came later, as they were then."""
    new, old = several("l2", 80, 82)
    settings = {key: value for key, value in old.experiment.items() if key not in ("loss", "fars", "cross_validated")}
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in ("held_out", "fold")}
    found = told_apart([new, replace(old, summary={**old.summary, "experiment": settings})])
    assert [one.label for one in found] == ["l2", "l2"]


def test_what_older_summaries_lack_is_the_default():
    config = default()
    for key, value in _ADDED.items():
        *parts, last = key.split(".")
        place = config
        for part in parts:
            place = place[part]
        assert place[last] == value


def test_a_persons_folder_gives_its_name():
    assert (
        run("l2", 1, **{"data.name": "image_folder", "data.dir": "/x/photos/", "data.per_class": 5}).dataset
        == "photos_5"
    )
