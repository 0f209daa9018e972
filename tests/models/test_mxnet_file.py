"""MXNet's files without MXNet: the four ways of an array, and every way in which a file is refused in a sentence."""

import struct
import tracemalloc

import numpy as np
import pytest

from afa_jax.errors import UserError
from afa_jax.models import mxnet_file
from tests.models.mxnet_writer import (
    FLAGS,
    LEGACY,
    LONG_SHAPES,
    NUMPY_SHAPES,
    STORAGE_TYPE,
    array_bytes,
    file_bytes,
    write,
)

STATE = {
    "arg:stage1_unit1_conv1_weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "arg:fc_bias": np.linspace(0, 1, 5).astype(np.float16),
    "aux:bn0_moving_mean": np.array([[1.5], [2.5]]),
    "step": np.array([7], np.int64),
}
ARRAY = array_bytes(STATE["aux:bn0_moving_mean"])


@pytest.mark.parametrize("version", [LEGACY, LONG_SHAPES, STORAGE_TYPE, NUMPY_SHAPES])
def test_what_is_written_is_read(tmp_path, version):
    write(tmp_path / "net.params", STATE, version)
    found = mxnet_file.read(tmp_path / "net.params")
    assert list(found) == ["stage1_unit1_conv1_weight", "fc_bias", "bn0_moving_mean", "step"]
    for array, expected in zip(found.values(), STATE.values(), strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        np.testing.assert_array_equal(array, expected)


def test_a_file_byte_by_byte(tmp_path):
    """By the format's description, written out: one array of two numbers, under the name `arg:w`."""
    content = bytes.fromhex(
        "1201000000000000 0000000000000000"  # the file's magic number, and a reserved one
        "0100000000000000"  # one array
        "c9fa93f9 00000000 01000000 0200000000000000"  # of the third way, dense, of one dimension, of two numbers
        "01000000 00000000 00000000"  # on the first processor; float32
        "0000c03f 000020c0"  # 1.5 and -2.5
        "0100000000000000 0500000000000000"  # one name, of five letters
    )
    (tmp_path / "net.params").write_bytes(content + b"arg:w")
    np.testing.assert_array_equal(mxnet_file.read(tmp_path / "net.params")["w"], np.float32([1.5, -2.5]))


@pytest.mark.parametrize("name", FLAGS)
def test_every_type_of_numbers(tmp_path, name):
    write(tmp_path / "net.params", {"arg:x": np.arange(3).astype(name)})
    assert mxnet_file.read(tmp_path / "net.params")["x"].dtype == name


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        mxnet_file.read(path)
    assert str(error.value).isprintable() and str(error.value).startswith(str(path))
    return str(error.value)


TWO = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no MXNet file"),
        (b"<!DOCTYPE html><html></html>", "no MXNet file"),
        (file_bytes([ARRAY], [b"arg:x"], magic=0x113), "no MXNet file"),
        (file_bytes([ARRAY], []), "its arrays have no names"),
        (file_bytes([ARRAY], [b"arg:x", b"arg:y"]), "1 arrays and 2 names"),
        (file_bytes([ARRAY, ARRAY], [b"arg:x", b"aux:x"]), "a name that is there twice"),
        (file_bytes([ARRAY], [b"arg:\xff\xfe"]), "no whole MXNet file"),
        (file_bytes([ARRAY], [b"arg:x"]) + b"\0", "goes on behind its end"),
        (file_bytes([array_bytes(TWO, storage=1)], [b"arg:x"]), "it has a sparse array"),
        (file_bytes([array_bytes(TWO, storage=-1)], [b"arg:x"]), "it has a sparse array"),
        (file_bytes([array_bytes(TWO, flag=12)], [b"arg:x"]), r"numbers of a type that cannot be read (12)"),
        (file_bytes([array_bytes(TWO, flag=-1)], [b"arg:x"]), r"numbers of a type that cannot be read (-1)"),
        (file_bytes([array_bytes(TWO, shape=())], [b"arg:x"]), "an array that was never filled"),
        (file_bytes([array_bytes(TWO, shape=(-2,))], [b"arg:x"]), "a negative size"),
        (file_bytes([array_bytes(TWO, shape=(0, 2**62))], [b"arg:x"]), "no whole MXNet file"),
        (file_bytes([array_bytes(TWO, shape=(0, 2**62, 9))], [b"arg:x"]), "no whole MXNet file"),
        (file_bytes([array_bytes(TWO, shape=(1,) * 33)], [b"arg:x"]), "an array of 33 dimensions"),
        (file_bytes([array_bytes(TWO, LEGACY, shape=(1,) * 33)], [b"arg:x"]), "an array of 33 dimensions"),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    assert sentence in refused(tmp_path / "net.params", content)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    write(tmp_path / "net.params", STATE)
    content = (tmp_path / "net.params").read_bytes()
    for length in range(16, len(content)):
        assert "no whole MXNet file (it ends too early)" in refused(tmp_path / "net.params", content[:length])


def test_small_files_do_not_fill_the_memory(tmp_path):
    path, huge = tmp_path / "net.params", 1 << 40
    counts = struct.pack("<3Q", 0x112, 0, huge) + ARRAY
    shapes = [
        file_bytes([array_bytes(TWO, shape=shape)], [b"arg:x"]) for shape in ((huge,), (huge, huge), (2**32, 2**32))
    ]
    name = file_bytes([ARRAY], [])[:-8] + struct.pack("<2Q", 1, huge)
    tracemalloc.start()
    try:
        for content in (counts, *shapes, name):
            assert "no whole MXNet file" in refused(path, content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        mxnet_file.read(tmp_path / "net.params")
