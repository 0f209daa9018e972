"""Several processes, one a host, on this machine: they agree with one, and none is left waiting.

Those of many processes are slow, because each of them starts, traces and compiles by itself.
"""

import signal
import time

import jax
import numpy as np
import pytest

from afa_jax import hosts
from afa_jax.config import settle
from afa_jax.errors import UserError
from afa_jax.experiment import run
from afa_jax.models import weights
from afa_jax.training.journal import read_metrics
from tests import processes, tiny

SETTINGS = {"eval_every": 2, "eval_batch_size": 500}  # 1,767 test images: the last batch is filled up


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(settle(tiny.config(**SETTINGS)), workdir)
    return workdir


def assert_same(workdir, expected):
    """The same run but for rounding, and to the last test image."""
    mine, other = (read_metrics(d / "metrics.jsonl") for d in (workdir, expected))
    assert len(mine) == len(other) == 12
    for found, wanted in zip(mine, other, strict=True):
        assert [found[key] for key in ("stage", "step", "split")] == [wanted[key] for key in ("stage", "step", "split")]
        np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
        assert found["top1"] == wanted["top1"]
    assert tiny.numbers(workdir)["stages"][-1]["last_top1"] == tiny.numbers(expected)["stages"][-1]["last_top1"]
    models = (weights.load(tiny.NETWORK, d / "model") for d in (workdir, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *models)


def killed_and_restarted(number, alone, tmp_path, *flags):
    workdir, config = tmp_path / "run", processes.config(tmp_path, **SETTINGS)
    started = processes.start_hosts(number, config, workdir, *flags)
    processes.wait_for_lines(workdir, 8, *started)  # in the second stage
    started[-1].kill()
    begun = time.monotonic()
    *others, last = processes.wait(*started)
    assert last == -signal.SIGKILL
    assert others == [hosts.LOST] * (number - 1)
    assert time.monotonic() - begun < 60
    for k in range(number - 1):
        assert processes.said(workdir, k).endswith(hosts._GONE + "\n")
    assert not (workdir / "summary.json").exists()

    assert processes.wait(*processes.start_hosts(number, config, workdir, *flags)) == [0] * number
    assert "ast: " not in processes.said(workdir, 0)  # the first stage was not trained again
    assert "top-1" in processes.said(workdir, 0) and "top-1" not in processes.said(workdir, 1)  # the first speaks
    assert_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["jit", "pmap"])
def test_two_hosts_agree_with_one_although_one_is_killed(alone, tmp_path, wrapper):
    killed_and_restarted(2, alone, tmp_path, f"--config.parallel={wrapper}")


@pytest.mark.slow
def test_four_hosts_agree_with_one_although_one_is_killed(alone, tmp_path):
    killed_and_restarted(4, alone, tmp_path)


@pytest.mark.slow
def test_when_the_first_host_dies_the_others_stop_with_a_sentence(tmp_path):
    workdir, config = tmp_path / "run", processes.config(tmp_path, steps=4000)
    started = processes.start_hosts(2, config, workdir)
    processes.wait_for_lines(workdir, 3, *started)
    started[0].kill()
    begun = time.monotonic()
    assert processes.wait(*started) == [-signal.SIGKILL, hosts.LOST]
    assert time.monotonic() - begun < 60
    assert processes.said(workdir, 1).endswith(hosts._GONE + "\n")


