"""The benchmark's own arithmetic and files, on small networks; it measures nothing here that a test would judge."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from tests.data.archives import picture

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import benchmark
import changes
import delta_speed
import growth
import limits
import publish_comparison
import step_process
import step_profile
import step_speed

from afa_jax import compilation
from afa_jax.errors import UserError
from afa_jax.models import zoo


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results"


def test_delta_adds_up_all_filters_of_all_taps(results, monkeypatch, capsys):
    """A clock that says 2 s for a whole pass, and 1 s once and 0.25 s for each filter that is left out."""

    def seconds(call, repeats):
        last = call.args[-1]  # the filters that are left out, or the mask of a whole pass
        return 1 + 0.25 * len(last) if last.dtype == "int32" else 2.0

    monkeypatch.setattr(delta_speed, "seconds", seconds)
    assert benchmark.main(["delta", "--network", "resnet10_small", "--batch", "2"]) == 0
    result = json.loads((results / "delta_weights_resnet10_small_cpu.json").read_text())
    rows = result["seconds"]
    filters = [row["filters"] for row in rows]
    assert all((row["each"], row["once"]) == pytest.approx((0.25, 1)) for row in rows)
    assert result["ratio"] == pytest.approx(2 * sum(filters) / (len(filters) + 0.25 * sum(filters)))
    assert result["whole_pass_hours_a_batch"] == pytest.approx(2 * sum(filters) / 3600)
    took = len(filters) + 0.25 * sum(filters)
    assert result["images_times_filters_per_second"] == pytest.approx(2 * sum(filters) / took)
    assert f"{result['ratio']:.1f} times as fast as whole passes" in capsys.readouterr().out
    assert "ratio_to_released" not in result  # torchvision has no such network
    assert result["device"] and result["versions"]["jax"] and result["finished"]


def test_delta_is_set_against_pytorchs_passes_where_it_has_the_network(results, monkeypatch):
    """On that clock, and with 3 s for each of PyTorch's passes, 4 s where it does not keep freed memory."""

    class Server:
        def __init__(self, network, method, batch, variant):
            assert (network, batch) == ("resnet10_small", 1)
            self.each = {"eager": 3.0, step_process.RELEASED: 4.0}[variant]

        def seconds(self, call):
            assert call == "evaluate"
            return self.each

        def close(self):
            pass

    def seconds(call, repeats):
        return 0.5 * len(call.args[-1]) if call.args[-1].dtype == "int32" else 2.0

    monkeypatch.setattr(step_process, "Server", Server)
    monkeypatch.setattr(step_process, "has_torch", lambda: True)
    monkeypatch.setattr(step_process, "TORCHVISION", ("resnet10_small",))
    monkeypatch.setattr(delta_speed, "seconds", seconds)
    assert benchmark.main(["delta", "--network", "resnet10_small", "--batch", "1"]) == 0
    result = json.loads((results / "delta_weights_resnet10_small_cpu.json").read_text())
    found = [result[name] for name in ("ratio", "ratio_to_pytorch", "ratio_to_released")]
    assert found == pytest.approx([4, 6, 8])
    assert result["table"][-1] == ["all filters", "", "", "", "× 4.0", "× 6.0", "× 8.0"]
    assert len({len(row) for row in result["table"]}) == 1


@pytest.mark.slow
def test_data_measures_every_way_of_reading(results, tmp_path, capsys):
    for i in range(10):
        for split in ("train", "test"):
            folder = tmp_path / "photos" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.jpg").write_bytes(picture(i))
    command = ["data", "--photos", str(tmp_path / "photos"), "--network", "resnet10_small", "--batch", "2"]
    assert benchmark.main([*command, "--steps", "3", "--count", "4", "--repeats", "2"]) == 0
    result = json.loads((results / "data_cpu.json").read_text())
    assert result["images"] == 4 and len(result["images_per_second"]) == 2
    assert all(rate > 0 for reading in result["images_per_second"] for rate in reading.values())
    assert [len(row) for row in result["table"]] == [2] * 7
    assert result["table"][-1][1].endswith(" %")
    table = publish_comparison.table(result)
    assert capsys.readouterr().out.strip() == table and table.count("\n") == 7
    assert benchmark.main([*command[:1], "--photos", str(tmp_path)]) == 2
    assert "has no photos under train/<class>/" in capsys.readouterr().err


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
    servers = {
        "afa_jax": Fake(2, 1, 1, *[5] * 3),
        "eager": Fake(8, 8, 8, *[7] * 3),
        "channels-last": Fake(1, 1),
        "compiled": UserError("it does not start"),
        "bfloat16 autocast": Fake(9),
    }
    row = step_speed.compare("resnet18", "ast", 4, 3, servers)
    assert row["failed"] == {"compiled": "it does not start", "channels-last": "it was killed"}
    assert row["seconds"] == {"afa_jax": [2, 1, 1], "eager": [8, 8, 8], "bfloat16 autocast": [9]}
    assert row["images_per_second"] == pytest.approx({"afa_jax": 4, "eager": 0.5, "bfloat16 autocast": 4 / 9})
    ratios = {name: row[name] for name in ("ratio", "ratio_of_fastest", "ratio_to_eager", "ratio_of_evaluation")}
    assert ratios == {"ratio": 8, "ratio_of_fastest": 8, "ratio_to_eager": 8, "ratio_of_evaluation": 1.4}
    with pytest.raises(UserError, match="it was killed"):
        step_speed.compare("resnet18", "ast", 4, 3, {"afa_jax": Fake(1), "eager": Fake(*[1] * 6)})


