"""The door: every wrong key or value is refused with a hint, and what comes through is frozen."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from afa_jax.config import default, known_keys, settle
from afa_jax.errors import UserError
from afa_jax.settings import normalisation, to_json
from afa_jax.transfer.methods import METHODS
from tests import tiny


@pytest.mark.parametrize(
    ("network", "name", "mean"),
    [("inception_v3", "network", 0.5), ("inception_v3", "imagenet", 0.485), ("resnet18", "half", 0.5)],
)
def test_images_are_normalised_as_the_weights_want_them(network, name, mean):
    config = default()
    config.network, config.source.normalisation = network, name
    assert normalisation(settle(config))[0][0] == mean


def test_defaults_are_the_papers_schedule():
    e = settle(default())
    assert (e.steps, e.batch_size, e.learning_rate, e.momentum, e.drop) == (9000, 64, 0.01, 0.9, 0.1)
    assert e.drop_after == pytest.approx(2 / 3)
    assert e.convention == "released"
    assert {name: dict(s) for name, s in e.methods.items()} == {n: dict(m.settings) for n, m in METHODS.items()}


def test_overrides_come_through_and_are_frozen():
    e = settle(tiny.config(**{"methods.ast.alpha": 0.5, "learning_rate": 1}))
    assert e.methods["ast"]["alpha"] == 0.5
    assert e.learning_rate == 1.0 and type(e.learning_rate) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.seed = 3
    with pytest.raises(ValueError, match="immutable"):
        e.methods["ast"]["alpha"] = 3
    assert hash(e) == hash(settle(tiny.config(**{"methods.ast.alpha": 0.5, "learning_rate": 1})))


def test_to_json_and_back():
    e = settle(tiny.config())
    assert settle(ConfigDict(json.loads(json.dumps(to_json(e))))) == e


def test_recipes_may_be_several():
    assert settle(tiny.config("l2, ast,afa")).recipes == ("l2", "ast", "afa")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("recipe", "af", "config.recipe is 'af', which does not exist; did you mean afa"),
        ("recipe", "l2,l2", "names a recipe twice"),
        ("network", "resnet11", "did you mean resnet101"),
        ("data.name", "digit", "did you mean digits"),
        ("source.dataset", "leters", "did you mean letters"),
        ("convention", "papers", "did you mean paper"),
        ("dtype", "float16", "did you mean"),
        ("taps", 5, "config.taps is '5', which does not exist; choose from 4"),
        ("batch_size", 0, "config.batch_size is 0; it must be at least 1"),
        ("steps", 1, "config.steps is 1; it must be at least 2"),  # two stages
        ("keep_checkpoints", 1, "config.keep_checkpoints is 1; it must be at least 2"),
        ("seed", -1, "at least 0"),
        ("drop_after", 1.5, "between 0 and 1"),
        ("learning_rate", float("nan"), "config.learning_rate is nan"),
        ("learning_rate", float("inf"), "config.learning_rate is inf"),
        ("methods.ast.alpha", -0.1, "config.methods.ast.alpha is -0.1; it must be at least 0"),
        ("methods.act.alpha", float("nan"), "config.methods.act.alpha is nan"),
        ("data.image_size", 64, "data.image_size is 64, larger than data.resize, 8"),
    ],
)
def test_wrong_values(key, value, sentence):
    with pytest.raises(UserError) as error:
        settle(tiny.config(**{key: value}))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sed", "seed"),
        ("data.per_clas", "data.per_class"),
        ("methods.ast.alfa", "methods.ast.alpha"),
        ("methods.asd", "methods.a"),
        ("alpha", "methods.ast.alpha"),
    ],
)
def test_wrong_keys(key, near):
    config = default()
    with config.unlocked():
        config.update_from_flattened_dict({key: 1.0})
    with pytest.raises(UserError) as error:
        settle(config)
    assert f"There is no setting config.{key}; did you mean" in str(error.value) and near in str(error.value)


def test_wrong_types():
    values = default().to_dict()
    for changes, sentence in (
        ({"seed": 1.5}, "config.seed is 1.5; it must be of type int"),
        ({"recipe": 3}, "config.recipe is 3; it must be of type str"),
        ({"steps": True}, "config.steps is True; it must be of type int"),
        ({"data": "digits"}, "config.data must hold settings, not 'digits'"),
    ):
        with pytest.raises(UserError) as error:
            settle(ConfigDict({**values, **changes}))
        assert sentence in str(error.value)


def test_every_setting_is_known_by_its_dotted_name():
    keys = known_keys()
    assert {"seed", "data.per_class", "source.steps", "methods.act.weight_decay"} <= set(keys)
    assert len(keys) == len(set(keys))
