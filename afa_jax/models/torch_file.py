"""Reads and writes PyTorch's weight files without PyTorch.

Three containers occur in the wild: the zip of today, the pickle stream of 2017 to 2020, and the tar from before. All
hold pickles, and a pickle may name any function to call; `restricted_pickle` reads them without calling any but those
that make tensors here, with sizes checked against what the file has.
"""

import io
import math
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
from afa_jax.files import whole
from afa_jax.models import restricted_pickle
from afa_jax.models.restricted_pickle import Clipped, Name

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

    def __init__(self, dtype: np.dtype, data: np.ndarray | None = None):
        self.dtype, self.data = dtype, data

    def part(self, offset: int, count: int) -> np.ndarray:
        """A view of `count` numbers."""
        if self.data is None or min(_integer(offset), _integer(count)) < 0 or offset + count > len(self.data):
            raise ValueError("a view that reaches beyond its numbers")
        return self.data[offset : offset + count]


class _Tensor:
    """A view of a storage, as torch's `_rebuild_tensor` functions describe it."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if type(storage) is not _Storage or len(size) != len(stride):
            raise ValueError("a tensor without numbers or shape")
        self.storage, self.offset = storage, _integer(offset)
        self.size, self.stride = (tuple(_integer(n) for n in numbers) for numbers in (size, stride))

    def array(self) -> np.ndarray:
        data = self.storage.data
        if data is None:
            raise ValueError("a tensor without numbers")
        if min((self.offset, *self.stride, *self.size)) < 0:
            raise ValueError("a tensor that reaches beyond its numbers")
        if 0 in self.size:
            return np.zeros(self.size, data.dtype) if max(self.size) <= 1 << 31 else np.zeros(0, data.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        # Nothing published repeats its numbers, and a small file that does could fill the memory.
        if last >= len(data) or math.prod(self.size) > len(data):
            raise ValueError("a tensor that reaches beyond its numbers")
        strides = [s * data.itemsize for s in self.stride]
        return np.array(np.lib.stride_tricks.as_strided(data[self.offset :], self.size, strides), order="C")


class _Variable:
    """What wrapped a tensor that learns, until 2018; `Parameter` is one."""

    def __init__(self, tensor: Any = None, *_: Any):
        self.tensor = tensor

    def build(self, state: Any) -> None:
        if type(state) is tuple and len(state) == 5:  # the oldest form; in later ones the tensor is the first argument
            self.tensor = state[0]


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return {key: value for key, value in items}


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a size that is no whole number")
    return value


_BUILDERS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered,
    Name("torch._utils", "_rebuild_tensor"): lambda *arguments: _Tensor(*arguments),
    Name("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _Tensor(*arguments),
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: _Variable(tensor),
    Name("torch.nn.parameter", "Parameter"): lambda *arguments: _Variable(*arguments),
    Name("torch.autograd.variable", "Variable"): lambda *arguments: _Variable(*arguments),
    Name("torch", "Size"): lambda sizes: tuple(sizes),
}


def _is_kind(name: Name) -> bool:
    """The names of storages, and the tar's of tensors; they are mentioned and never called."""
    return name.module == "torch" and name.name.replace("Tensor", "Storage") in DTYPES


def _dtype(kind: Any) -> np.dtype:
    if type(kind) is not Name or kind.module != "torch" or kind.name not in DTYPES:
        raise ValueError("numbers of no known type")
    return np.dtype(DTYPES[kind.name])


def _unpickle(file: Clipped, persistent: Callable[[Any], Any] | None = None) -> Any:
    return restricted_pickle.load(file, _BUILDERS, persistent, _is_kind)


