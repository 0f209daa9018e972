"""Decoded once: the same pixels as Pillow and torchvision, whole or not there, and safe beside another process."""

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afa_jax.data import cache as module
from afa_jax.data.cache import DamagedError, Encoded, Files, Source, cached, load_splits
from afa_jax.data.dataset import Request
from afa_jax.data.images import FORMS, centre_crop, decode, five_crops, resize
from afa_jax.errors import UserError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, of one of the pictures
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (30, 50, 3), np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)


PICTURES = {
    "jpeg": encoded(Image.fromarray(PIXELS), "JPEG"),
    "png": encoded(Image.fromarray(PIXELS), "PNG"),
    "grey": encoded(Image.fromarray(PIXELS).convert("L"), "JPEG"),
    "cmyk": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "palette": encoded(Image.fromarray(PIXELS).convert("P"), "PNG"),
    "see-through palette": encoded(Image.fromarray(PIXELS).convert("P"), "PNG", transparency=bytes(range(256))),
    "alpha": encoded(Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])), "PNG"),
    "bitmap": encoded(Image.fromarray(PIXELS).convert("1"), "PNG"),
    "16 bit": encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200), "PNG"),
    "gif": encoded(Image.fromarray(PIXELS), "GIF", save_all=True, append_images=[Image.new("RGB", (50, 30))]),
    "webp": encoded(Image.fromarray(PIXELS), "WEBP"),
    "tiff": encoded(Image.fromarray(PIXELS), "TIFF"),
    "rotated": rotated(),
    "tall": encoded(Image.fromarray(PIXELS.transpose(1, 0, 2)), "PNG"),
    "one pixel": encoded(Image.fromarray(PIXELS[:1, :1]), "PNG"),
}
DAMAGED = {
    "text.jpg": b"I am no picture",
    "empty.jpg": b"",
    "half.jpg": PICTURES["jpeg"][: len(PICTURES["jpeg"]) // 2],
    "half.png": PICTURES["png"][: len(PICTURES["png"]) // 2],
    "header.png": PICTURES["png"][:20],
    "lies.png": PICTURES["png"].replace(b"IDAT", b"IDOT"),
}


def source(pictures, classes=("a", "b"), key="pictures"):
    names = list(pictures)
    files = Files(classes, len(names), lambda i: Encoded(names[i], pictures[names[i]], i % 2, {"place": np.array([i])}))
    return Source("pictures", {"data": key}, lambda: files)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path))
    return tmp_path / "images"


@pytest.mark.parametrize("kind", PICTURES)
def test_an_image_is_read_as_pillow_and_torchvision_read_it(kind):
    data = PICTURES[kind]
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB")
    if kind == "16 bit":  # of which Pillow makes white what is above 255
        expected = Image.fromarray((PIXELS[..., 0].astype(np.uint16) * 200 >> 8).astype(np.uint8)).convert("RGB")
    found = decode(data)
    assert found.mode == "RGB" and found.size == expected.size
    np.testing.assert_array_equal(found, expected)
    for form in FORMS:
        assert resize(found, 24, form).shape[2] == 3


def test_the_forms_are_torchvisions_resize_and_centre_crop(torchvision, tmp_path):
    functional = torchvision.transforms.functional
    for kind, data in PICTURES.items():
        if kind == "16 bit":
            continue  # which torchvision makes white
        path = tmp_path / "picture"
        path.write_bytes(data)
        image = torchvision.datasets.folder.pil_loader(str(path))
        np.testing.assert_array_equal(decode(data), image, err_msg=kind)
        for size in (24, 25, 60):
            short = functional.resize(image, size)
            np.testing.assert_array_equal(resize(decode(data), size, "square"), functional.resize(image, [size, size]))
            np.testing.assert_array_equal(resize(decode(data), size, "whole"), short)
            np.testing.assert_array_equal(resize(decode(data), size, "middle"), functional.center_crop(short, size))


