"""Reads and writes PyTorch's weight files without PyTorch.

Three containers occur in the wild: the zip of today, the pickle stream of 2017 to 2020, and the tar from before. All
hold pickles, and a pickle may name any function to call. The reader here knows the few that build tensors and plain
containers; any other name is refused, so that a hostile file cannot run code.
"""

import collections
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from afa_jax.errors import UserError

DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storage:
    """The numbers behind one or several tensors; the older containers fill them in after the tensors are named."""

    def __init__(self, dtype: Any, data: np.ndarray | None = None):
        self.dtype, self.data = np.dtype(dtype), data


class _Tensor:
    """A view of a storage, as torch's `_rebuild_tensor` functions describe it."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)

    def array(self) -> np.ndarray:
        data = self.storage.data
        if data is None:
            raise ValueError("a tensor without numbers")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if 0 in self.size:
            return np.zeros(self.size, data.dtype)
        if min((self.offset, *self.stride, *self.size)) < 0 or last >= len(data):
            raise ValueError("a tensor that reaches beyond its numbers")
        strides = [s * data.itemsize for s in self.stride]
        return np.array(np.lib.stride_tricks.as_strided(data[self.offset :], self.size, strides), order="C")


class _Variable:
    """What wrapped a tensor that learns, until 2018; `Parameter` is one."""

    def __init__(self, tensor: Any = None, *_: Any):
        self.tensor = tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) == 5:  # the oldest form; in the later ones the tensor is the first argument
            self.tensor = state[0]


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _Variable,
    ("torch.autograd.variable", "Variable"): _Variable,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    # The tar names the kind of each tensor, which its storage tells as well.
    **{("torch", name.replace("Storage", "Tensor")): name for name in DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, persistent_load: Callable[[Any], Any] | None = None):
        super().__init__(file, encoding="latin1")  # Python 2's strings, as in the Places365 files
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise UserError(
                f"its pickle asks for {module}.{name}, which is neither a tensor nor a plain container; "
                "it is refused, because such a file can run code"
            )
        return _SAFE[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent_load is None:
            raise ValueError("a tensor where none can be")
        return self._persistent_load(pid)


def read(path: Path) -> Any:
    """What the file holds, with every tensor as a NumPy array.

    Raises:
      UserError: no PyTorch file, a truncated or damaged one, or one whose pickle asks for more than tensors and plain
        containers.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                raise UserError("it is a web page, not a file of weights")
            if start.startswith(b"PK"):
                content = _read_zip(file)
            elif start[257:262] == b"ustar":
                content = _read_tar(file)
            else:
                content = _read_stream(file)
        return _finish(content)
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle may raise whatever its bytes happen to say
        raise UserError(
            f"{path} is no whole PyTorch file ({type(error).__name__}: {error}): fetch it again."
        ) from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(names) != 1:
            raise UserError("it is a zip file without PyTorch's data.pkl")
        folder = names[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in archive.namelist() else "little"
        storages: dict[str, _Storage] = {}

        def load(pid: Any) -> _Storage:
            _, dtype, key, *_ = pid
            if key not in storages:
                stored = np.dtype(dtype)
                wide = stored.newbyteorder(">" if order == "big" else "<") if stored.itemsize > 1 else stored
                # ZipFile checks each record's own checksum while it reads.
                data = np.frombuffer(archive.read(f"{folder}data/{key}"), wide)
                storages[key] = _Storage(dtype, data.astype(stored, copy=False))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(names[0])), load).load()


def _read_stream(file: BinaryIO) -> Any:
    try:
        magic = _Unpickler(file).load()
    except (pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError, AttributeError) as error:
        raise UserError("it is no PyTorch file") from error
    if magic != _LEGACY_MAGIC:
        raise UserError("it is no PyTorch file")
    if (protocol := _Unpickler(file).load()) != _LEGACY_PROTOCOL:
        raise UserError(f"its protocol is {protocol}, not {_LEGACY_PROTOCOL}")
    if not _Unpickler(file).load().get("little_endian", True):
        raise UserError("its numbers are big-endian, which no published file's are")
    storages: dict[Any, _Storage] = {}

    def load(pid: Any) -> _Storage:
        kind, dtype, key, _, _, view = pid
        if kind != "storage" or view is not None:
            raise ValueError(f"an unknown kind of storage, {kind}")
        return storages.setdefault(key, _Storage(dtype))

    content = _Unpickler(file, load).load()
    for key in _Unpickler(file).load():
        storages[key].data = _numbers(file, storages[key].dtype)
    return content


def _read_tar(file: BinaryIO) -> Any:
    with tarfile.open(fileobj=file, mode="r:") as archive:

        def member(name: str) -> BinaryIO:
            found = archive.extractfile(name)
            if found is None:
                raise ValueError(f"no member {name}")
            return io.BytesIO(found.read())

        storages, tensors = {}, {}
        stream = member("storages")
        for _ in range(_Unpickler(stream).load()):
            key, _, dtype = _Unpickler(stream).load()
            storages[key] = _Storage(dtype, _numbers(stream, np.dtype(dtype)))
        for view, root, offset, count in _Unpickler(stream).load():
            storages[view] = _Storage(storages[root].dtype, storages[root].data[offset : offset + count])
        stream = member("tensors")
        for _ in range(_Unpickler(stream).load()):
            key, storage, _ = _Unpickler(stream).load()
            (dimensions,) = struct.unpack("<i4x", _exactly(stream, 8))
            size = struct.unpack(f"<{dimensions}q", _exactly(stream, 8 * dimensions))
            stride = struct.unpack(f"<{dimensions}q", _exactly(stream, 8 * dimensions))
            (offset,) = struct.unpack("<q", _exactly(stream, 8))
            tensors[key] = _Tensor(storages[storage], offset, size, stride)

        def load(pid: Any) -> Any:
            return pid[0] if isinstance(pid, tuple) else tensors[int(pid)]

        return _Unpickler(member("pickle"), load).load()


def _numbers(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    (count,) = struct.unpack("<q", _exactly(file, 8))
    return np.frombuffer(_exactly(file, count * dtype.itemsize), dtype)


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise EOFError("it ends too early")
    return content


def _finish(content: Any) -> Any:
    if isinstance(content, _Variable):
        return _finish(content.tensor)
    if isinstance(content, _Tensor):
        return content.array()
    if isinstance(content, Mapping):
        return {key: _finish(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finish(value) for value in content]
    return content


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a flat `state_dict` in the zip container; `torch.load(…, weights_only=True)` reads it.

    Args:
      state: arrays by key, in the order in which torch is to see them.
    """
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    pickled = [b"\x80\x02", b"ccollections\nOrderedDict\n)R("]
    for number, (key, array) in enumerate(state.items()):
        stride = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
        # key, then _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())
        pickled += [_text(key), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
        pickled += [_text("storage"), f"ctorch\n{names[array.dtype]}\n".encode(), _text(str(number)), _text("cpu")]
        pickled += [_integer(array.size), b"tQ", _integer(0), _integers(array.shape), _integers(stride)]
        pickled += [b"\x89", b"ccollections\nOrderedDict\n)R", b"tR"]
    pickled.append(b"u.")
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(pickled))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(state.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(array).tobytes())
        archive.writestr("archive/version", "3\n")
    partial.replace(path)


def _text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _integer(value: int) -> bytes:
    content = pickle.dumps(value, 2)
    return content[2:-1]  # without the protocol's mark and the final stop


def _integers(values: Any) -> bytes:
    return b"(" + b"".join(_integer(int(v)) for v in values) + b"t"