def test_memory_can_be_kept_because_the_tools_look_at_no_device_when_they_are_imported():
    command = [sys.executable, "-c", "import benchmark"]
    tools = str(Path(__file__).parents[2] / "tools")
    subprocess.run(command, env={**os.environ, "PYTHONPATH": tools, "JAX_PLATFORMS": "none_such"}, check=True)


def test_rows_are_added_to_those_of_the_same_device_and_versions(results, monkeypatch, capsys):
    monkeypatch.setattr(limits, "peaks", lambda: {"float32": 1.0, "bfloat16": 1e10, "bytes": 1e10})
    monkeypatch.setattr(step_speed, "start", lambda *_: {})
    made = []

    def compare(network, method, batch, repeats, servers):
        made.append(batch)
        return {**ROW, "network": network, "method": method, "batch": batch}

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


@pytest.mark.slow
def test_growth_is_measured_by_batch_modules_devices_and_images(results, monkeypatch, capsys):
    small = {"BATCHES": (2, 4), "MODULES": (4, 12), "DEVICES": (2,), "IMAGES": (10, 10**5)}
    for name, sizes in small.items():
        monkeypatch.setattr(growth, name, sizes)
    assert benchmark.main(["growth", "--network", "resnet10_small", "--batch", "2", "--repeats", "2"]) == 0
    result = json.loads((results / "growth_cpu.json").read_text())
    assert [(row["what"], row["size"]) for row in result["rows"]] == [
        *(("batch", 2), ("batch", 4), ("attentive modules", 4), ("attentive modules", 12), ("virtual devices", 2)),
        *(("images in the cache", 10), ("images in the cache", 10**5)),
    ]
    steps = [row for row in result["rows"] if "memory" in row]
    assert steps[1]["memory"] > steps[0]["memory"] and all(row["images_per_second"] > 0 for row in result["rows"])
    assert "| images in the cache | 100,000 |" in capsys.readouterr().out


@pytest.mark.slow
def test_each_change_is_measured_with_and_without(results, capsys):
    assert benchmark.main(["changes", "--networks", "resnet10_small", "--batch", "2", "--repeats", "1"]) == 0
    rows = json.loads((results / "changes_cpu.json").read_text())["rows"]
    assert [row["change"] for row in rows] == list(changes.CHANGES)
    measured = [row["change"] for row in rows if row["resnet10_small"]]
    others = ("BatchNorm", "XLA's options", "kept memory")
    assert measured == ["1×1 convolutions", "once computed block outputs", *others]  # all that it has
    assert all(len(times) == 1 for row in rows for times in row["resnet10_small"].values())
    assert capsys.readouterr().out.count("in place of") == 2 * len(measured)


@pytest.mark.parametrize(
    ("change", "call"),
    {
        "depthwise convolutions": lambda f: f(normal(2, 9, 9, 4), normal(3, 3, 1, 4), (2, 2), ((1, 1), (1, 1))),
        "1×1 convolutions": lambda f: f(normal(2, 5, 5, 4), normal(4, 6)),
        "3×3 convolutions": lambda f: f(normal(2, 9, 8, 4), normal(3, 3, 4, 6), ((1, 1), (0, 1))),
        "max-pooling": lambda f: f(normal(2, 9, 9, 4), 3, 2, 1),
        "once computed block outputs": lambda f: f(normal(3, 4)),
        "BatchNorm": lambda f: f(use_running_average=False).init_with_output(jax.random.key(0), normal(4, 5, 5, 3))[0],
    }.items(),
)
def test_what_takes_the_place_of_a_change_computes_the_same(change, call):
    module, name, theirs = changes.OWN[change]
    np.testing.assert_allclose(call(getattr(module, name)), call(theirs), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "network"),
    {
        "depthwise convolutions": "mobilenet_v2",
        "1×1 convolutions": "resnet18",
        "3×3 convolutions": "resnet18",
        "max-pooling": "resnet18",
        "once computed block outputs": "resnet10_small",
        "BatchNorm": "resnet10_small",
    }.items(),
)
def test_a_change_that_is_undone_is_gone_from_the_program(change, network, monkeypatch):
    def program():
        model = zoo.create(network, 10)
        return str(jax.make_jaxpr(lambda key: model.init_with_output(key, normal(8, 32, 32, 3), train=True))(KEY))

    with_it = program()
    assert changes.OWN.keys() == {*changes.CHANGES} - {changes.MEMORY} and program() == with_it
    module, name, _ = changes.OWN[change]
    monkeypatch.setattr(module, name, getattr(module, name))  # to be put back
    changes.undo(change)
    assert program() != with_it


