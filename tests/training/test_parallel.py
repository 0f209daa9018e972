"""The same step under both wrappers and on one device, whole or in parts; what is said before the first."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

from afa_jax.config import settle
from afa_jax.errors import UserError
from afa_jax.experiment import run
from afa_jax.models import zoo
from afa_jax.training.journal import read_metrics
from afa_jax.training.objective import is_costly
from afa_jax.training.parallel import WRAPPERS, Devices
from afa_jax.training.step import init_state, make_step
from afa_jax.transfer.method import Frozen
from tests import tiny
from tests.processes import ROOT
from tests.training.eight_devices import CASES, steps


def on_eight_devices(what, folder):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-W", "error", "-m", "tests.training.eight_devices", what, str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    results = json.loads((folder / "results.json").read_text())
    assert results["devices"] == 8
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return on_eight_devices("runs", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def steps_on_eight(tmp_path_factory):
    return on_eight_devices("steps", tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(settle(tiny.config(eval_every=2)), folder / "run")
    return read_metrics(folder / "run" / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_afa_has_the_same_curve_and_result_on_eight_devices_as_on_one(runs, one, wrapper):
    found = runs[wrapper]
    assert len(found) == len(one) == 12
    for mine, expected in zip(found, one, strict=True):
        assert mine.keys() == expected.keys()
        for key, value in expected.items():
            if key == "top1" or isinstance(value, str):
                assert mine[key] == value
            else:
                # A gradient may move by a percent where one activation lies on ReLU's edge; no loss does.
                tolerance = 1e-2 if key == "gradient_norm" else 1e-5
                np.testing.assert_allclose(mine[key], value, tolerance, 1e-7, err_msg=f"{key} of {expected}")


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("method", "accumulate"), CASES)
def test_every_method_takes_the_same_steps(steps_on_eight, tmp_path, method, accumulate, wrapper):
    losses, numbers = steps_on_eight[f"{method} {accumulate} {wrapper}"]
    expected_losses, expected_numbers = steps(method, accumulate, "jit", tmp_path)
    for mine, expected in zip(losses, expected_losses, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(mine[name], value, rtol=2e-5, atol=1e-5, err_msg=name)
    for mine, expected in zip(numbers, expected_numbers, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def start(method="ast", **settings):
    task = tiny.task(tiny.stage(method, **settings), momentum=0.0)
    frozen = Frozen(teacher=tiny.variables(tiny.SOURCE_CLASSES))
    state = init_state(task, tiny.variables(), frozen, jnp.asarray(tiny.batch()["image"]), jax.random.PRNGKey(0))
    return task, state, frozen


def test_a_batch_in_parts_is_one_move_along_the_mean_of_their_gradients():
    """Plain SGD from the same point: the move of the parts together is the mean of the moves of each by itself."""
    task, state, frozen = start(convention="paper")
    batch = tiny.batch(8)
    found, metrics = jax.jit(make_step(replace(task, accumulate=2)))(state, frozen, batch)
    halves = [jax.tree.map(lambda x, k=k: x[k::2], batch) for k in (0, 1)]
    (first, said), (second, said_too) = (jax.jit(make_step(task))(state, frozen, half) for half in halves)
    jax.tree.map(
        lambda x, a, b: np.testing.assert_allclose(x, (a + b) / 2, rtol=1e-5, atol=1e-6),
        found.params,
        first.params,
        second.params,
    )
    for name in ("loss", "cross_entropy", "alignment", "top1"):
        np.testing.assert_allclose(metrics[name], (said[name] + said_too[name]) / 2, rtol=1e-5)
    # Each part moves the running averages a tenth of the way to its own statistics.
    before = state.batch_stats
    jax.tree.map(
        lambda x, s, a, b: np.testing.assert_allclose(x, 0.9 * a + (b - 0.9 * s), rtol=1e-5, atol=1e-6),
        found.batch_stats,
        before,
        first.batch_stats,
        second.batch_stats,
    )
    assert int(found.step) == 1


@pytest.mark.parametrize("accumulate", [2, 4])
def test_where_batch_norm_does_not_look_at_the_batch_parts_change_nothing(accumulate):
    task, state, frozen = start("l2_fe")
    whole, parts = (
        jax.jit(make_step(replace(task, accumulate=n)))(state, frozen, tiny.batch(8)) for n in (1, accumulate)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)


def test_a_sum_over_the_batch_is_one_over_all_its_parts():
    """The released scale of DFA is a sum over the batch of 8: of each part's mean, 8 times, not 4."""
    task, state, frozen = start("dfa")
    assert task.stage.settings["convention"] in task.stage.method.batch_sum
    halves = [jax.tree.map(lambda x, k=k: x[k::2], tiny.batch(8)) for k in (0, 1)]
    first, second = (jax.jit(make_step(task))(state, frozen, half)[1]["alignment"] for half in halves)
    found = jax.jit(make_step(replace(task, accumulate=2)))(state, frozen, tiny.batch(8))[1]["alignment"]
    np.testing.assert_allclose(found, first + second, rtol=1e-5)


