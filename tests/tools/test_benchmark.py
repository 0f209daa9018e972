"""The benchmark's own arithmetic and files, on small networks; it measures nothing here that a test would judge."""

import json
from pathlib import Path

import benchmark
import changes
import delta_speed
import growth
import jax
import numpy as np
import publish_comparison
import pytest
import step_process

from afa_jax import compilation
from afa_jax.models import zoo
from tests.data.archives import picture


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
    others = ("BatchNorm", "XLA's options", changes.PIECES, changes.MEMORY)
    assert measured == ["1×1 convolutions", "what is computed once", *others]  # all that it has
    assert all(len(times) == 1 for row in rows for times in row["resnet10_small"].values())
    assert capsys.readouterr().out.count("in place of") == 2 * len(measured)


@pytest.mark.parametrize(
    ("change", "call"),
    {
        "depthwise convolutions": lambda f: f(normal(2, 9, 9, 4), normal(3, 3, 1, 4), (2, 2), ((1, 1), (1, 1))),
        "1×1 convolutions": lambda f: f(normal(2, 5, 5, 4), normal(4, 6)),
        "Winograd's way": lambda f: f(normal(2, 9, 8, 4), normal(3, 3, 4, 6), ((1, 1), (0, 1))),
        "first convolutions": lambda f: f(normal(2, 9, 8, 3), normal(7, 7, 3, 6), 2, ((3, 3), (3, 3))),
        "max-pooling": lambda f: f(normal(2, 9, 9, 4), 1),
        "what is computed once": lambda f: f(normal(3, 4)),
        "BatchNorm": lambda f: f(use_running_average=False).init_with_output(jax.random.key(0), normal(4, 5, 5, 3))[0],
    }.items(),
)
def test_what_takes_the_place_of_a_change_computes_the_same(change, call):
    module, name, theirs = changes.OWN[change]
    expected = call(theirs)
    np.testing.assert_allclose(call(getattr(module, name)), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "network"),
    {
        "depthwise convolutions": "mobilenet_v2",
        "1×1 convolutions": "resnet18",
        "Winograd's way": "resnet18",
        "max-pooling": "resnet18",
        "what is computed once": "resnet10_small",
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
