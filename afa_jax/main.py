"""`python -m afa_jax.main --config configs/quickstart.py [--workdir D] [--config.key=value …]`

Trains what the config says, evaluates it, and leaves everything in the workdir. Given again, it goes on where it
stopped, or finds the finished run. A config of several recipes or seeds ends with a table. The default workdir is
`runs/<config>/<recipe>/seed<n>`, and `runs/<config>` for several.

Several hosts: start the same command on each, with a launcher that JAX knows (SLURM, Open MPI; on TPU pods and
Kubernetes add --distributed), or with --coordinator_address=<address>:<port> --num_processes=<n> --process_id=<k>.

Exit status: 0 done; 2 for what you can mend, said in one sentence; 75 stopped by SIGTERM, all saved, and 76 stopped
because another host is gone: the same command goes on; a traceback is our fault.
"""

import json
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from afa_jax import __version__, compilation, files, hosts, memory
from afa_jax.command_line import parse
from afa_jax.comparison import run_all
from afa_jax.config import default, known_keys, settle
from afa_jax.errors import UserError, disk_fault
from afa_jax.experiment import run
from afa_jax.settings import to_json
from afa_jax.training import preemption


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit status."""
    try:
        preemption.listen()
        _run(argv)
        return 0
    except preemption.Stopped:
        status, sentence = preemption.STOPPED, "stopped by SIGTERM; the same command goes on where this one ended."
    except KeyboardInterrupt:
        status, sentence = 130, "stopped; the same command goes on from the last checkpoint."
    except UserError as error:
        status, sentence = 2, str(error)
    except Exception as error:
        fault = disk_fault(error) if isinstance(error, OSError) else None
        if fault:
            file = getattr(error, "filename", None) or "A file of the run"
            status, sentence = 2, f"{file} cannot be written or read: {fault}."
        elif hosts.count() == 1:
            raise
        else:
            traceback.print_exc()
            hosts.wait_for_verdict()  # it may come from another host that is gone
            status, sentence = 1, "a fault of our own, which the traceback on that host tells."
    print(f"afa_jax: {sentence}", file=sys.stderr)
    if hosts.count() > 1:
        hosts.leave(status, sentence)
    return status


def _run(argv: Sequence[str]) -> None:
    if {"--help", "-h", "-help"} & set(argv):
        print(f"{__doc__}\nSettings and their defaults (afa_jax/config.py says what they mean):\n")
        print("\n".join(f"  --config.{key}={default()[key]!r}" for key in known_keys()))
        return
    config, workdir, name, others = parse(argv)
    hosts.join(**others)
    experiment = settle(config)
    hosts.check_alike(settings=json.dumps([__version__, to_json(experiment)]))
    command = shlex.join(["python", "-m", "afa_jax.main", *argv[1:]])
    single = len(experiment.recipes) == 1 and experiment.seeds == 1
    if single:
        own = Path("runs") / name / experiment.recipe / f"seed{experiment.seed}"
        run(experiment, workdir or own, command=command)
    else:
        run_all(experiment, workdir or Path("runs") / name, command)


if __name__ == "__main__":
    memory.keep_freed()
    memory.collect_seldom()
    compilation.keep_programs(files.cache_folder() / "programs")
    sys.exit(main(sys.argv))
