"""How this process deals with the machine's memory."""

import ctypes
import os
import re
import sys

import jax

# malloc.h's numbers of the parameters
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# What `malloc_info` tells of the free pieces of like size; it counts a flag in their lowest bit.
_PIECES = re.compile(rb'<size from="(\d+)" to="\d+" total="\d+" count="(\d+)"')
COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX calls the time that a compiler has taken, or a program from the cache."""


def keep_freed() -> bool:
    """Lets a process that trains keep the memory it has freed, in place of giving it back to the system.

    A compiled step takes its working memory anew each time, a gigabyte or more, and the system hands it out page by
    page, cleared, which takes long on a CPU. For a process of one's own, before JAX is used: it holds what it needed
    at most until it ends. What a compiler leaves is set aside (`set_aside_fragments`) whenever one has taken a second.

    Returns:
      Whether the C library is one that can (glibc's, on Linux).
    """
    libc = _glibc()
    if not libc or not all(libc.mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))):
        return False
    jax.monitoring.register_event_duration_secs_listener(_after)
    return True


def set_aside_fragments() -> int:
    """Takes the free pieces of memory that are left between what a compiler keeps, for good; returns how many.

    The matrix products of a CPU ask for a little memory thousands of times a step, and for each the C library goes
    through its free pieces in the order of their size, while other threads wait. A compiler leaves tens of thousands.
    Their pages are given back to the system first. Nothing happens where the C library is not glibc, or where it has
    more than one arena, as in a process that has not begun with `keep_freed`.
    """
    libc = _glibc()
    if not libc:
        return 0
    libc.malloc_trim(0)
    whole = 0
    # What is left of a piece that is larger than the smallest of its kind is a smaller piece, for the next time.
    for _ in range(9):
        taken = 0
        for smallest, count in reversed(free_pieces(libc)):
            for _ in range(count):
                libc.malloc(smallest - ctypes.sizeof(ctypes.c_size_t))
            taken += count
        whole += taken
        if taken < 100:
            break
    return whole


def free_pieces(libc: ctypes.CDLL) -> list[tuple[int, int]]:
    """By kinds of size, ascending: the smallest one's bytes with its head, and how many there are.

    Only those that are searched: each smaller size has a list of its own, and the few larger pieces are memory of
    steps, which use it again.
    """
    file = os.memfd_create("pieces")
    try:
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        told = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    if told.count(b"<heap nr=") > 1:  # of which a thread has but its own
        return []
    kinds = [(int(size) & ~1, int(count)) for size, count in _PIECES.findall(told)]
    return [(size, count) for size, count in kinds if 1 << 10 <= size < 1 << 19]


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not libc or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_info"):
        return None
    libc.fdopen.restype = ctypes.c_void_p
    return libc


def _after(event: str, duration_secs: float, **_: object) -> None:
    if event == COMPILED and duration_secs > 1:
        set_aside_fragments()
