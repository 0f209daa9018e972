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
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from afa_jax import __version__, hosts
from afa_jax.comparison import run_all
from afa_jax.config import default, known_keys, settle, to_json, unknown_key
from afa_jax.errors import UserError, disk_fault
from afa_jax.experiment import run
from afa_jax.training import preemption


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path | None, str, dict[str, Any]]:
    """Reads the flags.

    Returns:
      The config, the workdir if one is given, the config file's name without its ending, and what `hosts.join` takes.

    Raises:
      UserError: a flag, the config file, or a setting in either is wrong.
    """
    known = known_keys()
    for argument in argv[1:]:
        dashes, dot, key = argument.split("=")[0].partition("config.")
        if dashes in ("-", "--") and dot and key not in known:
            raise unknown_key(key)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=list(argv))
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
        flags.DEFINE_bool("distributed", False, "", flag_values=values)
        flags.DEFINE_string("coordinator_address", None, "", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("process_id", None, "", lower_bound=0, flag_values=values)
        rest = values(list(argv))[1:]
    except Exception as error:  # whatever a config file may raise while it is read
        raise _wrong_flags(error) from error
    if values.help:
        print(f"{__doc__}\nSettings and their defaults (afa_jax/config.py says what they mean):\n")
        print("\n".join(f"  --config.{key}={default()[key]!r}" for key in known))
        raise SystemExit(0)
    if rest:
        raise UserError(f"The argument {rest[0]!r} means nothing here; settings are given as --config.key=value.")
    if values["config"].value is None:
        raise UserError("No config is given: add --config configs/quickstart.py.")
    file = config_flags.get_config_filename(values["config"])
    if not Path(file).is_file():
        raise UserError(f"There is no config file {file}.")
    try:
        config = values.config
        config.to_dict()
    except Exception as error:
        raise UserError(f"The config file {file} is wrong: {_one_line(error)}") from error
    others = {key: values[key].value for key in ("coordinator_address", "num_processes", "process_id")}
    workdir = Path(values.workdir) if values.workdir else None
    return config, workdir, Path(file).stem, {"distributed_run": values.distributed, **others}


def _wrong_flags(error: Exception) -> UserError:
    # A key that a config file makes up is answered with a page of all settings; the key alone is what matters.
    made_up = re.search(r'Key "(\w+)" does not exist', str(error))
    if made_up:
        return unknown_key(made_up[1])
    return UserError(f"The command line or its config file is wrong: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    # What goes wrong inside a config file is told with its whole traceback; the last line says it.
    told = str(error).strip().splitlines()[-1] if "Traceback" in str(error) else str(error)
    return " ".join(told.split()).rstrip(".?") + "."


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
    config, workdir, name, others = parse(argv)
    hosts.join(**others)
    experiment = settle(config)
    hosts.check_alike(settings=json.dumps([__version__, to_json(experiment)]))
    single = len(experiment.recipes) == 1 and experiment.seeds == 1
    if single and workdir:
        run(experiment, workdir)
    elif single:
        run(experiment, Path("runs") / name / experiment.recipe / f"seed{experiment.seed}")
    else:
        run_all(experiment, workdir or Path("runs") / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
