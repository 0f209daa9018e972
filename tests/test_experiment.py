"""The whole story on tiny data: two stages, hand-over, resume, comparison."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afa_jax.comparison import run_all
from afa_jax.config import settle
from afa_jax.data import catalog
from afa_jax.errors import DivergedError, UserError
from afa_jax.experiment import run, source_network
from afa_jax.main import main
from afa_jax.models import convert, torch_file, weights, zoo
from afa_jax.plan import check_taps, planned_stages
from afa_jax.training import loop
from afa_jax.training.journal import read_metrics
from afa_jax.transfer.recipes import RECIPES
from tests import tiny

ROOT = Path(__file__).parents[1]
TIMING = ("train_images_per_second", "finished")


def numbers(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key not in TIMING}


def test_algorithm_1(tmp_path, monkeypatch):
    """Stage II starts from stage I's target, whose copy, but for its head, is the teacher; its attention is new."""
    honest, seen = loop.train_stage, []

    def look(step_fn, state, frozen, stage, *rest, **settings):
        before = jax.tree.map(np.array, (state.params, state.batch_stats, frozen.teacher))
        state = honest(step_fn, state, frozen, stage, *rest, **settings)
        after = jax.tree.map(np.array, (state.params, state.batch_stats, frozen.teacher))
        seen.append((stage, before, after, stage.first_batch))
        return state

    experiment = settle(tiny.config(steps=6))
    source = weights.load("resnet10_small", source_network(experiment))
    monkeypatch.setattr("afa_jax.experiment.train_stage", look)
    run(experiment, tmp_path / "run")
    (first, start, middle, begin), (second, again, end, go_on) = seen
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    without_head = lambda params: {key: value for key, value in params.items() if key != "fc"}  # noqa: E731

    assert (first.name, second.name, begin, go_on) == ("ast", "act", 0, 3)
    same(start[2], source)  # stage I's teacher is the source network, head and all
    same(without_head(start[0]["target"]), without_head(source["params"]))
    assert start[0]["target"]["fc"]["kernel"].shape == (128, 10)
    same(start[1], source["batch_stats"])
    same(again[0]["target"], middle[0]["target"])
    same(again[1], middle[1])
    same(without_head(again[2]["params"]), without_head(middle[0]["target"]))
    same(again[2]["params"]["fc"], source["params"]["fc"])  # the teacher keeps its source head
    same(again[2]["batch_stats"], middle[1])
    for before, after in ((start, middle), (again, end)):
        same(before[2], after[2])  # no teacher changes during a stage
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[0]["target"], after[0]["target"])
        assert all(jax.tree.leaves(moved))
    assert jax.tree.map(np.shape, again[0]["attention"]) != jax.tree.map(np.shape, middle[0]["attention"])


def test_the_result_is_the_saved_models_on_the_whole_test_split(whole):
    experiment = settle(tiny.config(eval_every=2))
    data = catalog.load("digits", size=8, per_class=3, seed=0)
    network = zoo.NETWORKS["resnet10_small"]
    images = (data.test.images / np.float32(255) - np.array(network.mean)) / np.array(network.std)
    variables = weights.load("resnet10_small", whole / "model")
    logits = zoo.forward(zoo.create(experiment.network, 10), variables, images.astype(np.float32)).logits
    hits = int((np.asarray(logits).argmax(-1) == data.test.labels).sum())
    assert numbers(whole)["last_top1"] == pytest.approx(hits / 1767, abs=1.5 / 1767)  # one tie at most


def test_a_seed_chooses_its_own_labelled_images(tmp_path, monkeypatch):
    asked = []
    honest = catalog.load

    def load(name, **settings):
        asked.append(settings["seed"])
        return honest(name, **settings)

    monkeypatch.setattr("afa_jax.experiment.catalog.load", load)
    run(settle(tiny.config("scratch", steps=1, seed=77)), tmp_path / "run")
    assert asked == [77]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed two-stage run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(settle(tiny.config(eval_every=2)), workdir)
    return workdir


