"""What the commands share: settings in place of others, and how what went wrong ends."""

import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from afa_jax.command_line import guarded, override
from afa_jax.config import default
from afa_jax.errors import UserError


def test_settings_in_place_of_others():
    config = ConfigDict(default().to_dict())
    changed = override(config, ["--config.data.name=letters", "--config.steps=3"])
    assert (changed.data.name, changed.steps, changed.recipe) == ("letters", 3, "afa")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("--config.data.nam=x", "There is no setting config.data.nam; did you mean"),
        ("--config.steps=x", "config.steps=x"),
        ("--nothing", "Unknown command line flag 'nothing'"),
        ("stray", "The argument 'stray' means nothing here"),
    ],
)
def test_wrong_settings(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        override(default(), [setting])


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("Mend it."), 2, "x: Mend it.\n"),
        (KeyboardInterrupt(), 130, "x: stopped.\n"),
        (PermissionError(13, "Permission denied", "f"), 2, "x: f cannot be written or read: Permission denied.\n"),
        (FileExistsError(17, "File exists", "f"), 2, "x: f cannot be written or read: it is no folder.\n"),
    ],
)
def test_how_it_ends(capsys, error, status, sentence):
    assert guarded("x", raising(error)) == status and capsys.readouterr().err == sentence


def test_faults_of_our_own_keep_their_traceback():
    for error in (ValueError("x"), OSError(5, "Input/output error", "f")):
        with pytest.raises(type(error)):
            guarded("x", raising(error))
    assert guarded("x", lambda: 0) == 0


def test_a_reader_who_has_seen_enough():
    code = "from afa_jax.command_line import guarded\nimport sys\n"
    code += "def work():\n while True: print('a line')\nsys.exit(guarded('x', work))"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")
