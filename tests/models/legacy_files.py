"""Writes PyTorch's retired containers from their description, without PyTorch: the tar of 2016, the stream of 2017.

Both can be pickled as Python 2 did (byte strings), and their tensors as what wrapped parameters until 2018.
"""

import collections
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np

KINDS = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long"}


class Global:
    """Stands for `module.name` in a pickle, which need not be importable here."""

    def __init__(self, module, name):
        self.where = f"c{module}\n{name}\n".encode()


class Call:
    """Stands for `function(*arguments)` in a pickle, with `state` given to what comes of it."""

    def __init__(self, module, name, arguments, state=None):
        self.function, self.arguments, self.state = Global(module, name), arguments, state


class Reference:
    """Stands for what is kept outside of the pickle."""

    def __init__(self, pid):
        self.pid = pid


class Pickler(pickle._Pickler):
    """Protocol 2; strings are those of Python 2 if `python2`."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file, python2=False):
        super().__init__(file, 2)
        self.python2 = python2

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Reference) else None

    def save_str(self, obj):
        if self.python2:
            content = obj.encode("latin1")
            self.write(b"U" + bytes([len(content)]) + content)
            self.memoize(obj)
        else:
            super().save_str(obj)

    def save_global_by_name(self, obj):
        self.write(obj.where)

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    dispatch[str] = save_str
    dispatch[Global] = save_global_by_name
    dispatch[Call] = save_call


def pickled(value, python2=False):
    file = io.BytesIO()
    Pickler(file, python2).dump(value)
    return file.getvalue()


def numbers(array):
    return struct.pack("<q", array.size) + array.tobytes()


def strides(array):
    return tuple(stride // array.itemsize for stride in array.strides)


def storage_kind(array):
    return Global("torch", f"{KINDS[array.dtype.name]}Storage")


def write_tar(path: Path, state: dict[str, np.ndarray]) -> None:
    """Members `sys_info`, `storages`, `tensors` and `pickle`; floats are parameters, as in the oldest ResNets.

    The last array is a view into the storage of the first one, by the list of views that follows the storages.
    """
    python2, names = True, list(state)
    storages, tensors = io.BytesIO(), io.BytesIO()
    storages.write(pickled(len(names) - 1, python2))
    for i, name in enumerate(names[:-1]):
        storages.write(pickled((i, "cpu", storage_kind(state[name])), python2) + numbers(state[name]))
    first, last = state[names[0]].reshape(-1), state[names[-1]]
    offset = int(np.flatnonzero(first == last.reshape(-1)[0])[0])
    storages.write(pickled([(len(names) - 1, 0, offset, last.size)], python2))
    tensors.write(pickled(len(names), python2))
    for i, array in enumerate(state.values()):
        kind = Global("torch", f"{KINDS[array.dtype.name]}Tensor")
        tensors.write(pickled((100 + i, i, kind), python2) + struct.pack("<i4x", array.ndim))
        tensors.write(struct.pack(f"<{2 * array.ndim + 1}q", *array.shape, *strides(array), 0))
    hooks = collections.OrderedDict()
    parameters = {
        name: Call("torch.nn.parameter", "Parameter", (Reference(str(100 + i)),), (True, False, hooks))
        if array.dtype.kind == "f"
        else Reference(str(100 + i))
        for i, (name, array) in enumerate(state.items())
    }
    members = {"sys_info": pickled({}), "storages": storages.getvalue(), "tensors": tensors.getvalue()}
    members["pickle"] = pickled(collections.OrderedDict(parameters), python2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_stream(path: Path, state: dict[str, np.ndarray], *, python2: bool, under="state_dict", **beside) -> None:
    """A magic number, a version, the machine, the pickle, and the storages in the order of their keys.

    Args:
      under: the name of the `state_dict` in the file.
      beside: what stands beside the `state_dict` in the file.
    """

    def storage(name: str, array: np.ndarray) -> Reference:
        return Reference(("storage", storage_kind(array), name, "cuda:0", array.size, None))

    tensors = {
        name: Call(
            "torch._utils",
            "_rebuild_tensor",
            (storage(name, array), 0, array.shape, strides(array)),
        )
        for name, array in state.items()
    }
    content = {under: collections.OrderedDict(tensors), **beside}
    sizes = {"short": 2, "int": 4, "long": 4}
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes})
    with path.open("wb") as file:
        for value in (*head, content, list(state)):
            file.write(pickled(value, python2))
        for array in state.values():
            file.write(numbers(array))