def test_a_run_leaves_what_the_design_promises(whole):
    assert {f.name for f in whole.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model",
        "source.json",
        "summary.json",
        "tensorboard",
    }
    summary = json.loads((whole / "summary.json").read_text())
    assert [(s["name"], s["steps"]) for s in summary["stages"]] == [("ast", 4), ("act", 4)]
    assert summary["last_top1"] == summary["stages"][1]["last_top1"]
    tests = [r for r in read_metrics(whole / "metrics.jsonl") if r["split"] == "test"]
    assert [(r["stage"], r["step"]) for r in tests] == [("ast", 2), ("ast", 4), ("act", 2), ("act", 4)]
    assert summary["best_test_top1"] == max(r["top1"] for r in tests)
    assert summary["experiment"]["recipe"] == "afa" and summary["seed"] == 0
    assert summary["train_images"] == 30 and summary["test_images"] == 1767
    assert {"jax", "flax", "optax", "orbax-checkpoint", "python", "afa_jax"} <= summary["versions"].keys()
    assert summary["train_images_per_second"] > 0


def test_stage_two_starts_from_stage_one_and_at_its_last_rate(whole):
    records = [r for r in read_metrics(whole / "metrics.jsonl") if r["split"] == "train"]
    rates = [(r["stage"], r["learning_rate"]) for r in records]
    expected = [("ast", 0.01)] * 3 + [("ast", 0.001)] + [("act", 0.001)] * 3 + [("act", 0.0001)]
    assert rates == [(stage, pytest.approx(rate)) for stage, rate in expected]


def test_the_saved_model_is_the_target_alone(whole):
    variables = weights.load("resnet10_small", whole / "model")
    assert variables["params"]["fc"]["kernel"].shape == (128, 10)
    assert set(variables) == {"params", "batch_stats"}
    assert weights.describe(whole / "model")["classes"] == [str(d) for d in range(10)]
    zoo.forward(zoo.create("resnet10_small", 10), variables, np.zeros((1, 8, 8, 3), np.float32))


def test_the_same_command_again_finds_the_finished_run(whole, capsys, monkeypatch):
    monkeypatch.setattr("afa_jax.experiment._Run", None)  # nothing may be set up
    before = {f: f.stat().st_mtime_ns for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}
    run(settle(tiny.config(eval_every=2)), whole)
    assert "finished already" in capsys.readouterr().out
    assert before == {f: f.stat().st_mtime_ns for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}


def test_another_config_in_the_same_workdir_is_refused(whole, tmp_path, capsys):
    file = tmp_path / "other.py"
    file.write_text("from tests import tiny\ndef get_config(): return tiny.config(eval_every=2, seed=4)\n")
    assert main(["main", "--config", str(file), "--workdir", str(whole)]) == 2
    assert "holds another run (seed is 0 there and 4 here)" in capsys.readouterr().err


def test_seeds_differ_and_repeat(whole, tmp_path):
    again = tmp_path / "again"
    run(settle(tiny.config(eval_every=2)), again)
    assert numbers(again) == numbers(whole)
    other = tmp_path / "other"
    run(settle(tiny.config(eval_every=2, seed=1)), other)
    assert numbers(other)["stages"] != numbers(whole)["stages"]


COMMAND = """
import sys
from afa_jax.config import settle
from afa_jax.data import catalog
from afa_jax.experiment import run
from pathlib import Path
from tests import tiny
run(settle(tiny.config(eval_every=2)), Path(sys.argv[1]))
"""


def start(workdir):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(workdir)], cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL
    )


def kill_after(workdir, lines):
    """Starts the run and kills it, as the kernel would, once its journal has that many lines."""
    process = start(workdir)
    journal = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_in_either_stage_it_ends_with_the_same_numbers(whole, tmp_path):
    """Twelve lines in all: four steps and two evaluations a stage. One kill in each stage, at random lines."""
    workdir = tmp_path / "run"
    chosen = random.Random()  # another place at each test run; the message names it
    kills = chosen.randrange(1, 5), chosen.randrange(7, 11)
    for lines in kills:
        kill_after(workdir, lines)
        assert not (workdir / "summary.json").exists()
    process = start(workdir)
    assert process.wait(timeout=120) == 0
    assert numbers(workdir) == numbers(whole), kills
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl"), kills
    made, expected = (weights.load("resnet10_small", d / "model") for d in (workdir, whole))
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def spoil(folder):
    largest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])


