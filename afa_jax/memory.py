"""How this process deals with the machine's memory."""

import ctypes
import sys

# malloc.h's numbers of the parameters
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Lets a process that trains keep the memory it has freed, in place of giving it back to the system.

    A compiled step takes its working memory anew each time, a gigabyte or more, and the system hands it out page by
    page, cleared, which takes long on a CPU. For a process of one's own, before JAX is used: it holds what it needed
    at most until it ends.

    Returns:
      Whether the C library is one that can (glibc's, on Linux).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and all(mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))))
