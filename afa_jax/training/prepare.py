"""What a method measures once before a stage, on the training images, and how it is kept for a run that goes on."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from afa_jax import compilation, hosts
from afa_jax.data.augment import Preprocess
from afa_jax.data.batches import test_batches, train_batch
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.files import user_path, whole
from afa_jax.models import zoo
from afa_jax.models.masking import channel_readers, masked
from afa_jax.training.objective import Task
from afa_jax.transfer.channel_weights import loss_increases
from afa_jax.transfer.method import Anatomy, Frozen, Survey
from afa_jax.types import Batch, Outputs, PyTree, Variables

_TOGETHER_BYTES = {"cpu": 32 << 20}
"""How much the feature maps of the channels that are left out at once may take, by backend; 512 MiB on others. A CPU is
slower with more, because it must ask for the memory anew each time."""


def prepare(
    task: Task,
    frozen: Frozen,
    split: Split,
    *,
    before: Variables,
    attention: PyTree,
    seed: int,
    file: Path,
    tell: Callable[[str], None],
) -> Frozen:
    """`frozen` with what the stage's method measures; from `file` if it has been measured before, else kept there.

    Args:
      split: all training images.
      before: the target as an earlier stage left it, on which is measured.
      attention: the own parameters of that stage's method.
      seed: of the images on which DELTA's weights are measured.
      tell: is given a sentence before what may take minutes.
    """

    def measure() -> str:
        if not file.exists():
            survey = Survey(
                task.stage.settings,
                task.stage.taps,
                jnp.asarray(split.labels),
                teacher=lambda: _watch_teacher(task, frozen, split),
                attention=attention,
                loss_increases=lambda: _loss_increases(task, before, split, seed, tell),
                tell=tell,
            )
            constants = jax.tree.map(np.asarray, task.stage.method.prepare(survey))
            flat: dict[str, Any] = flatten_dict(constants, sep="/")
            if flat:
                file.parent.mkdir(parents=True, exist_ok=True)
                with whole(file) as partial_file:
                    save_file(flat, partial_file)
        return sha256(file.read_bytes()).hexdigest() if file.exists() else ""

    if digest := hosts.agreed(measure):  # on its first device; the other hosts take its numbers
        hosts.wait_for(file, digest)
        return frozen.replace(constants=read_constants(file))
    return frozen.replace(constants={})


def read_constants(file: Path) -> dict[str, PyTree]:
    """What `prepare` has kept there.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return unflatten_dict(load_file(file), sep="/")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: remove it, and it is measured again.") from error


@lru_cache(maxsize=8)
def _compile_teacher(
    module: nn.Module, preprocess: Preprocess, taps: tuple[str, ...]
) -> Callable[[Variables, Array], Outputs]:
    return compilation.jit(lambda variables, images: zoo.forward(module, variables, preprocess.test(images), taps=taps))


def _watch_teacher(task: Task, frozen: Frozen, split: Split, batch_size: int = 64) -> Iterator[Outputs]:
    """The teacher's outputs for the centre crop of every image, once and in order."""
    assert frozen.teacher is not None
    run = _compile_teacher(task.teacher, task.preprocess, task.stage.taps)
    # From wherever it comes, one program serves it: where `Devices.local` puts arrays.
    first = min(jax.local_devices(), key=lambda device: device.id)
    teacher = jax.device_put(frozen.teacher, first)
    for batch in test_batches(split, min(batch_size, len(split))):
        count = int(batch["mask"].sum())  # the last batch is filled up
        outputs = run(teacher, batch["image"])
        yield outputs._replace(
            logits=outputs.logits[:count], features={tap: f[:count] for tap, f in outputs.features.items()}
        )


def _loss_increases(
    task: Task, variables: Variables, split: Split, seed: int, tell: Callable[[str], None]
) -> dict[str, Array]:
    """DELTA eq. 9 on augmented batches of the training images, or on the centre crop of all; or from a file."""
    settings, size = task.stage.settings, task.preprocess.size
    shapes = zoo.layer_shapes(task.target, size)
    channels = {tap: shapes[tap][-1] for tap in task.stage.taps}
    if settings["channel_weights"]:
        return read_increases(user_path(settings["channel_weights"]), channels)
    count = settings["batches"] or math.ceil(len(split) / settings["images"])
    number = sum(channels.values())
    tell(f"Leaving out {number:,} channels, one by one, on {count} batches of {settings['images']} images.")
    # In float32, because the differences are small against the losses.
    module = zoo.in_float32(task.target)
    parts = {tap: filter_parts(task.anatomy, shapes, tap) for tap in channels}
    readers = {
        tap: channel_readers(module, variables, size, partial(_masks, parts[tap]), number)
        for tap, number in channels.items()
    }
    totals, images = {tap: np.zeros(number) for tap, number in channels.items()}, 0.0
    for batch in _sample(task.preprocess, split, settings["batches"], settings["images"], seed):
        seen = float(batch["mask"].sum())
        for tap, number in channels.items():
            together = channels_together(len(batch["label"]), shapes[tap])
            increases = _compile_increases(module, parts[tap], readers[tap], number, together)(variables, batch)
            totals[tap] += seen * np.asarray(increases)
        images += seen
    return {tap: jnp.asarray(total / images, jnp.float32) for tap, total in totals.items()}


