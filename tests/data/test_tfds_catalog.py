"""Any image-classification set that TFDS has, by name."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from afa_jax.config import default, settle
from afa_jax.data import catalog, tfds_catalog
from afa_jax.data.dataset import Request
from afa_jax.errors import UserError
from tests.data.archives import picture


class TinyTestSet(tfds.core.GeneratorBasedBuilder):
    """Six pictures of two classes under names of its own, and one without a label."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "pair", "broken")]  # noqa: RUF012

    def _info(self):
        features = {"photo": tfds.features.Image(), "species": tfds.features.ClassLabel(names=["ant", "bee"])}
        if self.builder_config.name == "pair":
            features["second"] = tfds.features.Image()
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        if self.builder_config.name == "broken":
            raise ModuleNotFoundError("No module named 'tensorflow'\n\nand much more")
        return {"train": self._generate_examples(0, 6), "validation": self._generate_examples(6, 10)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            more = {"second": picture(i)} if self.builder_config.name == "pair" else {}
            yield i, {"photo": picture(i, "PNG" if i % 3 else "JPEG"), "species": i % 2, **more}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    tfds_catalog._builder.cache_clear()
    yield tmp_path
    tfds_catalog._builder.cache_clear()


def load(name, **wanted):
    return catalog.load(name, Request(size=16, **wanted))


def test_a_set_by_its_name():
    data = load("tfds:tiny_test_set/plain", splits="train,validation")
    assert data.classes == ("ant", "bee")
    assert np.bincount(data.train.labels).tolist() == [3, 3] and np.bincount(data.test.labels).tolist() == [2, 2]
    assert data.train.images[np.arange(6)].shape == (6, 16, 16, 3)
    assert len(load("tfds:tiny_test_set/plain", splits="train,validation", per_class=1).train) == 2


def test_slices_of_a_split_and_a_folder_of_ones_own(cache):
    data = load("tfds:tiny_test_set/plain", splits="train[:50%], train[50%:]", folder=str(cache / "mine"))
    assert (len(data.train), len(data.test)) == (3, 3)
    assert (cache / "mine" / "tiny_test_set").is_dir()


def refuse(name, match, **wanted):
    with pytest.raises(UserError, match=match) as caught:
        load(name, **wanted)
    assert "\n" not in str(caught.value)


def test_what_tfds_cannot_give():
    refuse("tfds:no_such_set_anywhere", "TFDS cannot offer 'no_such_set_anywhere': ")
    refuse("tfds:tiny_test_set/plain", r"TFDS cannot read the split 'test' of .*: .*Unknown split")
    refuse("tfds:tiny_test_set/plain", r"config.data.splits is 'train'; it must name two", splits="train")
    refuse("tfds:tiny_test_set/pair", r"has 2 images and 1 labels an example, not one each", splits="train,validation")
    refuse(
        "tfds:tiny_test_set/broken", r"TFDS cannot prepare tiny_test_set/broken here: No module named 'tensorflow'\.$"
    )


def test_the_name_in_a_config():
    config = default()
    config.data.name = "tfds:tiny_test_set/plain"
    assert settle(config).data.name == "tfds:tiny_test_set/plain"
    config.data.name = "tdfs:tiny"
    with pytest.raises(UserError, match=r"no data set 'tdfs:tiny'; did you mean tfds:<name>"):
        settle(config)


def test_records_that_another_process_has_made_meanwhile(cache):
    """The builder was made before they were there, and knows no splits of its own."""
    place = str(cache / "cache" / "tfds")
    early = tfds_catalog._builder("tiny_test_set/plain", place)
    assert not early.is_prepared()
    tfds.builder("tiny_test_set/plain", data_dir=place, file_format="array_record").download_and_prepare()
    assert len(load("tfds:tiny_test_set/plain", splits="train,validation").train) == 6


def test_records_of_ones_own_that_are_made_anew(cache, monkeypatch):
    wanted = {"splits": "train,validation", "folder": str(cache / "mine")}
    load("tfds:tiny_test_set/plain", **wanted)
    first = load("tfds:tiny_test_set/plain", **wanted)
    shutil.rmtree(cache / "mine")
    honest = picture
    monkeypatch.setattr("tests.data.test_tfds_catalog.picture", lambda i, kind="JPEG": honest(i + 100, kind))
    tfds_catalog._builder.cache_clear()
    assert load("tfds:tiny_test_set/plain", **wanted).key != first.key
