"""Writes MXNet's weight files from their description, without MXNet: each of the four ways of an array."""

import struct
from pathlib import Path

import numpy as np

FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
LEGACY, LONG_SHAPES, STORAGE_TYPE, NUMPY_SHAPES = None, 0xF993FAC8, 0xF993FAC9, 0xF993FACA


def array_bytes(array, version=STORAGE_TYPE, *, storage=0, flag=None, shape=None):
    """One array; `storage`, `flag` and `shape` stand in for what is true of it."""
    shape = array.shape if shape is None else shape
    if version is LEGACY:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        head = struct.pack("<I", version)
        head += struct.pack("<i", storage) if version in (STORAGE_TYPE, NUMPY_SHAPES) else b""
        head += struct.pack(f"<I{len(shape)}q", len(shape), *shape)
    device = struct.pack("<2i", 1, 0)  # the processor
    return head + device + struct.pack("<i", FLAGS[array.dtype.name] if flag is None else flag) + array.tobytes()


def file_bytes(arrays, names, magic=0x112):
    """A file of arrays as `array_bytes` gives them."""
    head = struct.pack("<3Q", magic, 0, len(arrays))
    tail = struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return head + b"".join(arrays) + tail


def write(path: Path, state: dict[str, np.ndarray], version=STORAGE_TYPE) -> None:
    """All arrays by their names, which begin with `arg:` or `aux:`."""
    names = [name.encode() for name in state]
    path.write_bytes(file_bytes([array_bytes(array, version) for array in state.values()], names))
