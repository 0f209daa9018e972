"""Miniature archives with the official inner layouts, and the lists at full size."""

import io
import json
import tarfile
from itertools import chain

import numpy as np
from PIL import Image
from scipy.io import savemat


def picture(number, kind="JPEG", size=(40, 30)):
    """An encoded image of its own colours."""
    random = np.random.default_rng(number)
    pixels = np.kron(random.integers(0, 256, (3, 4, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, kind)
    return buffer.getvalue()


def tar(path, files):
    """Writes a tar archive, compressed as its name says."""
    with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def lines(rows):
    return "".join(f"{row}\n" for row in rows).encode()


def caltech256(folder, classes=3, images=23):
    """With the stray folder, a stray file, a list for people, and a class's images in no order."""
    files = {"256_ObjectCategories/056.dog/greg/vision309/benchmarks/056_0001.jpg": b"stray"}
    names = ["056.dog", "198.spider", "257.clutter", *(f"{n:03d}.more" for n in range(1, 255) if n not in (56, 198))]
    for name in names[:classes]:
        for i in reversed(range(1, images + 1)):
            files[f"256_ObjectCategories/{name}/{name[:3]}_{i:04d}.jpg"] = picture(int(name[:3]) * 1000 + i)
    files["256_ObjectCategories/198.spider/RENAME2"] = b"stray"
    tar(folder / "256_ObjectCategories.tar", files)
    return files


def mit_indoors67(folder):
    """With spaces in a name, the official spelling of a class, a GIF called .jpg, and images in no list."""
    named = {
        "train": ["stairscase/a b.jpg", "stairscase/2.jpg", "buffet/Buffet_Set_Up_gif.jpg"],
        "test": ["buffet/4.jpg", "stairscase/5.jpg"],
    }
    files = {"Images/buffet/unlisted.jpg": picture(99), "Annotations/buffet/4.xml": b"<xml/>"}
    for i, name in enumerate(chain.from_iterable(named.values())):
        files[f"Images/{name}"] = picture(i, "GIF" if "gif" in name else "JPEG")
    tar(folder / "indoorCVPR_09.tar", files)
    (folder / "TrainImages.txt").write_bytes(lines(named["train"]).replace(b"\n", b"\r\n"))
    (folder / "TestImages.txt").write_bytes(lines(named["test"]).rstrip(b"\n"))
    return files


def dogs_lists(folder, named):
    contents = {}
    for split, rows in named.items():
        buffer = io.BytesIO()
        names = np.empty((len(rows), 1), object)
        names[:, 0] = [name for name, _ in rows]
        savemat(buffer, {"file_list": names, "labels": np.array([[label] for _, label in rows], np.uint8)})
        contents[f"{split}_list.mat"] = buffer.getvalue()
    tar(folder / "lists.tar", {"file_list.mat": b"of both", **contents})


def stanford_dogs120(folder):
    """With a PNG called .jpg."""
    first, second = "n02085620-Chihuahua", "n02105855-Shetland_sheepdog"
    named = {
        "train": [(f"{first}/n02085620_1.jpg", 1), (f"{second}/n02105855_2933.jpg", 2)],
        "test": [(f"{second}/n02105855_3.jpg", 2), (f"{first}/n02085620_4.jpg", 1), (f"{first}/n02085620_5.jpg", 1)],
    }
    files = {
        f"Images/{name}": picture(i, "PNG" if "2933" in name else "JPEG")
        for i, (name, _) in enumerate(chain.from_iterable(named.values()))
    }
    tar(folder / "images.tar", files)
    dogs_lists(folder, named)
    return files


def cub_lists(train, classes, names):
    """`train` has 1 or 0 for each image; the parts of image i are at (10·i + part, part)."""
    numbers = range(1, len(names) + 1)
    return {
        "CUB_200_2011/classes.txt": lines(f"{i} {name}" for i, name in enumerate(classes, 1)),
        "CUB_200_2011/images.txt": lines(f"{i} {name}" for i, name in zip(numbers, names, strict=True)),
        "CUB_200_2011/image_class_labels.txt": lines(
            f"{i} {classes.index(name.split('/')[0]) + 1}" for i, name in zip(numbers, names, strict=True)
        ),
        "CUB_200_2011/train_test_split.txt": lines(f"{i} {flag}" for i, flag in zip(numbers, train, strict=True)),
        "CUB_200_2011/bounding_boxes.txt": lines(f"{i} {i}.0 2.0 30.5 {i}.5" for i in numbers),
        "CUB_200_2011/parts/part_locs.txt": lines(
            f"{i} {part} {10 * i + part}.5 {part}.0 {int(part % 2)}" for i in numbers for part in range(1, 16)
        ),
    }


def cub200_2011(folder):
    """The images come first and the lists behind them, as in a compressed archive they may."""
    names = ["001.Albatross/b.jpg", "001.Albatross/a.jpg", "002.Auk/c.jpg", "002.Auk/d.jpg"]
    files = {f"CUB_200_2011/images/{name}": picture(i, size=(40 + i, 30)) for i, name in enumerate(names)}
    files |= cub_lists([1, 0, 1, 0], ["001.Albatross", "002.Auk"], names)
    tar(folder / "CUB_200_2011.tgz", {"attributes.txt": b"", **files})
    return files


def food_lists(named):
    return {f"food-101/meta/{split}.json": json.dumps(lists).encode() for split, lists in named.items()}


def food101(folder):
    named = {
        "train": {"waffles": ["waffles/1", "waffles/2"], "apple_pie": ["apple_pie/3"]},
        "test": {"apple_pie": ["apple_pie/4"], "waffles": ["waffles/5"]},
    }
    images = [name for lists in named.values() for listed in lists.values() for name in listed]
    files = {f"food-101/images/{name}.jpg": picture(i) for i, name in enumerate(images)} | food_lists(named)
    tar(folder / "food-101.tar.gz", files)
    return files
