"""Network Dissection on photos whose detectors are known, and against brute force."""

import jax
import numpy as np
import pytest
from PIL import Image

from afa_jax.analysis import dissection
from afa_jax.analysis.concepts import Concept, Resized, read_masked
from afa_jax.analysis.dissection import count, detectors, dissect, thresholds
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from tests.analysis import made

SIZE = 16
CONCEPTS = {1: ("ball", "object"), 2: ("grass", "object"), 3: ("striped", "texture"), 9: ("never", "texture")}


@pytest.fixture
def folder(tmp_path):
    """Six photos: a red ball on green, in the last three of which a blue patch is a texture, in a layer of its own."""
    for name in ("images", "masks", "masks/texture"):
        (tmp_path / name).mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        mask = np.full((SIZE, SIZE), 2, np.uint8)
        image[..., 1] = random.integers(90, 160, (SIZE, SIZE))
        y, x = random.integers(0, SIZE - 5, 2)
        image[y : y + 4, x : x + 5] = (200 + i, 0, 0)
        mask[y : y + 4, x : x + 5] = 1
        mask[:1] = 0  # of the first row nothing is said
        if i > 2:
            image[8:12, :6, 2] = 255
            texture = np.zeros((SIZE, SIZE), np.uint8)
            texture[8:12, :6] = 3
            Image.fromarray(texture).save(tmp_path / "masks" / "texture" / f"photo{i}.png")
        Image.fromarray(image).save(tmp_path / "images" / f"photo{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"photo{i}.png")
    rows = "".join(f"{index},{name},{category}\n" for index, (name, category) in CONCEPTS.items())
    (tmp_path / "concepts.csv").write_text(f"index,name,category\n{rows}")
    return tmp_path


def brute(folder, net, least, size=SIZE):
    """IoU of every unit with every concept, from all upsampled maps at once."""
    files = sorted((folder / "images").iterdir())
    images = np.stack([np.asarray(Image.open(f)) for f in files]).astype(np.float32) / 255
    maps = np.asarray(net.module.apply(net.variables, images, capture_intermediates=True)[1]["intermediates"]["see"]
                      ["__call__"][0])  # fmt: skip
    large = np.asarray(jax.image.resize(maps, (len(files), size, size, maps.shape[-1]), "bilinear"))
    active = large > least.astype(np.float32)
    masks = np.stack([np.asarray(Image.open(folder / "masks" / f.name)) for f in files])
    textures = np.zeros_like(masks)
    for i, f in enumerate(files):
        if (folder / "masks/texture" / f.name).exists():
            textures[i] = np.asarray(Image.open(folder / "masks/texture" / f.name))
    iou = np.zeros((maps.shape[-1], len(CONCEPTS)))
    for c, (index, (_, category)) in enumerate(CONCEPTS.items()):
        at = (masks == index) | (textures == index)
        of_category = [n for n, (_, other) in CONCEPTS.items() if other == category]
        looked = (np.isin(masks, of_category) | np.isin(textures, of_category)).any((1, 2))
        for unit in range(maps.shape[-1]):
            both = (active[looked][..., unit] & at[looked]).sum()
            either = (active[looked][..., unit] | at[looked]).sum()
            iou[unit, c] = both / either if either else 0
    return iou


COLOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (-1, 0.5, 0.2))


@pytest.mark.parametrize("pool", [1, 4])
def test_the_iou_of_every_unit_and_concept_is_that_of_brute_force(folder, monkeypatch, pool):
    monkeypatch.setattr(dissection, "_TOGETHER", 2)
    masked, net, plain = read_masked(folder), made.net(*COLOURS, pool=pool), made.plain(SIZE)
    photos = Split(Resized(masked.files, SIZE), np.zeros(6, np.int32))
    found = thresholds(net, plain, photos, "see")
    for least in (found, np.array([0.3, 0.2, 0.1, 0.35, 0.05])):
        iou = count(net, plain, masked, photos, "see", least).iou
        np.testing.assert_allclose(iou, brute(folder, net, least), atol=1e-12)
    assert iou.max() > 0.2 and not iou[:, 3].any()


