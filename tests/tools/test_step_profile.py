"""Where the time of a step goes, told from a trace."""

import json

import benchmark
import pytest
import step_profile


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
