"""Every method with every network: the whole step is traced, with the shapes of what is measured, and not run."""

import jax
import jax.numpy as jnp
import pytest
from flax.core import FrozenDict

from afa_jax.data.augment import Preprocess
from afa_jax.models.zoo import NETWORKS, create, kernels, layer_shapes
from afa_jax.plan import anatomy
from afa_jax.training.objective import Task
from afa_jax.training.optimizer import Sgd
from afa_jax.training.step import init_state, make_step
from afa_jax.transfer.method import Frozen, Need
from afa_jax.transfer.methods import METHODS
from afa_jax.transfer.recipes import Stage

# Small images where the network's layers allow them.
LEAST = {"inception_v3_no_aux": 75, "inception_v3": 299}
SIZES = {name: LEAST.get(name, 112 if spec.image_size == 112 else 32) for name, spec in NETWORKS.items()}
QUICK = ("resnet10_small",)
CLASSES, SOURCE_CLASSES, BATCH = 3, 5, 2


def constants(taps, shapes):
    """What `prepare` gives, as shapes."""
    array = jax.ShapeDtypeStruct
    return {
        "energy": {tap: array((), jnp.float32) for tap in taps},
        "channels": {tap: array((shapes[tap][-1],), jnp.float32) for tap in taps},
        "positions": {tap: array((shapes[tap][1] * shapes[tap][2],), jnp.float32) for tap in taps},
        "logits": array((9, SOURCE_CLASSES), jnp.float32),
        "relationship": array((CLASSES, SOURCE_CLASSES), jnp.float32),
    }


def batch(size):
    array = jax.ShapeDtypeStruct
    images, labels = array((BATCH, size, size, 3), jnp.uint8), array((BATCH,), jnp.int32)
    return {"image": images, "label": labels, "index": labels, "source": {"image": images, "label": labels}}


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]
)
def test_the_step_of_every_method_can_be_made_for_every_network(network):
    spec, size = NETWORKS[network], SIZES[network]
    target, teacher = create(network, CLASSES), create(network, SOURCE_CLASSES)
    shapes = layer_shapes(target, size)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables, frozen = (jax.eval_shape(module.init, jax.random.key(0), image) for module in (target, teacher))
    where = anatomy(spec)
    count = max(spec.taps)
    for name, method in METHODS.items():
        taps = spec.taps[count] if method.has_taps else ()
        settings = FrozenDict({**method.settings, "convention": "normalised"})
        stage = Stage(method, 10, 0.1, 7, 0.1, settings, taps)
        task = Task(target, teacher, where, stage, Preprocess(size, True, spec.mean, spec.std), Sgd())

        def run(variables, teacher, constants, batch, task=task):
            frozen = Frozen(teacher, constants)
            state = init_state(task, variables, frozen, batch["image"], jax.random.PRNGKey(0))
            return state, make_step(task)(state, frozen, batch)

        before, (after, metrics) = jax.eval_shape(run, variables, frozen, constants(taps, shapes), batch(size))
        assert jax.tree.map(lambda leaf: leaf.shape, before) == jax.tree.map(lambda leaf: leaf.shape, after)
        assert metrics["loss"].shape == () and metrics["alignment"].shape == ()
        assert (len([key for key in metrics if key.startswith("alignment/")]) > 0) == (name not in ("l2", "l2_fe"))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_filters_of_every_tap_are_convolutions_that_make_its_channels(network):
    """For L2-SP-ATT, with 4, 8 and 12 taps; a block that halves the resolution has a pool's channels beside them."""
    spec = NETWORKS[network]
    module, size = create(network, CLASSES), SIZES[network]
    shapes, known = layer_shapes(module, size), kernels(module, size)
    where = anatomy(spec)
    for tap in {tap for taps in spec.taps.values() for tap in taps} | set(spec.filters):
        filters = where.filters_of(tap)
        assert set(filters) <= known
        made = sum(shapes[layer][-1] for layer in filters)
        assert made == shapes[tap][-1] or (made < shapes[tap][-1] and tap in ("Mixed_6a", "Mixed_7a"))


def test_methods_with_taps_say_so():
    for method in METHODS.values():
        assert method.has_taps == bool(method.needs & {Need.TEACHER_FEATURES, Need.TAPS})
