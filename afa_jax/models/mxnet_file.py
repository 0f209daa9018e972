"""Reads MXNet's weight files (`.params`) without MXNet, which is no longer maintained.

A file is what `mx.nd.save` wrote of a dictionary, all little-endian: the number 0x112 and a reserved one, 8 bytes each;
how many arrays there are, and the arrays; how many names, and the names with their lengths. Arrays have been written in
four ways, of which a first number tells: three of them it marks, and in the oldest one it is the number of dimensions.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from afa_jax.errors import UserError
from afa_jax.models.restricted_pickle import Clipped

DTYPES: dict[int, Any] = {
    0: np.float32,
    1: np.float64,
    2: np.float16,
    3: np.uint8,
    4: np.int32,
    5: np.int8,
    6: np.int64,
}
_MAGIC = 0x112
_WITH_LONG_SHAPES, _WITH_STORAGE_TYPE, _WITH_NUMPY_SHAPES = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_MOST_DIMENSIONS = 32
_PREFIXES = ("arg:", "aux:")


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name, without the `arg:` and `aux:` of parameters and statistics.

    Raises:
      UserError: no file of this format, a truncated or damaged one, or one with sparse arrays, numbers of an unknown
        type, or without names.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(Clipped(file, size), size)
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (EOFError, ValueError) as error:
        raise UserError(
            f"{path} is no whole MXNet file ({error}): it is damaged, or was not fetched to its end."
        ) from error


def _read(file: Clipped, size: int) -> dict[str, np.ndarray]:
    if size < 16 or _numbers(file, "Q")[0] != _MAGIC:
        raise UserError("it is no MXNet file")
    _numbers(file, "Q")  # reserved
    arrays = [_array(file) for _ in range(_count(file, size))]
    names = [_name(file) for _ in range(_count(file, size))]
    if file.tell() != size:
        raise ValueError("it goes on behind its end")
    if not names and arrays:
        raise UserError("its arrays have no names")
    if len(names) != len(arrays):
        raise ValueError(f"{len(arrays)} arrays and {len(names)} names")
    state = dict(zip(names, arrays, strict=True))
    if len(state) != len(arrays):
        raise ValueError("a name that is there twice")
    return state


def _array(file: Clipped) -> np.ndarray:
    (kind,) = _numbers(file, "I")
    if kind in (_WITH_STORAGE_TYPE, _WITH_NUMPY_SHAPES) and _numbers(file, "i") != (0,):
        raise UserError("it has a sparse array, which no network of the zoo has")
    if kind in (_WITH_LONG_SHAPES, _WITH_STORAGE_TYPE, _WITH_NUMPY_SHAPES):
        (dimensions,) = _numbers(file, "i")
        shape = _numbers(file, f"{_small(dimensions)}q")
    else:
        shape = _numbers(file, f"{_small(kind)}I")
    if not shape and kind != _WITH_NUMPY_SHAPES:
        raise ValueError("an array that was never filled")
    _numbers(file, "2i")  # the device on which it was
    (flag,) = _numbers(file, "i")
    if flag not in DTYPES:
        raise UserError(f"it has numbers of a type that cannot be read ({flag})")
    if min(shape, default=0) < 0:
        raise ValueError("a negative size")
    dtype = np.dtype(DTYPES[flag]).newbyteorder("<")
    data = np.frombuffer(file.exactly(math.prod(shape) * dtype.itemsize), dtype)
    return data.reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _name(file: Clipped) -> str:
    (length,) = _numbers(file, "Q")
    name = file.exactly(length).decode()
    return name[4:] if name.startswith(_PREFIXES) else name


def _count(file: Clipped, size: int) -> int:
    (count,) = _numbers(file, "Q")
    if count > size:  # each takes up more than a byte
        raise ValueError("more arrays than the file has room for")
    return count


def _small(dimensions: int) -> int:
    if not 0 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"an array of {dimensions} dimensions")
    return dimensions


def _numbers(file: Clipped, kind: str) -> tuple[int, ...]:
    return struct.unpack(f"<{kind}", file.exactly(struct.calcsize(f"<{kind}")))
