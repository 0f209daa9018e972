"""SIGTERM: the step is finished, its state saved, and the process ends with a status of its own.

Clusters send it before they take a machine away (SLURM with `--signal=TERM@60`, Kubernetes, spot instances).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

STOPPED = 75
"""The exit status of a run that was asked to stop: EX_TEMPFAIL, start it again."""


class Stopped(BaseException):
    """The process was asked to stop; nothing that a run has saved is lost."""


_asked = _deferred = _raised = False


def listen(*others: signal.Signals) -> None:
    """From now on SIGTERM, and other signals, raise `Stopped`, at once or where `deferred` ends."""
    for number in (signal.SIGTERM, *others):
        signal.signal(number, _hear)


def asked() -> bool:
    """Whether the signal has come."""
    return _asked


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, SIGTERM raises nothing; who works here looks at `asked` where it is good to stop."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before
    if _asked and not _deferred:
        _stop()


def _hear(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    if not _deferred and not _raised:  # one is enough: a second would cut what the first has begun to end
        _stop()


def _stop() -> NoReturn:
    global _raised
    _raised = True
    raise Stopped
