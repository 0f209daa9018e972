"""PyTorch's files without PyTorch: what is written is read, and what is damaged or hostile is refused in a sentence."""

import importlib.util
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from afa_jax.errors import UserError
from afa_jax.models import torch_file
from tests.models.legacy_files import Call, Global, Reference, pickled, write_stream, write_tar

TORCH = importlib.util.find_spec("torch")
STATE = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.half": np.linspace(0, 1, 5).astype(np.float16),
    "a.num_batches_tracked": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        np.testing.assert_array_equal(found[key], value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.pth"
    torch_file.write(path, STATE)
    return path


def test_what_is_written_is_read(file):
    same(torch_file.read(file), STATE)
    assert [f.name for f in file.parent.iterdir()] == ["net.pth"]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": Hostile()}, 2))
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system, .* it is refused"):
        torch_file.read(path)
    path.write_bytes(pickle.dumps(Hostile(), 2))  # the older container is a bare pickle
    with pytest.raises(UserError, match=r"(posix|nt)\.system"):
        torch_file.read(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"", "no PyTorch file"),
        (bytes(range(256)) * 9, "no PyTorch file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, match):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError, match=match):
        torch_file.read(tmp_path / "net.pth")


def test_a_cut_or_flipped_file_is_refused(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="no whole PyTorch file"):
        torch_file.read(file)
    place = whole.index(STATE["a.weight"].tobytes()) + 30
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match="no whole PyTorch file"):
        torch_file.read(file)


# In the retired containers; the last is a view into the first one's numbers.
LEGACY = {
    "module.a.weight": np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4),
    "module.a.count": np.array([3], np.int64),
    "module.a.half": np.linspace(0, 1, 5).astype(np.float16),
    "module.a.part": np.arange(5, 9, dtype=np.float32),
}


@pytest.mark.parametrize("python2", [True, False])
def test_the_stream_of_2017(tmp_path, python2):
    path = tmp_path / "net.pth.tar"
    write_stream(path, LEGACY, python2=python2, arch="r\xe9seau", epoch=90, best=0.55)
    found = torch_file.read(path)
    assert (found["arch"], found["epoch"], found["best"]) == ("r\xe9seau", 90, 0.55)
    same(found["state_dict"], LEGACY)


def test_the_tar_of_2016(tmp_path):
    write_tar(tmp_path / "net.pth", LEGACY)
    same(torch_file.read(tmp_path / "net.pth"), LEGACY)


def test_a_variable_in_its_oldest_form():
    variable = torch_file._Variable()
    tensor = torch_file._Tensor(torch_file._Storage(np.dtype("f4"), np.ones(2, np.float32)), 0, (2,), (1,))
    variable.build((tensor, None, {}, True, False))
    np.testing.assert_array_equal(torch_file._finish({"a": variable}, {})["a"], [1, 1])


@pytest.mark.parametrize("write", [write_tar, lambda path, state: write_stream(path, state, python2=True)])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_a_cut_legacy_file_is_refused(tmp_path, write, keep):
    path = tmp_path / "net.pth"
    write(path, {key: np.tile(value, (4000,) + (1,) * (value.ndim - 1)) for key, value in LEGACY.items()})
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="no whole PyTorch file"):
        torch_file.read(path)