@pytest.mark.parametrize("damaged", [["2-act/4"], ["2-act/4", "2-act/2"], ["1-ast/4"], ["1-ast/4", "1-ast/2"]])
def test_damaged_checkpoints_cost_steps_but_change_no_number(whole, tmp_path, damaged, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "summary.json").unlink()
    for checkpoint in damaged:
        spoil(workdir / "checkpoints" / checkpoint)
    run(settle(tiny.config(eval_every=2)), workdir)
    told = capfd.readouterr().err
    assert all(f"{checkpoint} is damaged; it is removed" in told for checkpoint in damaged)
    assert numbers(workdir) == numbers(whole)
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")


def test_a_diverging_run_ends_with_a_sentence_and_no_result(tmp_path, capsys):
    file = tmp_path / "wild.py"
    file.write_text(
        "from tests import tiny\n"
        "def get_config(): return tiny.config('ast', learning_rate=1e4, checkpoint_every=1, steps=40)\n"
    )
    workdir = tmp_path / "run"
    assert main(["main", "--config", str(file), "--workdir", str(workdir)]) == 2
    err = capsys.readouterr().err
    assert "The loss is no longer a finite number at step" in err and "lower methods.ast.alpha" in err
    assert not (workdir / "summary.json").exists()
    for record in read_metrics(workdir / "metrics.jsonl"):
        assert np.isfinite(record["loss"])


def test_a_comparison_prints_its_table_and_can_grow(tmp_path, capsys):
    small = {"steps": 2, "eval_every": 0, "checkpoint_every": 100}
    run_all(settle(tiny.config("scratch,l2", seeds=2, **small)), tmp_path)
    shown = capsys.readouterr().out
    assert "scratch" in shown and "±" in shown and str(tmp_path) in shown
    for recipe in ("scratch", "l2"):
        for seed in (0, 1):
            assert numbers(tmp_path / recipe / f"seed{seed}")["seed"] == seed
    runs = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert sorted((r["recipe"], r["seed"]) for r in runs) == [("l2", 0), ("l2", 1), ("scratch", 0), ("scratch", 1)]
    run_all(settle(tiny.config("scratch,l2,dfa", seeds=2, **small)), tmp_path)
    assert capsys.readouterr().out.count("finished already") == 4


def test_a_diverging_run_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    honest = loop.train_stage

    def diverge_for_l2(step_fn, state, frozen, stage, *rest, **settings):
        if stage.name == "l2":
            raise DivergedError("The loss is no longer a finite number.")
        return honest(step_fn, state, frozen, stage, *rest, **settings)

    monkeypatch.setattr("afa_jax.experiment.train_stage", diverge_for_l2)
    with pytest.raises(DivergedError, match="1 of 2 runs diverged: l2, seed 0: The loss"):
        run_all(settle(tiny.config("l2,dfa", steps=2)), tmp_path)
    shown = capsys.readouterr().out
    assert "0, 1 diverged" in shown and "dfa" in shown


def test_the_source_network_is_trained_once(whole, cache):
    experiment = settle(tiny.config())
    folder = source_network(experiment)
    assert cache in folder.parents
    assert weights.describe(folder)["classes"][0] == "a"
    assert source_network(settle(tiny.config("l2", steps=99))) == folder  # the target's settings do not matter
    assert source_network(settle(tiny.config(**{"source.steps": 31, "steps": 2}))) != folder


def test_a_source_from_a_file_is_the_same(whole, tmp_path):
    folder = source_network(settle(tiny.config()))
    workdir = tmp_path / "run"
    run(settle(tiny.config(eval_every=2, **{"source.weights": str(folder)})), workdir)
    assert numbers(workdir)["stages"] == numbers(whole)["stages"]


def test_a_torch_file_is_a_source_too(whole, tmp_path):
    """What the converter gives a PyTorch user, wrapped as training scripts wrap it, makes the same run."""
    state = convert.to_state_dict(weights.load("resnet10_small", source_network(settle(tiny.config()))))
    torch_file.write(tmp_path / "net.pth", {f"module.{key}": value for key, value in state.items()})
    run(settle(tiny.config(eval_every=2, **{"source.weights": str(tmp_path / "net.pth")})), tmp_path / "run")
    assert numbers(tmp_path / "run")["stages"] == numbers(whole)["stages"]


