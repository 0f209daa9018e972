"""How this process deals with the machine's memory."""

import ctypes
import gc
import re
import sys
from collections import Counter
from functools import cache

import jax

# malloc.h's numbers of the parameters
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name of the time that it took
# What malloc_info tells of free chunks of like size. It counts a flag in the lowest bit of the size.
_CHUNKS = re.compile(rb'<size from="(\d+)" to="\d+" total="\d+" count="(\d+)"')
_HEAD = ctypes.sizeof(ctypes.c_size_t)


def keep_freed() -> bool:
    """Lets a process that trains keep the memory it has freed, in place of giving it back to the system.

    A compiled step takes its working memory anew each time, a gigabyte or more, and the system hands it out page by
    page, cleared, which takes long on a CPU. For a process of one's own, before JAX is used: it holds what it needed
    at most until it ends. On a CPU it sets aside what a compiler leaves (`set_aside_fragments`).

    Returns:
      Whether the C library is one that can (glibc's, on Linux).
    """
    libc = _glibc()
    if not libc or not all(libc.mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))):
        return False
    _listen()
    return True


def collect_seldom() -> None:
    """Has Python look for garbage less often, among objects that refer to each other in a circle.

    It looks each time that so many more objects were made than freed. Tracing makes many, to be kept, and Python's own
    number, hundreds, has it go through them again and again.
    """
    gc.set_threshold(50_000)


@cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_compiled)


def _compiled(event: str, duration_secs: float, **_: object) -> None:
    # Small programs leave little.
    if event == _COMPILED and duration_secs > 1 and jax.default_backend() == "cpu":
        set_aside_fragments()


def set_aside_fragments() -> None:
    """Takes the small free chunks of memory between what a compiler keeps, for good.

    The matrix products of a CPU ask for some memory (oneDNN's for 74 kB) thousands of times a step, and for each the C
    library goes through its free chunks in the order of their size, while other threads wait. A compiler leaves tens
    of thousands.

    Nothing happens where the C library is not glibc, or has more than one arena, as in a process that has not begun
    with `keep_freed`: a thread is given chunks of its own arena only.
    """
    libc = _glibc()
    if not libc or len(_arenas(libc)) > 1:
        return
    libc.malloc_trim(0)  # gives their pages back
    before = sys.maxsize
    # Of a chunk that is larger than the smallest of its kind a smaller one is left, for the next time.
    while 0 < (count := (kinds := fragments()).total()) < before:
        before = count
        for size in kinds.elements():
            libc.malloc(size - _HEAD)


def fragments() -> Counter[int]:
    """How many free chunks there are of each number of bytes, with its head, as if each were the smallest of its kind.

    Only of those that a search has to go through: glibc's lists of smaller ones hold few sizes each, and the few larger
    ones are the memory of steps, which is used again.
    """
    libc = _glibc()
    told = b"".join(_arenas(libc)) if libc else b""
    # Not a list of them all, which would lie in a chunk that was counted: what is asked of that one would come from a
    # larger one, and so on, at last from the memory of steps.
    kinds = ((int(size) & ~1, int(count)) for size, count in _CHUNKS.findall(told))
    found: Counter[int] = Counter()
    for size, count in kinds:
        if 1 << 14 <= size < 1 << 19:
            found[size] += count
    return found


def _arenas(libc: ctypes.PyDLL) -> list[bytes]:
    """What malloc_info tells of each."""
    text, length = ctypes.c_void_p(), ctypes.c_size_t()
    stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(length))
    if not stream:
        return []
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    told = ctypes.string_at(text, length.value)
    libc.free(text)
    return told.split(b"<heap nr=")[1:]


def _glibc() -> ctypes.PyDLL | None:
    """The C library, of which no call lets other threads of Python run: they might take what was counted."""
    libc = ctypes.PyDLL(None) if sys.platform == "linux" else None
    if not libc or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_info"):
        return None
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.open_memstream.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return libc
