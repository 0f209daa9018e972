"""Faces drawn on the spot, by visible light and in near infrared: source and target of a task that needs no network.

A person is a set of proportions and colours, a photo of them a pose, an expression and a light. In near infrared, as in
PolyU-NIRFD, there is no colour; skin of every tone is bright, dark hair too, lips nearly vanish, irises shine, and the
camera's lamp is in front of a dark background. The people of the two sets are not the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256

import numpy as np
from PIL import Image, ImageDraw

from afa_jax.data.builders.identities import check_held_out, hold_out
from afa_jax.data.dataset import Builder, Dataset, Request, Split, generator, limited

PEOPLE = {"visible": 160, "infrared": 64}
PHOTOS = 12
"""Of each."""
_CANVAS = 128  # pixels; faces are drawn large here before they are made small

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Person:
    """Proportions in units of half the canvas, from the middle of the face; colours in [0, 1]."""

    width: float
    height: float
    chin: float
    hairline: float
    hair_width: float
    eye_gap: float
    eye_level: float
    eye_size: float
    eye_shape: float
    brow_gap: float
    brow_width: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_level: float
    mouth_width: float
    lips: float
    mole_x: float
    mole_y: float
    tone: float
    hair_tone: float
    hair_hue: float
    iris: float


_RANGES = (
    *((0.5, 0.72), (0.7, 0.88), (0.3, 0.6), (0.25, 0.55), (0.0, 0.12)),  # width, height, chin, hairline, hair_width
    *((0.17, 0.3), (-0.15, 0.08), (0.07, 0.13), (0.45, 0.8)),  # the eyes'
    *((0.1, 0.2), (0.02, 0.07), (-0.3, 0.3)),  # the brows'
    *((0.2, 0.42), (0.05, 0.14)),  # the nose's
    *((0.3, 0.46), (0.14, 0.32), (0.03, 0.1)),  # the mouth's
    *((-0.35, 0.35), (-0.1, 0.4)),  # the mole's
    *((0.3, 0.95), (0.05, 0.75), (0.0, 1.0), (0.0, 1.0)),  # tone, hair_tone, hair_hue, iris
)


def load(light: str, request: Request) -> Dataset:
    """The set of this light; `request.held_out` of its people, chosen by the seed, are verified.

    Raises:
      UserError: so many cannot be held out.
    """
    images = _draw(light, request.size)
    names = tuple(f"{light}{i:03}" for i in range(PEOPLE[light]))
    check_held_out(request.held_out, len(names), f"the drawn faces ({light})")
    held = tuple(hold_out(names, request.held_out, request.seed))
    trained = tuple(name for name in names if name not in held)
    train, test = (_of(people, names, images) for people in (trained, held))
    key = sha256(images.tobytes()).hexdigest()  # they are as this version of Pillow draws them
    return limited(Dataset(trained, train, test, key, held_out=held), request)


def _of(people: tuple[str, ...], names: tuple[str, ...], images: np.ndarray) -> Split:
    files = [f"{person}/{photo:02}" for person in people for photo in range(PHOTOS)]
    rows = np.array([names.index(person) * PHOTOS + photo for person in people for photo in range(PHOTOS)])
    return replace(
        Split(images, np.zeros(len(images), np.int32)).take(rows),
        labels=np.repeat(np.arange(len(people), dtype=np.int32), PHOTOS),
        files=files,
    )


@lru_cache(maxsize=2)
def _draw(light: str, size: int) -> np.ndarray:
    """uint8 `[people · photos, size, size, 3]`, always the same."""
    random = generator(f"drawn faces {light}", 0)
    made = [photo for _ in range(PEOPLE[light]) for photo in _photos(_person(random), light, size, random)]
    return np.stack(made)


def _person(random: np.random.RandomState) -> Person:
    return Person(*random.uniform(*np.transpose(_RANGES)).tolist())


def _photos(person: Person, light: str, size: int, random: np.random.RandomState) -> Iterator[np.ndarray]:
    for _ in range(PHOTOS):
        canvas = Image.new("RGB", (_CANVAS, _CANVAS), _bytes(_background(light, random)))
        _face(ImageDraw.Draw(canvas), person, light, smile=random.uniform(-0.08, 0.1), gaze=random.uniform(-0.03, 0.03))
        turn, scale = np.deg2rad(random.uniform(-9, 9)), random.uniform(1.0, 1.2)
        shift = random.uniform(-5, 5, 2)
        # Affine map from a place in the photo to that on the canvas, both taken from their middles.
        matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        origin = _CANVAS / 2 - matrix @ (_CANVAS / 2 + shift)
        coefficients = (*matrix[0], origin[0], *matrix[1], origin[1])
        posed = canvas.transform((_CANVAS, _CANVAS), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        small = np.asarray(posed.resize((size, size), Image.Resampling.BOX), np.float64)
        noise = random.normal(0, 6, (size, size, 3 if light == "visible" else 1))
        yield np.clip(small * _lamp(light, size, random) + noise, 0, 255).round().astype(np.uint8)


def _background(light: str, random: np.random.RandomState) -> Colour:
    red, green, blue = random.uniform(0.1, 0.9, 3)
    return (red, green, blue) if light == "visible" else (0.06, 0.06, 0.06)


def _lamp(light: str, size: int, random: np.random.RandomState) -> np.ndarray:
    """How bright each place is lit, `[size, size, 1]`: from a side, or from the camera."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, size)] * 2)
    if light == "infrared":
        return (random.uniform(0.85, 1.1) * (1 - 0.25 * (x**2 + y**2)))[..., None]
    way, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.35)
    return (random.uniform(0.75, 1.1) * (1 + strength * (x * np.cos(way) + y * np.sin(way))))[..., None]