RUN = {"eval_every": 0, "steps": 10, "checkpoint_every": 5}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("scratch", "afa")])
def test_every_recipe_runs_and_hands_over_what_it_says(recipe, tmp_path, monkeypatch, cache):
    """From the first stage to the summary; and at each stage's start, what is in target and teacher."""
    honest, seen = loop.train_stage, []

    def look(step_fn, state, frozen, stage, *rest, **settings):
        before = jax.tree.map(np.array, (state.params, state.batch_stats, frozen.teacher))
        state = honest(step_fn, state, frozen, stage, *rest, **settings)
        after = jax.tree.map(np.array, (state.params, state.batch_stats, frozen.teacher, frozen.constants))
        seen.append((stage, before, after))
        return state

    experiment = settle(tiny.config(recipe, **RUN))
    source = weights.load("resnet10_small", source_network(experiment))
    monkeypatch.setattr("afa_jax.experiment.train_stage", look)
    summary = run(experiment, tmp_path / "run")
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    body = lambda params: {key: value for key, value in params.items() if key != "fc"}  # noqa: E731

    assert [stage["name"] for stage in summary["stages"]] == [stage.name for stage, _, _ in seen]
    assert [stage["kept"] for stage in summary["stages"]] == [stage.kept for stage, _, _ in seen]
    assert sum(stage["steps"] for stage in summary["stages"] if stage["kept"]) == 10
    first = seen[0][1]
    for i, (stage, (params, statistics, teacher), after) in enumerate(seen):
        same(teacher, after[2])  # it never changes during a stage
        if stage.start == "source":
            same(body(params["target"]), body(source["params"]))
            same(params["target"]["fc"], first[0]["target"]["fc"])  # the same new head each time
            same(statistics, source["batch_stats"])
        else:
            same(params["target"], seen[i - 1][2][0]["target"])
            same(statistics, seen[i - 1][2][1])
        if stage.teacher == "source":
            same(teacher, source)
        else:
            same(body(teacher["params"]), body(seen[i - 1][2][0]["target"]))
            same(teacher["batch_stats"], seen[i - 1][2][1])
            same(teacher["params"]["fc"], source["params"]["fc"])
        if stage.name == "l2_fe":
            same(body(params["target"]), body(after[0]["target"]))
            same(statistics, after[1])
            assert (params["target"]["fc"]["kernel"] != after[0]["target"]["fc"]["kernel"]).any()
    files = sorted(path.name for path in (tmp_path / "run" / "constants").glob("*"))
    assert files == [f"{i + 1}-{stage.name}.safetensors" for i, (stage, _, after) in enumerate(seen) if after[3]]


@pytest.mark.parametrize("recipe", ["delta", "lwf", "co_tuning", "afa_fixed_attention"])
def test_what_was_measured_is_kept_for_a_run_that_goes_on(recipe, tmp_path, monkeypatch, cache):
    """Stopped in the last stage and started again: nothing is measured twice, and the numbers are the same."""
    experiment = settle(tiny.config(recipe, **RUN))
    run(experiment, tmp_path / "whole")
    honest = loop.train_stage

    def stop(step_fn, state, frozen, stage, *rest, **settings):
        def counted(state, frozen, batch):
            if int(state.step) == 3:
                raise KeyboardInterrupt
            return step_fn(state, frozen, batch)

        last = stage.name == summary["stages"][-1]["name"]
        return honest(counted if last else step_fn, state, frozen, stage, *rest, **settings)

    summary = numbers(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("afa_jax.experiment.train_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, tmp_path / "cut")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "constants").iterdir()}
    run(experiment, tmp_path / "cut")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "constants").iterdir()} == kept
    assert numbers(tmp_path / "cut") == summary


