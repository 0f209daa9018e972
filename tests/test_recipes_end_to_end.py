"""Every recipe from its config to its summary: what is handed over, what is measured, kept, asked for and refused."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afa_jax.config import settle
from afa_jax.errors import UserError
from afa_jax.experiment import run, source_network
from afa_jax.models import convert, torch_file, weights
from afa_jax.plan import check_taps, planned_stages
from afa_jax.training import loop
from afa_jax.transfer.recipes import RECIPES
from tests import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of `afa` to its end."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(settle(tiny.config(eval_every=2)), workdir)
    return workdir


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
    source = weights.load(tiny.NETWORK, source_network(experiment))
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

    summary = tiny.numbers(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("afa_jax.experiment.train_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, tmp_path / "cut")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "constants").iterdir()}
    run(experiment, tmp_path / "cut")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "constants").iterdir()} == kept
    assert tiny.numbers(tmp_path / "cut") == summary


@pytest.mark.parametrize(
    ("recipe", "changes", "sentence"),
    [
        ("soft_ft", {"source.dataset": "imagenet"}, "There is no data set 'imagenet'"),
        ("l2_sp_att", {"tap_layers": "bn1"}, "the tap 'bn1' of four_convs is none; did you mean"),
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
    variables = weights.load(tiny.NETWORK, source_network(settle(tiny.config())), num_classes=5)
    weights.save(tmp_path / "net", tiny.NETWORK, variables)
    with pytest.raises(
        UserError, match=r"soft_ft needs images and labels of the source task: .* 52 classes and its head 5"
    ):
        run(settle(tiny.config("soft_ft", **{"source.weights": str(tmp_path / "net")})), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_deltas_weights_of_one_run_serve_another(tmp_path, cache):
    run(settle(tiny.config("delta", **RUN)), tmp_path / "first")
    file = tmp_path / "first" / "constants" / "2-delta.safetensors"
    run(settle(tiny.config("delta", **RUN, **{"methods.delta.channel_weights": str(file)})), tmp_path / "second")
    assert (tmp_path / "second" / "constants" / "1-delta.safetensors").read_bytes() == file.read_bytes()
    assert tiny.numbers(tmp_path / "second")["stages"] == tiny.numbers(tmp_path / "first")["stages"][1:]


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
    state = convert.to_state_dict(weights.load(tiny.NETWORK, source_network(settle(tiny.config()))))
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