def _sample(preprocess: Preprocess, split: Split, batches: int, size: int, seed: int) -> Iterator[Batch]:
    """Preprocessed batches: augmented ones, in a seeded order of their own, or (0) every image's centre crop once."""
    if not batches:
        for batch in test_batches(split, size):
            images = preprocess.test(jnp.asarray(batch["image"]))
            yield {"image": images, "label": jnp.asarray(batch["label"]), "mask": jnp.asarray(batch["mask"])}
    for step in range(batches):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), 1 << 20), step)
        batch = train_batch(split, size, step, seed, purpose="channel weights")
        images = jax.jit(preprocess.train)(key, batch["image"])
        yield {"image": images, "label": jnp.asarray(batch["label"]), "mask": jnp.ones(size)}


class Part(NamedTuple):
    """The channels `begin` to `end` of a tap, where they are made: from channel `at` on of the layer `layer`."""

    layer: str
    begin: int
    end: int
    at: int


def filter_parts(anatomy: Anatomy, shapes: Mapping[str, tuple[int, ...]], tap: str) -> tuple[Part, ...]:
    """Where the filters of a tap put out their channels, before BatchNorm and ReLU.

    A filter that is set to zero puts out zero there. Channels that no filter makes, a pool's, are the tap's own.
    """
    parts, begin, channels = [], 0, shapes[tap][-1]
    for layer in anatomy.filters_of(tap):
        parts.append(Part(layer, begin, begin + shapes[layer][-1], 0))
        begin = parts[-1].end
    return (*parts, Part(tap, begin, channels, begin)) if begin < channels else tuple(parts)


def _masks(parts: tuple[Part, ...], mask: Array) -> dict[str, Array]:
    """A mask of a tap's channels as those of the layers that make them."""
    return {part.layer: jnp.concatenate([jnp.ones(part.at), mask[part.begin : part.end]]) for part in parts}


@lru_cache(maxsize=32)
def _compile_increases(
    module: nn.Module, parts: tuple[Part, ...], readers: frozenset[str], channels: int, together: int
) -> Callable[[Variables, Mapping[str, Array]], Array]:
    return compilation.jit(partial(_increases, module, parts, readers, channels, together))


def _increases(
    module: nn.Module,
    parts: tuple[Part, ...],
    readers: frozenset[str],
    channels: int,
    together: int,
    variables: Variables,
    batch: Mapping[str, Array],
) -> Array:
    def loss(mask: Array) -> Array:
        left_out, masks = jnp.argmin(mask), _masks(parts, mask)
        # A GPU's short cuts for products would be as large as the differences.
        with jax.default_matmul_precision("highest"):
            logits = masked(module, variables, batch["image"], masks, readers=readers, channel=left_out)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return (losses * batch["mask"]).sum() / batch["mask"].sum()

    return loss_increases(loss, jnp.arange(channels), channels, together)


def channels_together(images: int, shape: tuple[int, ...]) -> int:
    """How many channels of a tap are left out at once: a divisor of their number, so that all groups are alike.

    Args:
      images: in the batch.
      shape: of the tap for one image, `(1, H, W, C)`.
    """
    room = _TOGETHER_BYTES.get(jax.default_backend(), 512 << 20)
    limit = max(1, room // (4 * images * math.prod(shape)))
    return next(number for number in range(min(shape[-1], limit), 0, -1) if shape[-1] % number == 0)


def read_increases(file: Path, channels: Mapping[str, int]) -> dict[str, Array]:
    """DELTA's loss increases from a file.

    Args:
      file: the authors' JSON, a list of as many lists as there are taps, in their order; or the constants that another
        run has kept, by tap.
      channels: how many each tap must have.

    Raises:
      UserError: there is no such file, or it is not made for these taps.
    """
    wanted = "methods.*.channel_weights"
    if not file.is_file():
        raise UserError(f"There is no file {file}, which {wanted} names.")
    if file.suffix == ".safetensors":
        try:
            found: dict[str, Any] = dict(unflatten_dict(load_file(file), sep="/")["increases"])
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file} holds no loss increases that a run has kept.") from error
    else:
        try:
            lists = json.loads(file.read_text(encoding="utf-8"))
            found = dict(zip(channels, lists, strict=True))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file} must be a JSON list of {len(channels)} lists of numbers, one a tap ({', '.join(channels)})."
            ) from error
    increases = {}
    for tap, number in channels.items():
        try:
            values = np.asarray(found.get(tap, ()), np.float32)
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}: what it has for the tap {tap} are no numbers.") from error
        if values.shape != (number,) or not np.isfinite(values).all():
            what = f"{values.size} values" if np.isfinite(values).all() else "values that are not finite"
            raise UserError(f"{file} has {what} for the tap {tap}, which has {number} channels.")
        increases[tap] = jnp.asarray(values)
    return increases
