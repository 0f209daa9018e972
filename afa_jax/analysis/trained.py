"""A finished run, opened again: its data, the network before and after, and each stage's teacher and attention."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from afa_jax import compilation
from afa_jax.data.augment import Preprocess
from afa_jax.data.batches import test_batches
from afa_jax.data.dataset import Dataset, Images, Split
from afa_jax.errors import UserError, nearest
from afa_jax.experiment import Run
from afa_jax.inference.finished import reopen
from afa_jax.models import weights, zoo
from afa_jax.plan import planned_stages
from afa_jax.settings import image_sizes
from afa_jax.training.checkpoint import read_last
from afa_jax.training.prepare import read_constants
from afa_jax.training.step import init_state
from afa_jax.training.workdir import MODEL, ORIGIN, fingerprint
from afa_jax.transfer.method import Frozen
from afa_jax.transfer.recipes import Stage
from afa_jax.types import PyTree, Variables


@dataclass(frozen=True)
class Net:
    """A network with its weights; its activations are float32, whatever they were in training."""

    module: nn.Module
    variables: Variables


@dataclass(frozen=True)
class TrainedStage:
    """A stage as it ended.

    Attributes:
      teacher: whom the target was aligned to; None where the run began without a source network.
      attention: the method's own parameters.
      constants: what the method measured before the stage; empty where it measures nothing.
    """

    stage: Stage
    teacher: Net | None
    attention: PyTree
    constants: Mapping[str, PyTree]


class TrainedRun:
    """A finished run. What is asked of it is read when it is asked for, so that not all need be there."""

    def __init__(self, folder: Path):
        """Raises UserError: no finished run is there, or one of another version."""
        run = reopen(folder)
        self.folder, self.experiment = run.folder, run.experiment

    @property
    def planned(self) -> tuple[Stage, ...]:
        """The stages of the recipe; nothing is read."""
        return planned_stages(self.experiment)

    @property
    def preprocess(self) -> Preprocess:
        return self._run.preprocess

    @property
    def size(self) -> int:
        """The side of what the network sees, in pixels."""
        return self.preprocess.size

    @property
    def resize(self) -> int:
        """The side to which images are resized before the crop, in pixels."""
        return image_sizes(self.experiment)[1]

    @cached_property
    def data(self) -> Dataset:
        """The data set of the run, with as many labelled images as it had.

        Raises:
          UserError: it cannot be had, or its images have changed since.
        """
        data = self._run.data
        if data.key != self._begun("images"):
            raise UserError(f"The images are not those with which the run in {self.folder} began: bring them back.")
        return data

    @cached_property
    def test(self) -> Split:
        """The test images, one view of each: `preprocess.test` makes the centre crop of it, ten-crop or not."""
        split = self.data.test
        if self.experiment.data.augmentation == "improved":
            return replace(split, images=_Centres(split.images))
        return split

    @cached_property
    def target(self) -> Net:
        """The network that the run trained.

        Raises:
          UserError: it is not there any more.
        """
        if not (self.folder / MODEL / weights.FILE).is_file():
            raise UserError(f"The trained network {self.folder / MODEL / weights.FILE} is not there: bring it back.")
        name = self.experiment.network
        return Net(zoo.in_float32(self._run.target), weights.load(name, self.folder / MODEL))

    @property
    def start(self) -> Net:
        """The target before its first step: the source network (of `scratch`, random weights) with a new head.

        Raises:
          UserError: the source network cannot be had, or is not the one with which the run began.
        """
        return Net(zoo.in_float32(self._run.target), self._origin[0])

    @cached_property
    def stages(self) -> tuple[TrainedStage, ...]:
        """Every stage of the recipe, in order, from the checkpoints at their ends.

        Raises:
          UserError: checkpoints or measured constants have been removed, or do not fit.
        """
        first, module, source = self._origin
        images = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.uint8)
        made, trained = [], []
        for i, stage in enumerate(self.planned):
            _, teacher = self._run.begin(stage, first, source, trained)
            task = self._run.task(stage, module)
            start = partial(init_state, task), first, Frozen(teacher=teacher), images, jax.random.PRNGKey(0)
            state = read_last(self._run.checkpoint_folder(i), jax.eval_shape(*start))
            if int(state.step) != stage.steps:
                raise UserError(f"The checkpoint at the end of {self._run.checkpoint_folder(i)} is not there any more.")
            file = self._run.constants_file(i)
            constants = read_constants(file) if file.exists() else {}
            net = Net(zoo.in_float32(module), teacher) if teacher is not None else None
            made.append(TrainedStage(stage, net, state.params["attention"], constants))
            trained.append({"params": state.params["target"], "batch_stats": state.batch_stats})
        return tuple(made)

    def layer(self, name: str | None) -> str:
        """The layer `name`, or the last tap of the network.

        Raises:
          UserError: the network has no such layer, or it gives no feature map.
        """
        network = self._run.network
        name = name or network.taps[min(network.taps)][-1]
        maps = {layer: s for layer, s in zoo.layer_shapes(self.target.module, self.size).items() if len(s) == 4}
        if name not in maps:
            raise UserError(f"{self.experiment.network} has no layer {name!r} with feature maps; {nearest(name, maps)}")
        return name

    @cached_property
    def _run(self) -> Run:
        return Run(self.experiment, self.folder)

    @cached_property
    def _origin(self) -> tuple[Variables, nn.Module, Variables | None]:
        """(the target's first variables, the teacher's module, the source network's variables)."""
        first, module, source = self._run.start()
        if fingerprint(source) != self._begun("source network"):
            raise UserError(f"The source network is not what the run in {self.folder} began with: bring that back.")
        return first, module, source

    def _begun(self, what: str) -> str:
        """The digest of what the run began with."""
        try:
            return json.loads((self.folder / ORIGIN).read_text(encoding="utf-8"))[what]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / ORIGIN}, which says where the run began, is lost or damaged.") from error


@dataclass(frozen=True)
class _Centres:
    """Of five crops of each image the one in the middle."""

    crops: Images

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        return self.crops[chosen][..., 4, :, :, :]


class Seen(NamedTuple):
    """What a network makes of a batch of images.

    Attributes:
      logits: `[B, classes]`.
      features: what each of the wanted layers puts out, by its path.
    """

    logits: np.ndarray
    features: dict[str, np.ndarray]


@lru_cache(maxsize=16)
def _compile(module: nn.Module, preprocess: Preprocess, taps: tuple[str, ...]) -> Any:
    return compilation.jit(lambda variables, images: zoo.forward(module, variables, preprocess.test(images), taps=taps))


def watch(
    net: Net, preprocess: Preprocess, split: Split, taps: tuple[str, ...] = (), batch_size: int = 32
) -> Iterator[Seen]:
    """What a network in eval mode makes of the centre crop of each image of `split`, batch by batch.

    Args:
      taps: the layers whose outputs are wanted.
    """
    run = _compile(net.module, preprocess, taps)
    for batch in test_batches(split, min(batch_size, len(split))):
        count = int(batch["mask"].sum())  # the last batch is filled up
        outputs = jax.device_get(run(net.variables, batch["image"]))
        yield Seen(outputs.logits[:count], {tap: f[:count] for tap, f in outputs.features.items()})