def test_thresholds_are_exceeded_at_one_position_in_two_hundred(folder):
    masked, net = read_masked(folder), made.net(*COLOURS)
    photos = Split(Resized(masked.files, SIZE), np.zeros(6, np.int32))
    images = photos.images[np.arange(6)].astype(np.float32) / 255
    values = (images @ np.array(COLOURS, np.float32).T).reshape(-1, 5)
    exact = np.quantile(values, 0.995, axis=0, method="higher")
    assert (np.abs(thresholds(net, made.plain(SIZE), photos, "see") - exact) <= 4 * np.ptp(values, axis=0) / 4096).all()


def test_known_detectors_are_found(folder, monkeypatch):
    """With a larger share on, so that few pixels of few photos do: red is the ball, blue the texture, black nothing."""
    monkeypatch.setattr(dissection, "TOP_SHARE", 0.08)
    nets = {"target": made.net((1, 0, 0), (0, 0, 1), (1, 0, 0)), "source": made.net((0, 0, 0))}
    told = dissect(nets, made.plain(SIZE), read_masked(folder), "see")
    assert [(u["unit"], u["concept"], u["category"]) for u in told["target"]["units"]] == [
        *((0, "ball", "object"), (1, "striped", "texture"), (2, "ball", "object"))
    ]
    assert told["target"]["detectors"] == {"object": 1, "texture": 1}
    assert told["source"] == {"detectors": {"object": 0, "texture": 0}, "units": []}
    assert told["layer"] == "see" and told["threshold"] == 0.04


def test_a_detector_is_counted_once_for_its_best_concept():
    concepts = [Concept("dog", "object"), Concept("head", "part"), Concept("leg", "part")]
    iou = np.array([[0.2, 0.1, 0.0], [0.3, 0.05, 0.0], [0.0, 0.0, 0.04], [0.01, 0.05, 0.041]])
    told = detectors(iou, concepts)
    assert told["detectors"] == {"object": 1, "part": 1}
    found = [(u["unit"], u["concept"], u["iou"]) for u in told["units"]]
    assert found == [(0, "dog", 0.2), (1, "dog", 0.3), (3, "head", 0.05)]


def spoil_mask(change):
    def spoil(folder):
        file = folder / "masks" / "photo1.png"
        change(Image.open(file)).save(file)

    return spoil


def write(text):
    return lambda folder: (folder / "concepts.csv").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: [p.unlink() for p in (f / "images").iterdir()], "has no photos: put them into"),
        (lambda f: (f / "masks/photo0.png").unlink(), r"photo0.png has no mask .*masks/photo0.png: make it"),
        (spoil_mask(lambda m: m.resize((8, 16))), r"must be of one size, and have 16 × 16 and 8 × 16 pixels"),
        (spoil_mask(lambda m: m.convert("RGB")), "must be an index image, .* of the kind RGB"),
        (spoil_mask(lambda m: m.point(lambda v: 7 * (v == 1))), r"photo1.png has the index 7, which concepts.csv does"),
        (lambda f: (f / "masks/photo1.png").write_text("no"), r"masks/photo1.png is no image that can be read"),
        (lambda f: (f / "concepts.csv").unlink(), r"There is no .*concepts.csv, which says what the masks'"),
        (write("index;name\n1;ball\n"), "must have the columns index, name and category"),
        (write("index,name,category\n1,ball,object\n1,dog,object\n"), "must have each index once"),
        (write("index,name,category\n1,,object\n2,grass,object\n3,a,b\n"), "a line without a name or a category"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        read_masked(folder)


def test_a_mask_with_a_palette_or_sixteen_bits_is_read(folder):
    spoil_mask(lambda m: m.convert("P"))(folder)
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint16)).save(folder / "masks" / "photo2.png")
    masked = read_masked(folder)
    assert set(np.unique(masked.labels(2, 8))) == {9} and masked.labels(4, 8).shape == (2, 8, 8)