def _colours(person: Person, light: str) -> dict[str, Colour]:
    tone, hair, hue = person.tone, person.hair_tone, person.hair_hue
    if light == "visible":
        return {
            "skin": (tone, 0.8 * tone, 0.65 * tone),
            "shade": (0.8 * tone, 0.6 * tone, 0.48 * tone),
            "hair": (hair, hair * (0.55 + 0.3 * hue), hair * (0.2 + 0.4 * hue)),
            "lips": (0.75 * tone + 0.15, 0.4 * tone, 0.4 * tone),
            "white": (0.95, 0.95, 0.95),
            "iris": (0.4 * person.iris, 0.3, 0.6 * (1 - person.iris)),
            "pupil": (0.02, 0.02, 0.02),
        }
    greys = {
        "skin": 0.7 + 0.1 * tone,
        "shade": 0.6 + 0.1 * tone,
        "hair": 0.4 + 0.15 * hair,
        "lips": 0.66 + 0.1 * tone,
        "white": 0.6,
        "iris": 0.75,
        "pupil": 0.1,
    }
    return {name: (grey, grey, grey) for name, grey in greys.items()}


def _face(canvas: ImageDraw.ImageDraw, p: Person, light: str, *, smile: float, gaze: float) -> None:
    colours = {name: _bytes(colour) for name, colour in _colours(p, light).items()}
    _oval(canvas, 0, -0.12, p.width + p.hair_width, p.height, colours["hair"])
    _oval(canvas, 0, 0, p.width, p.height, colours["skin"])
    _oval(canvas, 0, p.height - p.chin, 0.75 * p.width, p.chin, colours["skin"])
    top = -p.height - 0.15
    canvas.chord(_box(0, top + p.hairline / 2, p.width + p.hair_width, p.hairline), 180, 360, colours["hair"])
    _oval(canvas, 0, top + 0.3, 0.9 * p.width, 0.5 * p.hairline, colours["hair"])
    for side in (-1, 1):
        x, size = side * p.eye_gap, p.eye_size
        _oval(canvas, x, p.eye_level, size, p.eye_shape * size, colours["white"])
        _oval(canvas, x + gaze, p.eye_level, 0.55 * size, 0.55 * p.eye_shape * size, colours["iris"])
        _oval(canvas, x + gaze, p.eye_level, 0.25 * size, 0.25 * size, colours["pupil"])
        level, rise = p.eye_level - p.brow_gap, 0.5 * p.brow_tilt * size
        inner, outer = x - side * 1.2 * size, x + side * 1.2 * size
        ends = [_pixels(inner), _pixels(level + rise), _pixels(outer), _pixels(level - rise)]
        canvas.line(ends, colours["hair"], round(p.brow_width * _CANVAS / 2))
    nose = [(0, p.eye_level), (-p.nose_width, p.eye_level + p.nose_length), (p.nose_width, p.eye_level + p.nose_length)]
    canvas.polygon([(_pixels(x), _pixels(y)) for x, y in nose], colours["shade"])
    corners = [(-p.mouth_width, -smile), (0, -p.lips), (p.mouth_width, -smile), (0, smile + p.lips)]
    canvas.polygon([(_pixels(x), _pixels(p.mouth_level + y)) for x, y in corners], colours["lips"])
    _oval(canvas, p.mole_x, p.mole_y, 0.03, 0.03, colours["hair"])


def _oval(
    canvas: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float, colour: tuple[int, ...]
) -> None:
    canvas.ellipse(_box(x, y, width, height), colour)


def _box(x: float, y: float, width: float, height: float) -> list[float]:
    """Of the half axes of an ellipse."""
    return [_pixels(x - width), _pixels(y - height), _pixels(x + width), _pixels(y + height)]


def _pixels(place: float) -> float:
    return (1 + place) * _CANVAS / 2


def _bytes(colour: Colour) -> tuple[int, ...]:
    return tuple(round(255 * min(1.0, part)) for part in colour)


DATASETS = {
    "drawn_faces": Builder(partial(load, "visible"), seeded=True, verified=True),
    "drawn_faces_infrared": Builder(partial(load, "infrared"), seeded=True, verified=True),
}
