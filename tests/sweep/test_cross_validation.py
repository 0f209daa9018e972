"""Choosing alpha: on parts of the training images alone, the best mean, ties to the smallest."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import afa_jax.sweep.sweep as module
from afa_jax.data import catalog
from afa_jax.errors import UserError
from afa_jax.plan import data_request
from afa_jax.sweep.cross_validation import Search, choose, settled, trials
from afa_jax.sweep.presets import GRID, Preset, Variant
from afa_jax.sweep.work import Progress

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.py")


def test_the_grid_of_a_recipe_is_alike_for_all_its_stages():
    points = Search().points(Variant("afa"))
    assert points == [{"methods.ast.alpha": alpha, "methods.act.alpha": alpha} for alpha in GRID]
    both = Search(("alpha", "beta"), (0.1, 0.2)).points(Variant("delta"))
    # `delta` measures a head that is trained first; that one's beta is used too.
    assert [point["methods.delta.alpha"] for point in both] == [0.1, 0.1, 0.2, 0.2]
    assert [point["methods.delta.beta"] for point in both] == [0.1, 0.2, 0.1, 0.2]


def test_settings_by_name_are_chosen_one_by_one():
    search = Search(("methods.ast.alpha", "methods.act.alpha"), (0.1, 0.2))
    assert len(search.points(Variant("afa"))) == 4
    assert search.points(Variant("act")) == [{"methods.act.alpha": 0.1}, {"methods.act.alpha": 0.2}]
    assert Search(("learning_rate",), (0.1,)).points(Variant("l2")) == [{"learning_rate": 0.1}]


def test_a_recipe_without_alpha_has_nothing_to_choose():
    assert Search().points(Variant("l2")) == [] and Search().points(Variant("scratch")) == []
    assert Search().points(Variant("ast", {"methods.ast.alpha": 0.3})) == []  # the preset says it


def made(tmp_path, values=(0.1, 0.2), variant=None, **changes):
    search = Search(("alpha",), values, folds=3)
    variant = variant or Variant("afa")
    return trials(search, QUICKSTART, variant, network="resnet10_small", seed=2, settings=changes, root=tmp_path)


def test_no_run_of_the_search_looks_at_the_test_images(tmp_path):
    jobs = [job for trial in made(tmp_path, steps=20) for job in trial.jobs]
    assert [job.experiment.data.fold for job in jobs] == ["1/3", "2/3", "3/3"] * 2
    assert {(job.experiment.seed, job.experiment.steps) for job in jobs} == {(2, 20)}
    assert all(job.path[0] == "afa" and job.root == tmp_path / "cross_validation" for job in jobs)


def members(split):
    return {image.tobytes() for image in split.images[np.arange(len(split))]}


def test_no_image_that_a_choice_is_made_on_is_tested_by_the_run_it_is_made_for(tmp_path, monkeypatch):
    """Where the seed draws the test images, each seed chooses for itself."""
    asked = []

    def run(title, jobs, *others):
        asked.append(jobs)
        return Progress(jobs, summaries={job.workdir: {"last_top1": 0.5} for job in jobs})

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "_show", lambda *others: [])
    preset = Preset("ast alone", (Variant("ast"),))
    wanted = module.Sweep("ast", preset, {QUICKSTART: tmp_path}, seeds=2, search=Search(folds=2))
    assert module.sweep(wanted, tmp_path, Console(quiet=True)) == []
    searched, jobs = asked
    assert [job.experiment.seed for job in jobs] == [0, 1] == sorted({job.experiment.seed for job in searched})
    for job in jobs:
        data = catalog.load("digits", data_request(job.experiment))
        assert job.experiment.cross_validated == "alpha" and job.experiment.data.fold == ""
        for trial in searched:
            if trial.experiment.seed == job.experiment.seed:
                part = catalog.load("digits", data_request(trial.experiment))
                assert not (members(part.train) | members(part.test)) & members(data.test)


def outcome(tried, scores):
    """Progress in which the folds of each point have these accuracies; None is a run that failed."""
    progress = Progress([job for trial in tried for job in trial.jobs])
    for trial, values in zip(tried, scores, strict=True):
        for job, value in zip(trial.jobs, values, strict=True):
            if value is None:
                progress.faults[job.workdir] = "The loss blew up."
            else:
                progress.summaries[job.workdir] = {"last_top1": value}
    return progress


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 0.6, 0.7), (0.5, 0.7, 0.7)], 0.2),
        ([(0.5, 0.6, 0.7), (0.7, 0.6, 0.5)], 0.1),  # equally good: the smallest
        ([(0.1, 0.1, 0.1), (0.9, None, 0.9)], 0.1),  # a fold that failed puts the point out
    ],
)
def test_the_best_mean_is_chosen_and_written_down(scores, best, tmp_path):
    tried = made(tmp_path)
    file = tmp_path / "a" / "cross_validation" / "choice.json"
    variant, told = choose(Search(("alpha",)), tried, outcome(tried, scores), file)
    point = {"methods.ast.alpha": best, "methods.act.alpha": best}
    assert variant.settings == {**point, "cross_validated": "alpha"}
    kept = json.loads(file.read_text())
    assert kept == told and kept["name"] == "a/choice"
    assert kept["chosen"] == point and kept["recipe"] == "afa"
    assert [point["scores"] for point in kept["points"]] == [
        pytest.approx([100 * v for v in values if v is not None]) for values in scores
    ]


def test_a_recipe_that_fails_everywhere_is_told_and_the_others_go_on(tmp_path):
    def run(jobs):
        progress = Progress(jobs)
        for job in jobs:
            if job.experiment.recipe in ("ast", "dfa"):
                progress.faults[job.workdir] = f"The loss of {job.experiment.recipe} blew up."
            else:
                progress.summaries[job.workdir] = {"last_top1": 0.5}
        return progress

    variants = [Variant("ast"), Variant("act"), Variant("dfa"), Variant("l2")]
    found = settled(
        Search(), QUICKSTART, variants, networks=["resnet10_small"], seeds=[0], settings={}, root=tmp_path, run=run
    )
    chosen = Variant("act", {"methods.act.alpha": 1e-4, "cross_validated": "alpha"})
    assert found.variants == {("resnet10_small", 0): [chosen, Variant("l2")]}
    assert [choice["name"] for choice in found.choices] == [f"{tmp_path.name}/resnet10_small-act-seed0"]
    assert found.faults == [
        f"resnet10_small, seed 0: Cross-validation of {name} failed at every point of its grid: "
        f"The loss of {name} blew up."
        for name in ("ast", "dfa")
    ]
    with pytest.raises(UserError, match="failed at every point"):
        tried = made(tmp_path)
        choose(Search(), tried, outcome(tried, [(None,) * 3] * 2), tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()