def test_five_crops_and_their_mirror_images_are_torchvisions_ten(torchvision):
    functional = torchvision.transforms.functional
    for height, width, size in ((30, 50, 24), (31, 24, 24), (24, 24, 24), (27, 29, 20)):
        image = RANDOM.integers(0, 256, (height, width, 3), np.uint8)
        crops = five_crops(image, size)
        expected = np.stack([np.asarray(crop) for crop in functional.ten_crop(Image.fromarray(image), size)])
        # torchvision mirrors first and crops then, so left and right change places in its second half.
        mirrored = crops[[1, 0, 3, 2, 4], :, ::-1]
        np.testing.assert_array_equal(crops, expected[:5])
        np.testing.assert_array_equal(mirrored[:4], expected[5:9])
        if (width - size) % 2 == 0:  # else the middle of the mirror image is not the mirror image of the middle
            np.testing.assert_array_equal(mirrored[4], expected[9])


def test_five_crops_by_hand():
    image = np.arange(20, dtype=np.uint8).reshape(4, 5, 1) * np.ones(3, np.uint8)
    found = five_crops(image, 2)[..., 0].reshape(5, 4).tolist()
    assert found == [[0, 1, 5, 6], [3, 4, 8, 9], [10, 11, 15, 16], [13, 14, 18, 19], [7, 8, 12, 13]]
    assert centre_crop(image, 3)[..., 0].ravel().tolist() == [1, 2, 3, 6, 7, 8, 11, 12, 13]


@pytest.mark.parametrize("form", FORMS)
def test_the_cache_has_every_image_label_and_name(form, folder):
    found = cached(source(PICTURES), form, 20, skip_damaged=False)
    again = cached(
        Source("pictures", {"data": "pictures"}, lambda: pytest.fail("opened again")), form, 20, skip_damaged=False
    )
    for split in (found.split, again.split):
        assert list(split.files) == list(PICTURES)
        assert split.labels.tolist() == [i % 2 for i in range(len(PICTURES))] and split.labels.dtype == np.int32
        for i, data in enumerate(PICTURES.values()):
            np.testing.assert_array_equal(split.images[i], resize(decode(data), 20, form))
        assert split.extras["place"].tolist() == [[i] for i in range(len(PICTURES))]
        assert split.extras["original_size"][list(PICTURES).index("tall")].tolist() == [30, 50]
    if form != "whole":
        rows = np.array([3, 1, 3])
        np.testing.assert_array_equal(found.split.images[rows], np.stack([found.split.images[i] for i in rows]))
        assert not np.shares_memory(found.split.images[rows], found.split.images)
        made = next(folder.glob("pictures-*"))
        assert np.load(made / "images.npy").shape == (len(PICTURES), 20, 20, 3)  # as anyone would read it
    assert found.classes == ("a", "b") and found.damaged == ()


def test_the_memory_map_is_for_reading():
    images = cached(source(PICTURES), "square", 20, skip_damaged=False).split.images
    with pytest.raises(ValueError, match="read-only"):
        images[0][:] = 0


def test_whatever_changes_the_pixels_makes_another_cache(folder, monkeypatch):
    def count():
        return len(list(folder.glob("pictures-*")))

    cached(source(PICTURES), "square", 20, skip_damaged=False)
    for number, change in enumerate(
        (
            {"form": "middle"},
            {"size": 21},
            {"source": source(PICTURES, key="other pictures")},
        ),
        start=2,
    ):
        call = {"source": source(PICTURES), "form": "square", "size": 20, **change}
        cached(call["source"], call["form"], call["size"], skip_damaged=False)
        assert count() == number
    monkeypatch.setattr("PIL.__version__", "999")
    cached(source(PICTURES), "square", 20, skip_damaged=False)
    assert count() == 5


def test_damaged_images_stop_the_build_with_their_names_and_nothing_is_left(folder):
    mixed = dict(list(PICTURES.items())[:3]) | DAMAGED
    with pytest.raises(DamagedError) as caught:
        cached(source(mixed), "square", 20, skip_damaged=False)
    assert [file.split(" (")[0] for file in caught.value.files] == list(DAMAGED)
    assert str(caught.value).startswith("6 files are no images: text.jpg (of no known format), empty.jpg (it is empty)")
    assert "\n" not in str(caught.value) and "--config.data.skip_damaged=True" in str(caught.value)
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []


