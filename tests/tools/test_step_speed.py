"""The comparison of steps: its arithmetic, its choices and its file; it measures nothing that a test would judge."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import benchmark
import jax
import limits
import pytest
import step_process
import step_speed

from afa_jax.errors import UserError

ROW = {
    "network": "net",
    "method": "ast",
    "batch": 8,
    "seconds": {},
    "images_per_second": {"afa_jax": 3.0, "afa_jax bfloat16": 4.0, "eager": 1.0, "compiled": 2.0},
    "failed": {"channels-last": "it does not"},
    "best": "afa_jax bfloat16",
    "dtype": "bfloat16",
    "ratio": 2.0,
    "ratio_of_fastest": 1.5,
    "ratio_to_eager": 4.0,
    "evaluated_per_second": 20.0,
    "ratio_of_evaluation": 1.25,
    "flops": 8e9,
    "bytes": 1e9,
    "share_of_limit": 0.5,
    "memory_bytes": 3e9,
}


def test_our_best_step_is_set_against_pytorchs_best_and_the_nearer_limit():
    assert step_speed.ratio({"afa_jax": 2.0, "eager": 8.0, "compiled": 4.0}) == 2
    assert step_speed.ratio({"afa_jax": 2.0, "afa_jax bfloat16": 1.0, "eager": 8.0, "compiled": 4.0}) == 4
    assert step_speed.ratio({"afa_jax": 2.0}) is None
    # 8 GFLOP at 8 GFLOP/s take 1 s, 1 GB at 4 GB/s a quarter; the step takes 8 / 4 = 2 s.
    peaks = {"float32": 1.0, "bfloat16": 8e9, "bytes": 4e9}
    assert limits.share_of_limit(ROW, peaks) == pytest.approx(0.5)
    assert limits.share_of_limit(ROW, {**peaks, "bfloat16": 80e9, "bytes": 1e9}) == pytest.approx(0.5)


def test_the_products_of_a_step_are_counted():
    """Those of a dense, a strided, a depthwise convolution and a matrix product, and of their gradients."""

    def loss(kernels, x, unused):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernels[0], (1, 1), "SAME", dimension_numbers=dimensions)
        y = jax.jit(jax.nn.relu)(y)
        y = jax.lax.conv_general_dilated(y, kernels[1], (2, 2), "SAME", dimension_numbers=dimensions)
        y = jax.lax.conv_general_dilated(
            y, kernels[2], (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=6
        )
        _ = x @ unused
        return (y.mean((1, 2)) @ kernels[3]).sum()

    shapes = [(3, 3, 4, 5), (3, 3, 5, 6), (3, 3, 1, 6), (6, 7)]
    kernels = [jax.numpy.ones(shape) for shape in shapes]
    arguments = kernels, jax.numpy.ones((2, 8, 8, 4)), jax.numpy.ones((4, 9))
    # By layer: outputs, and what is summed over for each.
    layers = [(2 * 8 * 8 * 5, 9 * 4), (2 * 4 * 4 * 6, 9 * 5), (2 * 4 * 4 * 6, 9), (2 * 7, 6)]
    forward = [2 * outputs * depth for outputs, depth in layers]
    assert limits.products(jax.make_jaxpr(loss)(*arguments).jaxpr) == sum(forward)
    # The gradients for the kernels, and for what all but the first layer reads, each cost as much again; what the last
    # product gives is not needed for them.
    assert (
        limits.products(jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr) == 3 * sum(forward) - forward[0] - forward[-1]
    )
    scanned = jax.make_jaxpr(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5))(
        jax.numpy.ones((3, 3))
    )
    assert limits.products(scanned.jaxpr) == 5 * 2 * 27


def test_the_table_names_the_best_variants():
    head, row = step_speed.table([ROW])
    assert len(head) == len(row)
    assert row[:7] == ["net, `ast`", "8", "4.00 (bfloat16)", "2.00 (compiled)", "2.00", "1.50", "4.00"]
    assert row[7:] == ["20.0 (1.25)", "50 %", "3.0 GB", "–"]
    alone = dict.fromkeys(("ratio", "ratio_of_fastest", "ratio_to_eager", "ratio_of_evaluation"))
    row = step_speed.table([{**ROW, "images_per_second": {"afa_jax bfloat16": 4.0}, **alone}])[1]
    assert row[3:8] == ["–", "–", "–", "–", "20.0"]


def test_a_step_that_cannot_be_measured_is_refused(capsys):
    assert benchmark.main(["step", "--networks", "resnet5"]) == 2
    assert "there is no 'resnet5'; choose from" in capsys.readouterr().err
    for variants in ("afa_jax,lazy", "eager"):
        assert benchmark.main(["step", "--variants", variants]) == 2
        assert f"cannot be run as {variants!r}: choose from afa_jax" in capsys.readouterr().err
    assert benchmark.main(["step", "--variants", "afa_jax", "--processes", "0"]) == 2
    assert "--processes is 0: it must be at least 1." in capsys.readouterr().err


class Fake:
    """A process that takes the seconds it is given, one after the other, and then ends."""

    facts: ClassVar = {"flops": 1.0, "bytes": 1.0, "memory_bytes": 1.0}

    def __init__(self, *seconds):
        self.left = list(seconds)

    def seconds(self, call):
        if not self.left:
            raise UserError("it was killed")
        return self.left.pop(0)


def test_a_variant_that_ends_is_left_out_and_one_far_behind_is_measured_once():
    """The first call of each does not count: it may take long for what comes later to take short."""
    servers = {
        "afa_jax": Fake(20, 2, 1, 1, *[5] * 3),
        "eager": Fake(8, 8, 8, 8, *[7] * 3),
        "channels-last": Fake(30, 1, 1),
        "compiled": UserError("it does not start"),
        "bfloat16 autocast": Fake(9, 9),
    }
    how = step_speed.Measure(4, tuple(servers), repeats=3)
    row = step_speed.compare("resnet18", "ast", how, [servers])
    assert row["failed"] == {"compiled": "it does not start", "channels-last": "it was killed"}
    assert row["seconds"] == {"afa_jax": [2, 1, 1], "eager": [8, 8, 8], "bfloat16 autocast": [9]}
    assert row["images_per_second"] == pytest.approx({"afa_jax": 4, "eager": 0.5, "bfloat16 autocast": 4 / 9})
    ratios = {name: row[name] for name in ("ratio", "ratio_of_fastest", "ratio_to_eager", "ratio_of_evaluation")}
    assert ratios == {"ratio": 8, "ratio_of_fastest": 8, "ratio_to_eager": 8, "ratio_of_evaluation": 1.4}
    with pytest.raises(UserError, match="it was killed"):
        step_speed.compare("resnet18", "ast", how, [{"afa_jax": Fake(1), "eager": Fake(*[1] * 7)}])


def test_of_several_processes_all_steps_but_their_first_count(monkeypatch):
    """How fast one comes out differs. One that ends ends its variant; sets follow each other."""
    sets = iter(
        [
            {"afa_jax": Fake(9, 2, 2, 1, 1), "eager": Fake(9, 4, 4, 3, 3)},
            {"afa_jax": Fake(9, 1, 1, 1, 1), "eager": Fake(9, 3)},
            {"afa_jax": Fake(9, 1, 1, 1, 1), "eager": Fake(9, 3, 3, 1, 1)},
        ]
    )
    ended = []

    def start(network, method, batch, variants, stack):
        stack.callback(ended.append, len(ended))
        return next(sets)

    monkeypatch.setattr(step_speed, "start", start)
    how = step_speed.Measure(4, ("afa_jax", "eager"), repeats=2, processes=2)
    row = step_speed.compare("resnet18", "ast", how, how.sets("resnet18", "ast"))
    assert ended == [0, 1] and next(sets, None)
    assert row["seconds"] == {"afa_jax": [2, 2, 1, 1]} and row["failed"] == {"eager": "it was killed"}


def test_memory_can_be_kept_because_the_tools_look_at_no_device_when_they_are_imported():
    command = [sys.executable, "-c", "import benchmark"]
    tools = str(Path(__file__).parents[2] / "tools")
    subprocess.run(command, env={**os.environ, "PYTHONPATH": tools, "JAX_PLATFORMS": "none_such"}, check=True)


def test_rows_are_added_to_those_of_the_same_device_and_versions(results, monkeypatch, capsys):
    monkeypatch.setattr(limits, "peaks", lambda: {"float32": 1.0, "bfloat16": 1e10, "bytes": 1e10})
    made = []

    def compare(network, method, how, sets):
        made.append(how.batch)
        return {**ROW, "network": network, "method": method, "batch": how.batch}

    def batches():
        rows = json.loads((results / "step_cpu.json").read_text())["rows"]
        return {(row["network"], row["method"]): row["batch"] for row in rows}

    monkeypatch.setattr(step_speed, "compare", compare)
    step = ["step", "--variants", "afa_jax", "--networks"]
    assert benchmark.main([*step, "resnet18,resnet50", "--methods", "ast", "--batch", "2"]) == 0
    assert benchmark.main([*step, "resnet50", "--methods", "ast,act", "--batch", "4", "--add"]) == 0
    assert batches() == {("resnet18", "ast"): 2, ("resnet50", "ast"): 4, ("resnet50", "act"): 4}
    monkeypatch.setattr(benchmark, "device", lambda: "another")
    assert benchmark.main([*step, "resnet50", "--methods", "ast", "--add"]) == 2
    assert "is of another device or other versions" in capsys.readouterr().err
    assert made == [2, 2, 4, 4] and len(batches()) == 3
    assert benchmark.main([*step, "resnet50", "--methods", "ast", "--batch", "8"]) == 0
    assert batches() == {("resnet50", "ast"): 8}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ast", "delta"])
def test_steps_are_made_and_measured(method, results, monkeypatch, capsys):
    """In processes of their own, on a network that PyTorch's side does not have."""
    monkeypatch.setattr(limits, "peaks", lambda: {"float32": 1e12, "bytes": 1e12})
    monkeypatch.setattr(step_process, "variants", lambda: ("afa_jax", "eager"))
    monkeypatch.setattr(step_speed, "version", lambda package: "0")
    assert benchmark.main(["step", "--networks", "resnet10_small", "--methods", method, "--batch", "2"]) == 0
    result = json.loads((results / "step_cpu.json").read_text())
    (row,) = result["rows"]
    assert row["images_per_second"].keys() == {"afa_jax"} and row["ratio"] is None
    assert (
        (row["best"], row["dtype"]) == ("afa_jax", "float32")
        and row["flops"] > 1e8
        and row["bytes"] > 0
        and "Error" in row["failed"]["eager"]
    )
    assert row["evaluated_per_second"] > 0 and len(row["seconds"]["afa_jax"]) == 3
    assert "eager does not run" in capsys.readouterr().out