@pytest.mark.parametrize(
    ("recipe", "changes", "sentence"),
    [
        ("soft_ft", {"source.dataset": "imagenet"}, "'imagenet' does not exist"),
        ("l2_sp_att", {"tap_layers": "layer1.0"}, "the tap 'layer1.0' of resnet10_small is none; did you mean"),
        ("delta", {"tap_layers": "conv9"}, "no layer 'conv9' to tap"),
        ("delta", {"methods.delta.channel_weights": "/nowhere.json"}, "There is no file /nowhere.json"),
    ],
)
def test_what_a_method_lacks_is_said_before_any_step(recipe, changes, sentence, tmp_path, capsys, cache):
    folder = source_network(settle(tiny.config()))
    with pytest.raises(UserError, match=sentence):
        run(settle(tiny.config(recipe, **{"source.weights": str(folder), **changes})), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_source_images_that_are_not_the_source_networks_are_refused(tmp_path, cache):
    variables = weights.load("resnet10_small", source_network(settle(tiny.config())), num_classes=5)
    weights.save(tmp_path / "net", "resnet10_small", variables)
    with pytest.raises(
        UserError, match=r"soft_ft needs images and labels of the source task: .* 26 classes and its head 5"
    ):
        run(settle(tiny.config("soft_ft", **{"source.weights": str(tmp_path / "net")})), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_deltas_weights_of_one_run_serve_another(tmp_path, cache):
    run(settle(tiny.config("delta", **RUN)), tmp_path / "first")
    file = tmp_path / "first" / "constants" / "2-delta.safetensors"
    run(settle(tiny.config("delta", **RUN, **{"methods.delta.channel_weights": str(file)})), tmp_path / "second")
    assert (tmp_path / "second" / "constants" / "1-delta.safetensors").read_bytes() == file.read_bytes()
    assert numbers(tmp_path / "second")["stages"] == numbers(tmp_path / "first")["stages"][1:]


def test_other_weights_in_the_same_file_are_another_run(tmp_path, cache):
    run(settle(tiny.config("delta", **RUN)), tmp_path / "first")
    file = tmp_path / "weights.safetensors"
    shutil.copyfile(tmp_path / "first" / "constants" / "2-delta.safetensors", file)
    experiment = settle(tiny.config("delta", **RUN, **{"methods.delta.channel_weights": str(file)}))
    summary = run(experiment, tmp_path / "run")
    assert [stage["name"] for stage in summary["stages"]] == ["delta"]  # there is nothing to measure on
    save_file({key: value + 1 for key, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"holds another run \(files.delta.channel_weights"):
        run(experiment, tmp_path / "run")


def test_a_run_is_not_gone_on_with_in_another_precision(whole, tmp_path, monkeypatch):
    """`auto` is float32 on the CPU; on a GPU it is not this run."""
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(UserError, match="dtype is 'float32' there and 'bfloat16' here"):
        run(settle(tiny.config(eval_every=2, dtype="bfloat16")), tmp_path / "run")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="dtype is 'float32' there and 'bfloat16' here"):
        run(settle(tiny.config(eval_every=2)), tmp_path / "run")


def test_a_source_without_its_head_is_told_to_whom_it_matters(tmp_path, cache):
    state = convert.to_state_dict(weights.load("resnet10_small", source_network(settle(tiny.config()))))
    torch_file.write(tmp_path / "body.pth", {key: value for key, value in state.items() if not key.startswith("fc.")})
    source = {"source.weights": str(tmp_path / "body.pth")}
    with pytest.raises(UserError, match=r"lwf needs the source network's classification layer.*fc.bias, fc.weight"):
        run(settle(tiny.config("lwf", **source)), tmp_path / "run")
    with pytest.raises(UserError, match="2 missing"):
        run(settle(tiny.config("ast", **source)), tmp_path / "run")


def test_taps_that_share_filters_are_refused_where_each_is_weighed_once():
    config = tiny.config("l2_sp_att", network="inception_v3_no_aux", tap_layers="Mixed_7c,Mixed_7c.branch1x1.conv")
    config.data.image_size = config.data.resize = 75
    experiment = settle(config)
    with pytest.raises(UserError, match=r"weighs each filter once, and the taps Mixed_7c, Mixed_7c\.branch1x1"):
        check_taps(experiment, planned_stages(experiment))