def test_what_is_computed_anew_changes_no_number():
    task, state, frozen = start()
    kept, anew = (
        jax.jit(make_step(replace(task, remat=remat)))(state, frozen, tiny.batch(8)) for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), kept, anew)


def test_less_than_a_third_is_kept_for_the_backward_pass():
    module = zoo.create("resnet18", 5)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    def kept(run):
        def loss(params, statistics, images):
            return run(params, statistics, images).logits.sum()

        def forward(params, statistics, images):
            return zoo.forward(module, {"params": params, "batch_stats": statistics}, images, train=True)

        run = run(forward)
        images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
        residuals = saved_residuals(loss, shapes["params"], shapes["batch_stats"], images)
        return sum(np.prod(a.shape) * a.dtype.itemsize for a, why in residuals if "argument" not in why)

    plain = kept(lambda run: run)
    assert 0 < kept(lambda run: jax.checkpoint(run, policy=is_costly)) < plain / 3


@pytest.mark.parametrize(
    ("batch", "accumulate", "parts"),
    [
        (20, 3, ["batch_size is 20", "1 device cannot share equally in 3 parts (config.accumulate)", "18 or 21"]),
        (2, 3, ["batch_size is 2", "set it to 3."]),
    ],
)
def test_a_batch_without_equal_parts_is_refused(batch, accumulate, parts):
    Devices().check("batch_size", 21, 3)
    with pytest.raises(UserError) as error:
        Devices().check("batch_size", batch, accumulate)
    assert all(part in str(error.value) for part in parts)


def test_what_a_step_takes_is_told_once():
    task, state, frozen = start()
    told = []
    step = Devices().compile(task, told.append)
    devices = Devices()
    state, frozen = devices.replicate(state), devices.replicate(frozen)
    batch = devices.spread(tiny.batch())
    for _ in range(2):
        state, _ = step(state, frozen, batch)
    (sentence,) = told
    parameters = sum(x.size for x in jax.tree.leaves(state.params["target"]))
    assert sentence.startswith(f"{parameters:,} parameters and ")
    assert "FLOP an image; its program takes " in sentence and sentence.endswith("B of memory.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_flops_told_are_those_of_all_parts(wrapper):
    task, state, frozen = start()
    devices, told = Devices(wrapper), []
    for accumulate in (1, 4):
        step = devices.compile(replace(task, accumulate=accumulate), told.append)
        step(devices.replicate(jax.tree.map(jnp.copy, state)), frozen, devices.spread(tiny.batch(8)))
    whole, parts = (float(re.search(r"a step takes ([\d.]+) kFLOP", sentence)[1]) for sentence in told)
    assert parts == pytest.approx(whole, rel=0.2)  # the move itself is counted as often as there are parts