def read(path: Path) -> Any:
    """What the file holds, with every tensor as a NumPy array.

    Raises:
      UserError: no PyTorch file, a truncated or damaged one, or one whose pickle asks for more than tensors and plain
        containers.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                raise UserError("it is a web page, not a file of weights")
            if start.startswith(b"PK"):
                content = _read_zip(file, size)
            elif start[257:262] == b"ustar":
                content = _read_tar(file, size)
            else:
                content = _read_stream(Clipped(file, size))
        return _finish(content, {})
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle may raise whatever its bytes happen to say
        raise UserError(
            f"{path} is no whole PyTorch file ({type(error).__name__}: {error}): it is damaged, or was not fetched to "
            "its end."
        ) from error


def _read_zip(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        left = size

        def record(name: str) -> bytes:
            """A member; all together they cannot be more than the file, for PyTorch compresses nothing."""
            nonlocal left
            info = archive.getinfo(name)
            left -= info.file_size
            if info.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError("a compressed member")
            return archive.read(name)  # which checks the member's checksum

        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(names) != 1:
            raise UserError("it is a zip file without PyTorch's data.pkl")
        folder = names[0].removesuffix("data.pkl")
        order = record(f"{folder}byteorder").decode() if f"{folder}byteorder" in archive.namelist() else "little"
        storages: dict[str, _Storage] = {}

        def load(pid: Any) -> _Storage:
            _, kind, key, *_ = pid
            if key not in storages:
                dtype = _dtype(kind)
                stored = dtype.newbyteorder(">" if order == "big" else "<") if dtype.itemsize > 1 else dtype
                data = np.frombuffer(record(f"{folder}data/{key}"), stored)
                storages[key] = _Storage(dtype, data.astype(dtype, copy=False))
            return storages[key]

        content = record(names[0])
        return _unpickle(Clipped(io.BytesIO(content), len(content)), load)


def _read_stream(file: Clipped) -> Any:
    try:
        magic = _unpickle(file)
    except (ValueError, EOFError, LookupError, TypeError, StopIteration) as error:
        raise UserError("it is no PyTorch file") from error
    if magic != _LEGACY_MAGIC:
        raise UserError("it is no PyTorch file")
    if (protocol := _unpickle(file)) != _LEGACY_PROTOCOL:
        raise UserError(f"its protocol is {protocol}, not {_LEGACY_PROTOCOL}")
    if not _unpickle(file).get("little_endian", True):
        raise UserError("its numbers are big-endian, which no published file's are")
    storages: dict[Any, _Storage] = {}
    views: dict[Any, tuple[_Storage, _Storage, int, int]] = {}

    def load(pid: Any) -> _Storage:
        word, kind, key, _, _, view = pid
        if word != "storage":
            raise UserError(f"it holds a whole {word}, not a state_dict alone")
        root = storages.setdefault(key, _Storage(_dtype(kind)))
        if view is None:
            return root
        name, offset, count = view
        return views.setdefault(name, (_Storage(root.dtype), root, offset, count))[0]

    content = _unpickle(file, load)
    for key in _unpickle(file):
        storages[key].data = _numbers(file, storages[key].dtype)
    for storage, root, offset, count in views.values():
        storage.data = root.part(offset, count)
    return content


def _read_tar(file: BinaryIO, size: int) -> Any:
    with tarfile.open(fileobj=file, mode="r:") as archive:

        def member(name: str) -> Clipped:
            info = archive.getmember(name)
            found = archive.extractfile(info)
            if found is None or info.issparse() or info.size > size:
                raise ValueError(f"no member {name}")
            return Clipped(io.BytesIO(found.read()), info.size)

        storages, tensors = {}, {}
        stream = member("storages")
        for _ in range(_integer(_unpickle(stream))):
            key, _, kind = _unpickle(stream)
            storages[key] = _Storage(_dtype(kind), _numbers(stream, _dtype(kind)))
        for view, root, offset, count in _unpickle(stream):
            storages[view] = _Storage(storages[root].dtype, storages[root].part(offset, count))
        stream = member("tensors")
        for _ in range(_integer(_unpickle(stream))):
            key, storage, _ = _unpickle(stream)
            (dimensions,) = struct.unpack("<i4x", stream.exactly(8))
            shape = struct.unpack(f"<{dimensions}q", stream.exactly(8 * dimensions))
            stride = struct.unpack(f"<{dimensions}q", stream.exactly(8 * dimensions))
            (offset,) = struct.unpack("<q", stream.exactly(8))
            tensors[key] = _Tensor(storages[storage], offset, shape, stride)
        return _unpickle(member("pickle"), lambda pid: tensors[int(pid)])


def _numbers(file: Clipped, dtype: np.dtype) -> np.ndarray:
    (count,) = struct.unpack("<q", file.exactly(8))
    return np.frombuffer(file.exactly(count * dtype.itemsize), dtype)


def _finish(content: Any, done: dict[int, Any]) -> Any:
    """Tensors become arrays; what the file has once and names twice is made once."""
    if id(content) not in done:
        if isinstance(content, _Variable):
            finished = _finish(content.tensor, done)
        elif isinstance(content, _Tensor):
            finished = content.array()
        elif isinstance(content, dict):
            finished = {key: _finish(value, done) for key, value in content.items()}
        elif isinstance(content, (list, tuple)):
            finished = [_finish(value, done) for value in content]
        elif isinstance(content, (str, bytes, int, float, type(None))):
            finished = content
        else:
            raise ValueError(f"a bare {type(content).__name__.strip('_').lower()} in place of a value")
        done[id(content)] = finished
    return done[id(content)]


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
        pickled += [
            _pickled_integer(array.size),
            b"tQ",
            _pickled_integer(0),
            _pickled_integers(array.shape),
            _pickled_integers(stride),
        ]
        pickled += [b"\x89", b"ccollections\nOrderedDict\n)R", b"tR"]
    pickled.append(b"u.")
    with whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(pickled))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(state.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(array).tobytes())
        archive.writestr("archive/version", "3\n")


def _text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _pickled_integer(value: int) -> bytes:
    content = pickle.dumps(value, 2)
    return content[2:-1]  # without the protocol's mark and the final stop


def _pickled_integers(values: Any) -> bytes:
    return b"(" + b"".join(_pickled_integer(int(v)) for v in values) + b"t"
