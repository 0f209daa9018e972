"""`python -m afa_jax.main --config configs/quickstart.py [--workdir D] [--config.key=value …]`

Trains what the config says, evaluates it, and leaves everything in the workdir. Given again, it goes on where it
stopped, or finds the finished run. A config of several recipes or seeds ends with a table. The default workdir is
`runs/<config>/<recipe>/seed<n>`, and `runs/<config>` for several.

Exit status: 0 done; 2 for what you can mend, said in one sentence; a traceback is our fault.
"""

import errno
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from afa_jax.comparison import run_all
from afa_jax.config import default, known_keys, settle, unknown_key
from afa_jax.errors import UserError
from afa_jax.experiment import run

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path | None, str]:
    """Reads the flags: (the config, the workdir if one is given, the config file's name without its ending).

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
    return config, Path(values.workdir) if values.workdir else None, Path(file).stem


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
        config, workdir, name = parse(argv)
        experiment = settle(config)
        single = len(experiment.recipes) == 1 and experiment.seeds == 1
        if single and workdir:
            run(experiment, workdir)
        elif single:
            run(experiment, Path("runs") / name / experiment.recipe / f"seed{experiment.seed}")
        else:
            run_all(experiment, workdir or Path("runs") / name)
    except UserError as error:
        print(f"afa_jax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(f"afa_jax: {error.filename} cannot be written or read: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("afa_jax: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
