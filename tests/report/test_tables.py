"""Tables from summaries."""

import pytest

from afa_jax.report import tables


def summary(recipe, top1, best=None):
    return {"recipe": recipe, "last_top1": top1, "best_test_top1": best or top1}


def test_rows_group_by_recipe_in_percent():
    made = tables.rows([summary("l2", 0.5, 0.6), summary("afa", 0.9), summary("l2", 0.7)])
    assert [row.recipe for row in made] == ["l2", "afa"]
    assert made[0].top1 == pytest.approx((50, 70)) and made[0].best_test_top1 == pytest.approx((60, 70))


def test_spread_is_mean_and_sample_deviation():
    assert tables.spread((50.0, 70.0, 60.0)) == "60.0 ± 10.0"
    assert tables.spread((50.0,)) == "50.0"
    assert tables.spread(()) == "–"


def test_runs_that_diverged_are_told():
    made = tables.rows([summary("l2", 0.5)], {"l2": 0, "act": 2})
    assert [row.recipe for row in made] == ["l2", "act"]
    for shown in (tables.text(made), tables.markdown(made)):
        assert "0, 2 diverged" in shown


def test_markdown():
    assert tables.markdown(tables.rows([summary("l2", 0.5), summary("l2", 0.7)])).splitlines() == [
        "| recipe | top-1 (%) | runs |",
        "|---|---|---|",
        "| l2 | 60.0 ± 14.1 | 2 |",
    ]
