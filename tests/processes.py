"""Runs in processes of their own: with several devices, on several hosts, stopped by signals."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def config(folder, recipe="afa", **changes):
    """A config file for `tiny.config` with these changes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.py"
    file.write_text(f"from tests import tiny\ndef get_config(): return tiny.config({recipe!r}, **{changes!r})\n")
    return file


def start(config, workdir, *flags, devices=1, largest_file=None, sabotage=""):
    """The command of a run; what it says goes to `<workdir>.said`, or that of process k to `….said<k>`."""
    program = ("-c", f"import sys\nfrom afa_jax.main import main\n{sabotage}\nsys.exit(main(sys.argv))")
    number = next((flag.split("=")[1] for flag in flags if flag.startswith("--process_id=")), "")
    # What the process says goes through another, which began before the limit: it would hold for that file too.
    shell = 'exec > >(cat) 2>&1; ulimit -f $0; exec "$@"'
    limit = ("bash", "-c", shell, str(largest_file // 1024)) if largest_file else ()
    with Path(f"{workdir}.said{number}").open("w") as said:
        return subprocess.Popen(
            [*limit, sys.executable, *program, f"--config={config}", f"--workdir={workdir}", *flags],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
            stdout=said,
            stderr=said,
        )


def start_hosts(number, config, workdir, *flags, own=None, sabotage=None):
    """As many processes as hosts, on this machine.

    Args:
      own: flags of single hosts, by their number.
      sabotage: what single hosts execute before they begin.
    """
    own, sabotage = own or {}, sabotage or {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joint = (f"--coordinator_address={address}", f"--num_processes={number}", *flags)
    return [
        start(config, workdir, *joint, f"--process_id={k}", *own.get(k, ()), sabotage=sabotage.get(k, ""))
        for k in range(number)
    ]


def wait(*processes, seconds=900):
    """The exit statuses."""
    deadline = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def said(workdir, number=""):
    return Path(f"{workdir}.said{number}").read_text()


def wait_for_lines(workdir, lines, *processes, seconds=900):
    """Until the journal has so many lines, while the processes work."""
    journal, deadline = workdir / "metrics.jsonl", time.monotonic() + seconds
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
        assert all(process.poll() is None for process in processes), "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