def zipped(path, content, members=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", content if isinstance(content, bytes) else pickled(content))
        for name, data in dict(members).items():
            archive.writestr(f"a/data/{name}", data)


def tensor(offset, size, stride):
    """One on a storage of eight floats, in whatever shape."""
    storage = Reference(("storage", Global("torch", "FloatStorage"), "0", "cpu", 8))
    return Call("torch._utils", "_rebuild_tensor_v2", (storage, offset, size, stride, False, {}))


EIGHT = {"0": np.arange(8, dtype=np.float32).tobytes()}
BYTE, LONG = (lambda n, kind=kind: Call("torch", kind, (n,)) for kind in ("CharStorage", "LongStorage"))


@pytest.mark.parametrize(
    "shape",
    [
        (0, (9,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (-1, 1)),
        (7, (2,), (1,)),
        (0, (500_000_000,), (0,)),  # a small file that would fill the memory
        (0, (0, 2**60), (1, 1)),
        (0, (2,), (1, 1)),
        (0, (True,), (1,)),
        (0, (BYTE(127),), (BYTE(127),)),  # sizes whose products would wrap around
        (0, (LONG(4),), (LONG((2**64 + 2) // 3),)),
    ],
)
def test_a_tensor_never_reads_outside_of_its_numbers(tmp_path, shape):
    zipped(tmp_path / "net.pth", {"x": tensor(*shape)}, EIGHT)
    try:
        assert torch_file.read(tmp_path / "net.pth")["x"].size == 0
    except UserError as error:
        assert "no whole PyTorch file" in str(error)


def test_a_hostile_file_cannot_change_the_reader(tmp_path, file):
    """State for the functions that build tensors, which belong to the process and not to the file."""
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}X\x05\0\0\0arrayctorch\nHalfStorage\ns\x86b0}."
    zipped(tmp_path / "hostile.pth", code)
    assert torch_file.read(tmp_path / "hostile.pth") == {}
    same(torch_file.read(file), STATE)


def nested(depth):
    """A list that holds itself twice, and so on: a few bytes that stand for 2^depth values."""
    code = b"\x80\x02]q\0K\x01a"
    for i in range(1, depth):
        code += b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e"
    return code + b"."


def test_small_files_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "net.pth"
    tracemalloc.start()
    try:
        zipped(path, b"\x80\x02Nr" + struct.pack("<I", 1 << 30) + b".")  # a place far out in the memory of names
        assert torch_file.read(path) is None
        zipped(path, nested(60))
        assert len(torch_file.read(path)) == 2
        zipped(path, b"\x80\x02\x8d" + struct.pack("<Q", 1 << 40) + b"x.")  # a string longer than the file
        with pytest.raises(UserError, match="no whole PyTorch file"):
            torch_file.read(path)
        zipped(path, {"x": tensor(0, (8,), (1,))}, {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
        with pytest.raises(UserError, match="compressed"):
            torch_file.read(path)
        sparse = bytearray(tarfile.TarInfo("storages").tobuf(tarfile.GNU_FORMAT))
        sparse[124:136], sparse[156:157] = b"%011o\0" % 512, tarfile.GNUTYPE_SPARSE
        sparse[386:410], sparse[482:495] = b"%011o\0" % 0 + b"%011o\0" % 512, b"\0" + b"%011o\0" % (1 << 30)
        sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + sum(sparse[156:]) + 8 * 32)
        path.write_bytes(bytes(sparse) + bytes(1536))
        with pytest.raises(UserError, match="no whole PyTorch file"):
            torch_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("pid", "match"),
    [
        (("storage", "U1", "0", "cpu", 8), "no known type"),
        (("storage", Global("torch", "Size"), "0", "cpu", 8), "no known type"),
        (("storage", Global("torch", "FloatStorage"), "9", "cpu", 8), "no whole PyTorch file"),
        ("0", "no whole PyTorch file"),
    ],
)
def test_references_to_what_is_no_storage_are_refused(tmp_path, pid, match):
    call = Call("torch._utils", "_rebuild_tensor_v2", (Reference(pid), 0, (8,), (1,), False, {}))
    zipped(tmp_path / "net.pth", {"x": call}, EIGHT)
    with pytest.raises(UserError, match=match):
        torch_file.read(tmp_path / "net.pth")


def test_names_with_line_ends_stay_in_one_sentence(tmp_path):
    zipped(tmp_path / "net.pth", b"\x80\x04X\x05\0\0\0os\nxyX\x03\0\0\0a\nb\x93.")
    with pytest.raises(UserError) as error:
        torch_file.read(tmp_path / "net.pth")
    assert str(error.value).isprintable()


def test_a_whole_network_in_a_file_is_told(tmp_path):
    write_stream(tmp_path / "net.pth", {}, python2=False, model=Reference(("module", "Net", None, None, None, None)))
    with pytest.raises(UserError, match="it holds a whole module, not a state_dict alone"):
        torch_file.read(tmp_path / "net.pth")


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
def test_a_view_in_the_stream_of_2017(tmp_path):
    """Storages that are parts of others, as torch wrote them and still reads them."""
    import torch

    whole = Reference(("storage", Global("torch", "FloatStorage"), "0", "cpu", 8, None))
    part = Reference(("storage", Global("torch", "FloatStorage"), "0", "cpu", 8, ("1", 2, 3)))
    content = {
        name: Call("torch._utils", "_rebuild_tensor", (storage, 0, (count,), (1,)))
        for name, storage, count in (("whole", whole, 8), ("part", part, 3))
    }
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    numbers = struct.pack("<q", 8) + EIGHT["0"]
    (tmp_path / "net.pth").write_bytes(b"".join(map(pickled, (*head, content, ["0"]))) + numbers)
    found = torch_file.read(tmp_path / "net.pth")
    np.testing.assert_array_equal(found["part"], [2, 3, 4])
    same(found, {key: value.numpy() for key, value in torch.load(tmp_path / "net.pth", weights_only=True).items()})


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
def test_torch_reads_what_these_tests_write(tmp_path):
    import torch

    write_tar(tmp_path / "old.pth", LEGACY)
    write_stream(tmp_path / "newer.pth", LEGACY, python2=True)
    old = torch.load(tmp_path / "old.pth", weights_only=False, encoding="latin1")
    newer = torch.load(tmp_path / "newer.pth", weights_only=True, map_location="cpu")["state_dict"]
    for state in (old, newer):
        same({key: value.detach().numpy() for key, value in state.items()}, LEGACY)


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_modules_own_state_in_bfloat16(tmp_path, zipped):
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).bfloat16()
    torch.save(module.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    found = torch_file.read(tmp_path / "net.pth")
    assert found["0.weight"].dtype == "bfloat16" and list(found) == list(module.state_dict())
    np.testing.assert_array_equal(found["0.weight"].astype(np.float32), module[0].weight.detach().float().numpy())


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_own_files(tmp_path, zipped):
    import torch

    state = {key: torch.from_numpy(value) for key, value in STATE.items()}
    state["shared"], state["turned"] = state["a.weight"][1:], state["a.weight"].permute(2, 0, 1)
    path = tmp_path / "net.pth.tar"
    content = {"state_dict": state, "epoch": 3, "arch": "net", "best": 0.5}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = torch_file.read(path)
    assert (found["epoch"], found["arch"], found["best"]) == (3, "net", 0.5)
    same(found["state_dict"], {key: value.numpy() for key, value in state.items()})
    torch_file.write(path, STATE)
    back = torch.load(path, weights_only=True)
    same({key: value.numpy() for key, value in back.items()}, STATE)