@pytest.mark.slow
def test_a_run_of_two_hosts_goes_on_on_one_and_the_other_way_round(alone, tmp_path):
    """SIGTERM to the second host stops both after the same step; one process goes on from what they saved."""
    workdir, config = tmp_path / "run", processes.config(tmp_path, **SETTINGS)
    started = processes.start_hosts(2, config, workdir)
    processes.wait_for_lines(workdir, 2, *started)
    started[1].send_signal(signal.SIGTERM)
    assert processes.wait(*started) == [75, 75]
    assert not (workdir / "summary.json").exists()
    one = processes.start(config, workdir, devices=4)
    processes.wait_for_lines(workdir, 9, one)
    one.send_signal(signal.SIGTERM)
    assert processes.wait(one) == [75]
    assert processes.wait(*processes.start_hosts(2, config, workdir)) == [0, 0]
    assert_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "word"),
    [
        ("--config.learning_rate=0.5", "differ in their settings"),
        (
            "--config.checkpoint_every=7",
            "differ in their settings",
        ),  # no two runs, but hosts that would miss each other
        ("--workdir={elsewhere}", "is not the same folder on all hosts"),
    ],
)
def test_hosts_that_cannot_work_together_all_stop_with_the_reason(tmp_path, own, word):
    workdir, config = tmp_path / "run", processes.config(tmp_path)
    own = own.format(elsewhere=tmp_path / "elsewhere")
    started = processes.start_hosts(2, config, workdir, own={1: (own,)})
    assert processes.wait(*started) == [2, 2]
    assert [word in processes.said(workdir, k) for k in (0, 1)] == [True, True]
    assert not (workdir / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_fault_of_one_host_ends_all(tmp_path, number):
    workdir, config = tmp_path / "run", processes.config(tmp_path)
    fail = (
        "from afa_jax import experiment\ndef fail(*_): raise OSError(5, 'Input/output error')\nexperiment._load = fail"
    )
    begun = time.monotonic()
    started = processes.start_hosts(2, config, workdir, sabotage={number: fail})
    assert processes.wait(*started) == [1, 1]
    assert time.monotonic() - begun < 240  # JAX alone would wait for 300 s at the end
    said = [processes.said(workdir, k) for k in (0, 1)]
    assert "OSError: [Errno 5] Input/output error" in said[number] and "Traceback" not in said[1 - number]
    assert said[1 - number].endswith(
        f"host {number} has stopped: a fault of our own, which the traceback on that host tells.\n"
    )


@pytest.mark.slow
def test_sigterm_to_all_hosts_at_once_costs_nothing(alone, tmp_path):
    """As clusters send it: to each host, not quite at the same moment, and while the state is being written."""
    workdir, config = tmp_path / "run", processes.config(tmp_path, **SETTINGS)
    started = processes.start_hosts(2, config, workdir)
    processes.wait_for_lines(workdir, 2, *started)
    for _ in range(3):
        for process in started:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
    assert processes.wait(*started) == [75, 75]
    assert [f.name for f in (workdir / "checkpoints" / "1-ast").iterdir() if f.name.isdigit()]
    assert processes.wait(*processes.start_hosts(2, config, workdir)) == [0, 0]
    assert_same(workdir, alone)


def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_loaded(tmp_path):
    process = processes.start(processes.config(tmp_path, batch_size=12), tmp_path / "run", devices=8)
    assert processes.wait(process) == [2]
    said = processes.said(tmp_path / "run")
    assert said == "afa_jax: config.batch_size is 12, which 8 devices cannot share equally: set it to 8 or 16.\n"


def test_what_cannot_be_joined_is_told(tmp_path):
    process = processes.start(processes.config(tmp_path), tmp_path / "run", "--num_processes=2", "--process_id=0")
    assert processes.wait(process) == [2]
    said = processes.said(tmp_path / "run", 0)
    assert said.startswith("afa_jax: The other processes cannot be joined: coordinator_address should be defined.")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "others"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # an allocation, in which one process works
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "first:1234"}, True),
    ],
)
def test_the_environment_says_whether_there_are_others(monkeypatch, environment, others):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts._launched_with_others() == others


def test_one_host_agrees_with_itself(tmp_path):
    assert hosts.count() == 1 and hosts.first()
    assert hosts.agreed(lambda: {"a": [1, None]}) == {"a": [1, None]}
    hosts.check_alike(settings="x")
    hosts.check_shared(tmp_path / "not even there")


def test_a_file_that_does_not_come_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(UserError, match="is not the same folder on all hosts"):
        hosts.wait_for(tmp_path / "none", "")
    (tmp_path / "old").write_text("as it was before")
    with pytest.raises(UserError, match="is not the same folder on all hosts"):
        hosts.wait_for(tmp_path / "old", "another digest")
