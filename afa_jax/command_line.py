"""Reads the flags of the command line and the config file that they name."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from afa_jax.config import known_keys, settle, unknown_key
from afa_jax.errors import UserError, disk_fault
from afa_jax.settings import Experiment


def read_experiment(config: str, overrides: Sequence[str] = ()) -> Experiment:
    """The settled experiment of a config file (`configs/x.py`, `configs/x.py:network`).

    Args:
      overrides: settings in its place, `--config.key=value`.

    Raises:
      UserError: the file, or a setting in it or among `overrides`, is wrong.
    """
    return settle(parse(["", f"--config={config}", *overrides])[0])


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path | None, str, dict[str, Any]]:
    """Reads the flags.

    Returns:
      The config, the workdir if one is given, a name for the config (its file's, and what the file is given:
      `configs/x.py:network`), and what `hosts.join` takes.

    Raises:
      UserError: a flag, the config file, or a setting in either is wrong.
    """
    _refuse_unknown_keys(argv[1:])
    values = flags.FlagValues()
    sys.modules.pop("config_config", None)  # where the names of the last config file are left
    try:
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=list(argv))
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        flags.DEFINE_bool("distributed", False, "", flag_values=values)
        flags.DEFINE_string("coordinator_address", None, "", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("process_id", None, "", lower_bound=0, flag_values=values)
        rest = values(list(argv))[1:]
    except Exception as error:  # whatever a config file may raise while it is read
        raise _wrong_flags(error) from error
    if rest:
        raise UserError(f"The argument {rest[0]!r} means nothing here; settings are given as --config.key=value.")
    if values["config"].value is None:
        raise UserError("No config is given: add --config configs/quickstart.py.")
    file, _, argument = config_flags.get_config_filename(values["config"]).partition(":")
    if not Path(file).is_file():
        raise UserError(f"There is no config file {file}.")
    try:
        config = values.config
        config.to_dict()
    except Exception as error:
        raise UserError(f"The config file {file} is wrong: {_one_line(error)}") from error
    others = {key: values[key].value for key in ("coordinator_address", "num_processes", "process_id")}
    workdir = Path(values.workdir) if values.workdir else None
    name = f"{Path(file).stem}-{argument}" if argument else Path(file).stem
    return config, workdir, name, {"distributed_run": values.distributed, **others}


def override(config: ConfigDict, settings: Sequence[str]) -> ConfigDict:
    """A config with some of its settings changed.

    Args:
      settings: as on the command line, `--config.key=value`.

    Raises:
      UserError: one is unknown, or wrong.
    """
    _refuse_unknown_keys(settings)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *settings])
        rest = values(["", *settings])[1:]
        changed = values.config
    except Exception as error:  # as in `parse`
        raise _wrong_flags(error) from error
    if rest:
        raise UserError(f"The argument {rest[0]!r} means nothing here; settings are given as --config.key=value.")
    return changed


def guarded(name: str, work: Callable[[], int]) -> int:
    """The exit status of a command's work: what a person can mend is said in one sentence, with status 2."""
    try:
        return work()
    except KeyboardInterrupt:
        status, sentence = 130, "stopped."
    except BrokenPipeError:  # whoever reads what is said, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        status, sentence = 2, str(error)
    except OSError as error:
        fault = "it is no folder" if isinstance(error, FileExistsError) else disk_fault(error)
        if fault is None:
            raise
        status, sentence = 2, f"{error.filename or 'A file'} cannot be written or read: {fault}."
    print(f"{name}: {sentence}", file=sys.stderr)
    return status


def positive(text: str) -> int:
    """A number of at least 1, for argparse.

    Raises:
      ValueError: it is none.
    """
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _refuse_unknown_keys(arguments: Sequence[str]) -> None:
    known = known_keys()
    for argument in arguments:
        dashes, dot, key = argument.split("=")[0].partition("config.")
        if dashes in ("-", "--") and dot and key not in known:
            raise unknown_key(key)


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
