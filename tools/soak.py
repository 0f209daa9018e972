"""Kills a run again and again, and compares its end with that of a run that was left alone.

    python tools/soak.py --kills 25
    python tools/soak.py --config configs/cub200_2011.py --kills 100 -- --config.data.per_class=10

Each kill is SIGKILL or SIGTERM, at a random moment from the start of a process to well into its training. Everything
must come out as if nothing had happened: summary, journal and saved model, to the last digit. On a GPU that holds with
XLA_FLAGS=--xla_gpu_deterministic_ops=true only.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from afa_jax.training.preemption import STOPPED

ROOT = Path(__file__).resolve().parents[1]
# What differs between runs of the same numbers.
DAILY = ("train_images_per_second", "waiting_for_data_share", "finished", "command")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.py"))
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--workdir", type=Path, default=Path("runs/soak"))
    parser.add_argument("--seed", type=int, default=None, help="of the kills; the default is another each time")
    parser.add_argument("flags", nargs="*", help="settings of the run, after --")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 16) if arguments.seed is None else arguments.seed
    flags = ["--config.recipe=afa", "--config.seeds=1", "--config.checkpoint_every=5", "--config.log_every=5"]
    flags += arguments.flags
    command = [sys.executable, "-m", "afa_jax.main", "--config", arguments.config, *flags]
    undisturbed, disturbed = arguments.workdir / "undisturbed", arguments.workdir / "disturbed"
    for workdir in (undisturbed, disturbed):
        shutil.rmtree(workdir, ignore_errors=True)

    started = time.monotonic()
    if finish(command, undisturbed) != 0:
        return 2
    seconds = time.monotonic() - started
    print(f"The undisturbed run took {seconds:.0f} s. Kills by seed {seed}:", flush=True)
    chance, kinds, steps, starts = random.Random(seed), Counter(), [], 0
    while sum(kinds.values()) < arguments.kills:
        starts += 1
        process = start(command, disturbed)
        begun = lines(disturbed)
        if chance.random() < 0.8:  # at work; the others while it starts
            while process.poll() is None and lines(disturbed) <= begun:
                time.sleep(0.01)
        time.sleep(chance.uniform(0, seconds / arguments.kills / 4))
        kind = chance.choice((signal.SIGKILL, signal.SIGTERM))
        process.send_signal(kind)
        status = process.wait()
        kinds[kind.name] += status != 0
        steps.append(lines(disturbed))
        if status == 0:
            print(f"It ended before {arguments.kills} kills: give it more steps.")
            break
        if status not in (-signal.SIGKILL, -signal.SIGTERM, STOPPED):
            print(f"After kill {len(steps)} it ended with status {status}.")
            return 1
    if finish(command, disturbed) != 0:
        return 1
    told = ", ".join(f"{number} × {name}" for name, number in sorted(kinds.items()))
    print(f"{sum(kinds.values())} kills ({told}) in {starts} starts; lines of the journal at each: {steps}")
    differing = [name for name, read in FILES.items() if read(disturbed) != read(undisturbed)]
    print(f"They differ in {', '.join(differing)}." if differing else "Summary, journal and model are the same.")
    return 1 if differing or sum(kinds.values()) < arguments.kills else 0


def start(command: list[str], workdir: Path) -> subprocess.Popen[bytes]:
    workdir.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*command, "--workdir", str(workdir)], cwd=ROOT, stdout=log, stderr=log)


def finish(command: list[str], workdir: Path) -> int:
    status = start(command, workdir).wait()
    if status != 0:
        print(workdir.with_suffix(".log").read_text()[-2000:])
    return status


def lines(workdir: Path) -> int:
    journal = workdir / "metrics.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def summary(workdir: Path) -> dict[str, object]:
    values = json.loads((workdir / "summary.json").read_text())
    return {key: value for key, value in values.items() if key not in DAILY}


FILES = {
    "summary.json": summary,
    "metrics.jsonl": lambda workdir: (workdir / "metrics.jsonl").read_text(),
    "model": lambda workdir: {f.name: f.read_bytes() for f in sorted((workdir / "model").iterdir())},
}

if __name__ == "__main__":
    sys.exit(main())