def test_xlas_own_options_take_the_place_of_ours(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_options", compilation.compiler_options)
    assert compilation.compiler_options()
    changes.undo("XLA's options")
    given = []
    monkeypatch.setattr(jax, "jit", lambda function, **options: given.append(options))
    compilation.jit(normal)
    assert given == [{"compiler_options": None}]


KEY = jax.random.key(0)


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def event(name, seconds, pid=1, begin=0.0):
    return {"name": name, "ph": "X", "ts": 1e6 * begin, "dur": 1e6 * seconds, "pid": pid, "args": {}}


ORIGINS = {"sum.1": "a/sum", "sum.2": "b/sum", "dot.7": "c/dot", "convert.1": "d/type", "tiny.1": "", "gemm_f.2": ""}


def told(rows):
    assert all(row["share"] == pytest.approx(row["seconds"] / 10) for row in rows)
    return [(row["kind"], round(row["seconds"], 3), row["mostly"]) for row in rows]


def test_on_a_cpu_products_are_what_no_other_operation_takes():
    events = [event("sum.1", 1), event("sum.2", 2), event("dot.7", 9), event("convert.1", 2), event("tiny.1", 0.01)]
    events += [event("python", 50), {"name": "convert.1", "ph": "M"}]
    assert told(step_profile._of_cpu(events, ORIGINS, whole=10.0)) == [
        ("convolutions and products", 4.99, ""),
        ("`sum`", 3.0, "b/sum"),
        ("`convert`", 2.0, "d/type"),
        ("others", 0.01, ""),
    ]


def test_on_a_gpu_products_are_what_libraries_do_and_the_rest_is_waiting():
    """A kernel bears the name of XLA's operation, whose characters a kernel may not all have."""
    names = [{"name": "process_name", "ph": "M", "pid": p, "args": {"name": n}} for p, n in [(1, "/host"), (2, "/GPU")]]
    events = [event("sum_1", 1, 2, 0), event("sum_2", 2, 2, 1), event("nvjet_sm90", 3, 2, 3)]
    events += [event("gemm_f_2", 0.5, 2, 6), event("convert_1", 2, 2, 7), event("sum_1", 7)]
    events += [event("MemcpyH2D", 1.5, 2, 6)]  # of which half a second is beside a product, and half by itself
    assert told(step_profile._of_gpu(names + events, ORIGINS, whole=10.0)) == [
        ("convolutions and products", 3.5, ""),
        ("`sum`", 3.0, "b/sum"),
        ("`convert`", 2.0, "d/type"),
        ("others", 0, ""),
        ("copies", 1.5, ""),
        ("the device waits", 1.0, ""),
    ]


def test_a_step_is_profiled(results, capsys):
    assert benchmark.main(["profile", "--network", "resnet10_small", "--batch", "2"]) == 0
    result = json.loads((results / "profile_cpu.json").read_text())
    assert sum(row["seconds"] for row in result["rows"]) == pytest.approx(result["seconds"])
    assert all(row["seconds"] >= 0 for row in result["rows"]) and result["rows"][0]["share"] > 0.2
    assert any("reduce_sum" in row["mostly"] for row in result["rows"])  # of BatchNorm
    assert "| convolutions and products |" in capsys.readouterr().out


def test_starts_of_what_is_no_checkout_are_refused(tmp_path, capsys):
    assert benchmark.main(["starts", "--before", str(tmp_path)]) == 2
    assert "is no checkout of afa_jax" in capsys.readouterr().err


@pytest.mark.slow
def test_starts_are_measured_here_and_in_another_checkout(results):
    root = str(Path(__file__).parents[2])
    assert benchmark.main(["starts", "--network", "resnet10_small", "--repeats", "1", "--before", root]) == 0
    result = json.loads((results / "starts_cpu.json").read_text())
    assert [len(row) for row in result["table"]] == [5] * 4
    assert all(row[tree]["first"] > 0 < row[tree]["again"][0] for row in result["rows"] for tree in ("now", "before"))