def test_damaged_images_are_left_out_when_wanted_and_only_then():
    mixed = dict(zip(("p0", "p1"), list(PICTURES.values()), strict=False)) | DAMAGED | {"last": PICTURES["gif"]}
    found = cached(source(mixed), "square", 20, skip_damaged=True)
    assert list(found.split.files) == ["p0", "p1", "last"] and found.split.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(found.split.images[2], resize(decode(PICTURES["gif"]), 20, "square"))
    assert found.split.extras["place"].ravel().tolist() == [0, 1, 8]
    assert len(found.damaged) == len(DAMAGED)
    with pytest.raises(DamagedError, match="6 files are no images"):
        cached(source(mixed), "square", 20, skip_damaged=False)


def test_many_damaged_images_are_counted():
    many = {f"{i}.jpg": b"no" for i in range(1000)}
    with pytest.raises(DamagedError, match=r"^1,000 files are no images: 0.jpg .*, and 800 more; mend"):
        cached(source(many), "square", 20, skip_damaged=False)


def test_damaged_images_of_both_splits_are_told_at_once():
    train = source({"a.jpg": b"no"} | PICTURES, key="train")
    test = source({"b.jpg": b"no"} | PICTURES, key="test")
    with pytest.raises(DamagedError, match=r"2 files are no images: a.jpg .* b.jpg"):
        load_splits(Request(size=20), train, test)


def test_an_image_that_cannot_be_read_is_named():
    files = Files(("a",), 1, lambda i: Encoded("locked.jpg", b"", 0, fault="Permission denied"))
    with pytest.raises(DamagedError, match=r"1 file is no image: locked.jpg \(Permission denied\)"):
        cached(Source("x", {}, lambda: files), "square", 20, skip_damaged=False)


def test_the_improved_form_trains_on_the_middle_and_tests_whole_images():
    data = load_splits(Request(size=20, augmentation="improved"), source(PICTURES), source(PICTURES))
    jpeg = decode(PICTURES["jpeg"])
    np.testing.assert_array_equal(data.train.images[0], resize(jpeg, 20, "middle"))
    np.testing.assert_array_equal(data.test.images[0], resize(jpeg, 20, "whole"))
    assert data.test.images[0].shape == (20, 33, 3)


def test_too_little_room_is_said_before_anything_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    monkeypatch.setattr(module, "decode", lambda data: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"need 0 MB, and the disk of .*images has 0 MB left: make room"):
        cached(source(PICTURES), "square", 20, skip_damaged=False)
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []


