"""What the user can mend is said in one sentence; everything else keeps its traceback."""

import difflib
import errno
import os
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; `main` prints its one sentence and exits with status 2.

    What a file holds may be part of the sentence; line ends and escape codes in it are spelt out.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class DivergedError(UserError):
    """A loss or gradient stopped being a finite number; the last good checkpoint is kept."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the near ones among `known`, or all of them where they are few."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    # A dotted path is often right but for its first parts: "alpha" means "methods.ast.alpha".
    near += [k for k in known if k.endswith("." + name) and k not in near]
    if near:
        return f"did you mean {', '.join(near[:8])}?"
    if len(known) <= 24:
        return f"choose from {', '.join(known)}."
    return f"there are {len(known)}, for example {', '.join(known[:6])}."


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EFBIG)


def disk_fault(error: BaseException | None) -> str | None:
    """What the disk has against it, if that is the cause of an error: "No space left on device", …

    The cause may be named in the text alone, as by libraries whose files are written by other languages.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error.strerror
        for code in _DISK:
            if os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None
