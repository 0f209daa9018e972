"""The processes of one run, one a host: how they find each other, who speaks, and what happens when one is gone.

All of this is JAX's own coordination service. Its store of keys has no public name, and nothing else can make hosts
agree without a device's collective, which ends with an error where one host works for minutes and the others wait.
"""

import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import jax
from jax._src import distributed

from afa_jax.errors import UserError

LOST = 76
"""The exit status where another host is gone."""
_HEARTBEAT_SECONDS = 30
"""After so long without a sign of life a host is taken for dead."""
SIGN = ".hosts"
"""The file by which hosts find out whether a folder is the same one."""
_LISTEN_SECONDS = 1
"""Between two looks whether another host has left with a reason."""
_LOOK_SECONDS = 0.05
"""Between two looks whether the others have come."""
_PATIENCE_SECONDS = 60
"""For what another host has written to become visible here; NFS remembers for so long that a file was not there."""
_leaving = False
_GONE = (
    "afa_jax: JAX has ended this process, most likely because another host is gone. Start the same command on all "
    "hosts again; it goes on from the last checkpoint."
)
# Where a launcher says of how many processes it has started this one.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_said = itertools.count()
T = TypeVar("T")


def join(
    distributed_run: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes, if arguments or environment name any; to be called before JAX is used.

    What is not given JAX finds out itself on SLURM, Open MPI, TPU pods and Kubernetes.

    Args:
      distributed_run: there are others, although neither the other arguments nor the environment say so.
      coordinator_address: `<address>:<port>` of the first process.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: they cannot be joined.
    """
    given = (coordinator_address, num_processes, process_id)
    if not (distributed_run or any(value is not None for value in given) or _launched_with_others()):
        return
    # SIGTERM is the run's own affair; JAX's handler would take it away.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (ValueError, TypeError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"The other processes cannot be joined: {first_line.rstrip('.')}. Give --coordinator_address, "
            "--num_processes and --process_id, or start them with a launcher that JAX knows."
        ) from error
    if count() > 1:
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGABRT, _ABORTED)
        threading.Thread(target=_listen, name="hosts", daemon=True).start()


def _launched_with_others() -> bool:
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    counts = [int(os.environ[name]) for name in _COUNTS if os.environ.get(name, "").isdigit()]
    return "JAX_COORDINATOR_ADDRESS" in os.environ or max([workers, *counts]) > 1


def count() -> int:
    return distributed.global_state.num_processes or 1


def first() -> bool:
    """Whether this host is the one that speaks and writes."""
    return not distributed.global_state.process_id


def agreed(decide: Callable[[], T]) -> T:
    """What the first host decides, on every host; only there `decide` is called.

    The hosts must come to their calls in the same order. A host may wait for as long as it takes; if the first fails,
    it is ended.

    Args:
      decide: gives a value made of JSON's types.
    """
    if count() == 1:
        return decide()
    key = f"afa_jax/said/{next(_said)}/"
    if first():
        _store().key_value_set(f"{key}0", json.dumps(decide()))
    while not (said := dict(_store().key_value_dir_get(key))):  # not in one call, which no signal would end
        time.sleep(_LOOK_SECONDS)
    return json.loads(said.popitem()[1])


def check_alike(**values: str) -> None:
    """Refuses values that are not the same on all hosts.

    Raises:
      UserError: one is another than on the first host.
    """
    for what, value in values.items():
        if agreed(lambda value=value: value) != value:
            raise UserError(f"This host and the first differ in their {what}: make them alike.")
    _meet()


def check_shared(folder: Path) -> None:
    """Refuses a folder that exists, but is not the same one on all hosts.

    Raises:
      UserError: this host does not see what the first has written.
    """
    if count() == 1:
        return
    sign = folder / SIGN

    def write() -> str:
        token = uuid4().hex
        sign.write_text(token)
        return token

    token = agreed(write)
    _patiently(lambda: sign.exists() and sign.read_text() == token, folder)
    _meet()
    if first():
        sign.unlink(missing_ok=True)


def _meet() -> None:
    """Goes on when all hosts have come here."""
    if count() > 1:
        place = f"afa_jax/met/{next(_said)}/"
        _store().key_value_set(f"{place}{distributed.global_state.process_id}", "")
        while len(_store().key_value_dir_get(place)) < count():
            time.sleep(_LOOK_SECONDS)


def wait_for(file: Path, digest: str) -> None:
    """Until a file that the first host has written is there, as it has written it.

    Args:
      digest: the sha256 of what is in it.

    Raises:
      UserError: it does not come.
    """
    _patiently(lambda: file.exists() and sha256(file.read_bytes()).hexdigest() == digest, file.parent)


def _patiently(seen: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not seen():  # a network's file system may show late what another host has written
        if time.monotonic() > deadline:
            raise UserError(
                f"{folder} is not the same folder on all hosts: put it on a file system that they share (--workdir; "
                "for a source network that is trained here, AFA_JAX_CACHE too)."
            )
        time.sleep(0.2)


def leave(status: int, sentence: str) -> NoReturn:
    """Ends this process, and with it the others, who give `sentence` as the reason."""
    global _leaving
    _leaving = True
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        index = distributed.global_state.process_id
        _store().key_value_set(f"afa_jax/left/{index}", json.dumps([status, sentence]))
        if first():  # who keeps the store; the others must have read it
            time.sleep(3 * _LISTEN_SECONDS)
    finally:
        os._exit(status)  # JAX would wait for the others at the end, and they wait for this one elsewhere


def wait_for_verdict() -> None:
    """Waits to be ended because of another host that is gone, after an error that may come from that."""
    time.sleep(_HEARTBEAT_SECONDS + 15)


def _listen() -> None:
    """Ends this process when another has left with a reason."""
    while True:
        time.sleep(_LISTEN_SECONDS)
        try:
            left = _store().key_value_dir_get("afa_jax/left/")
        except Exception:  # it may be the end of the first host, of which `_ABORTED` tells, or pass
            continue
        for key, reason in left:
            index = int(key.rsplit("/", 1)[-1])
            if index != distributed.global_state.process_id and not _leaving:
                status, sentence = json.loads(reason)
                _end(status, f"afa_jax: host {index} has stopped: {sentence}")


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(_: int) -> None:
    """JAX ends a process with abort() when a host is gone, and asks nobody; this is the way to say so in a sentence."""
    _end(LOST, _GONE)


def _end(status: int, sentence: str) -> NoReturn:
    os.write(2, f"{sentence}\n".encode())
    os._exit(status)


def _store() -> Any:
    return distributed.global_state.client