FULL_DISK = """
import resource, sys
from afa_jax.errors import UserError
from afa_jax.data.cache import cached
from tests.data.test_cache import PICTURES, source
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    cached(source(PICTURES), sys.argv[1], 64, skip_damaged=False)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("form", ["square", "whole"])
def test_a_write_that_fails_leaves_nothing(form, folder):
    """A limit on the size of files stands for a disk that fills up."""
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, form], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "cannot be written or read (File too large): make room there, or move it" in result.stdout, result.stderr
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []


def test_what_a_kill_left_is_no_hindrance(folder):
    digest = cached(source(PICTURES), "square", 20, skip_damaged=False)
    made = next(folder.glob("pictures-*"))
    half = made.with_name(f"{made.name}.partial")
    made.rename(half)
    (half / "labels.npy").unlink()
    again = cached(source(PICTURES), "square", 20, skip_damaged=False)
    np.testing.assert_array_equal(again.split.labels, digest.split.labels)
    assert not half.exists()


@pytest.mark.parametrize("form", ["square", "whole"])
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("about.json", lambda path: path.write_text("")),
        ("about.json", lambda path: path.write_text("{}")),
        ("about.json", lambda path: path.unlink()),
        ("images.npy", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("images.npy", lambda path: path.write_bytes(b"")),
        ("images.npy", lambda path: path.write_bytes(b"garbage of some length")),
        ("labels.npy", lambda path: np.save(path, np.zeros(3, np.int32))),
        ("labels.npy", lambda path: path.unlink()),
        ("extra-place.npy", lambda path: path.unlink()),
    ],
)
def test_a_damaged_cache_is_made_anew(form, file, damage, folder, capsys):
    before = cached(source(PICTURES), form, 20, skip_damaged=False)
    damage(next(folder.glob("pictures-*")) / file)
    after = cached(source(PICTURES), form, 20, skip_damaged=False)
    assert after.digest == before.digest and len(after.split) == len(PICTURES)
    np.testing.assert_array_equal(after.split.images[3], resize(decode(PICTURES["cmyk"]), 20, form))
    assert "was damaged and has been made anew" in capsys.readouterr().err


def test_a_good_cache_that_cannot_be_opened_now_is_not_thrown_away(folder, monkeypatch):
    cached(source(PICTURES), "square", 20, skip_damaged=False)

    def fail(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", fail)
        with pytest.raises(UserError, match=r"cannot be written or read \(Cannot allocate memory\)"):
            cached(source(PICTURES), "square", 20, skip_damaged=False)
    kept = Source("pictures", {"data": "pictures"}, lambda: pytest.fail("decoded again"))
    assert len(cached(kept, "square", 20, skip_damaged=False).split) == len(PICTURES)


def test_a_cache_that_is_there_needs_no_lock(folder, monkeypatch):
    """So that it can be read where nothing may be written."""
    cached(source(PICTURES), "square", 20, skip_damaged=False)
    monkeypatch.setattr(module, "locked", lambda *args, **kwargs: pytest.fail("locked"))
    assert len(cached(source(PICTURES), "square", 20, skip_damaged=False).split) == len(PICTURES)


def test_halves_that_nobody_is_at_are_removed(folder):
    for name in ("old", "busy"):
        (folder / f"{name}.partial").mkdir(parents=True)
    with module.locked(folder / ".busy.lock", wait=True):
        cached(source(PICTURES), "square", 20, skip_damaged=False)
        assert {path.name for path in folder.glob("*.partial")} == {"busy.partial"}


def test_a_kill_in_the_middle_leaves_nothing_that_counts(folder):
    """SIGKILL while an image is read; the next build clears up and is whole."""
    command = "import os; from tests.data.test_cache import *; import tests.data.test_cache as t\n"
    command += "good = source(PICTURES).open()\n"
    command += "bad = Files(good.classes, good.count, lambda i: os.kill(os.getpid(), 9) if i == 9 else good.read(i))\n"
    command += "cached(Source('pictures', {'data': 'pictures'}, lambda: bad), 'square', 20, skip_damaged=False)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=False).returncode == -9
    assert [path.suffix for path in folder.iterdir() if path.is_dir()] == [".partial"]
    assert len(cached(source(PICTURES), "square", 20, skip_damaged=False).split) == len(PICTURES)
    assert not list(folder.glob("*.partial"))


def test_names_that_are_no_file_names(folder):
    odd = Source("../../" + 300 * "x", {}, source(PICTURES).open)
    cached(odd, "square", 20, skip_damaged=False)
    assert len(list(folder.iterdir())) == 2  # the cache and its lock


def test_images_without_a_label():
    unlabelled = Files(("a", "b"), 2, lambda i: Encoded(f"{i}.jpg", PICTURES["jpeg"], -1))
    with pytest.raises(UserError, match="quiz-test has images without a label: choose another split"):
        load_splits(Request(size=20), source(PICTURES), Source("quiz-test", {}, lambda: unlabelled))


def _build(log, _):
    def open_files():
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return source(PICTURES).open()

    return cached(Source("shared", {}, open_files), "square", 20, skip_damaged=False).split.images[0].sum()


def test_two_processes_at_once_decode_once(tmp_path):
    log = tmp_path / "log"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        sums = pool.map(partial(_build, log), range(3), chunksize=1)
    assert len(set(sums)) == 1
    assert len(log.read_text().splitlines()) == 1


def test_the_cache_says_what_it_was_made_from(folder):
    cached(source(PICTURES), "square", 20, skip_damaged=False)
    about = json.loads((next(folder.glob("pictures-*")) / "about.json").read_text())
    assert about["key"] == {
        "format": 1, "pillow": Image.__version__, "jpeg": about["key"]["jpeg"], "form": "square", "size": 20,
        "data": "pictures",
    }  # fmt: skip
