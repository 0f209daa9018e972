"""Verification: equal to brute force over a list of all pairs and to scikit-learn's ROC, ties included."""

import json
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_curve

from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.evaluation.pairs import Pairs, _order, similarities
from afa_jax.evaluation.verification import check, directions, embed, interval, verify
from afa_jax.models.zoo import forward
from tests import tiny

FARS = (0.3, 0.1, 0.02)


def with_ties(seed, images=60, identities=7, size=4, values=2):
    """Few different embeddings of whole numbers, whose inner products are exact in any order of summing."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(identities), random.integers(0, identities, images - identities)])
    return np.float32(random.integers(-values, values + 1, (images, size))), 10 * labels[random.permutation(images)]


def all_pairs(embeddings, labels):
    """(similarities, whether genuine) of every pair, kept in a list."""
    i, j = np.triu_indices(len(labels), 1)
    return (embeddings @ embeddings.T)[i, j], labels[i] == labels[j]


def brute_force(embeddings, labels, far):
    """(TAR, impostors accepted) at the lowest of all thresholds that accepts no more than `far` of the impostors."""
    scores, genuine = all_pairs(embeddings, labels)
    best = 0.0, 0
    for threshold in [np.inf, *np.unique(scores)]:
        accepted = scores >= threshold
        impostors = int((accepted & ~genuine).sum())
        if impostors <= far * (~genuine).sum() + 1e-9:
            best = max(best, ((accepted & genuine).sum() / genuine.sum(), impostors))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("values", [1, 2, 9])
def test_equal_to_brute_force_with_many_ties(seed, values):
    embeddings, labels = with_ties(seed, values=values)
    found = verify(embeddings, labels, FARS)
    scores, genuine = all_pairs(embeddings, labels)
    assert found["pairs"] == {"genuine": genuine.sum(), "impostor": (~genuine).sum()}
    assert (found["identities"], found["images"]) == (7, 60)
    for far, one in zip(FARS, found["tar_at_far"], strict=True):
        tar, impostors = brute_force(embeddings, labels, far)
        assert (one["far"], one["tar"]) == (far, pytest.approx(tar, abs=1e-12))
        accepted = scores > one["threshold"]
        assert (accepted & genuine).sum() / genuine.sum() == pytest.approx(tar, abs=1e-12)
        assert one["impostors"] == (accepted & ~genuine).sum() <= far * (~genuine).sum()
        assert one["impostors"] <= impostors  # brute force may go lower as long as no impostor pair is met
        assert one["low"] < one["tar"] < one["high"] or one["tar"] in (one["low"], one["high"])


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_scikit_learns(seed):
    embeddings, labels = with_ties(seed, images=80)
    scores, genuine = all_pairs(embeddings, labels)
    fpr, tpr, _ = roc_curve(genuine, scores, drop_intermediate=False)
    curve = verify(embeddings, labels, FARS)["roc"]
    fars = [far for far, _ in curve]
    assert fars == sorted(fars) and fars[-1] == 1 and 1 <= fars[0] * (~genuine).sum() < 10 ** (1 / 10) * 1.001
    assert {0.1, 0.01} < set(fars)
    for far, tar in curve:
        assert tar == pytest.approx(tpr[fpr <= far + 1e-12].max(), abs=1e-12)


def test_random_directions_against_a_sorted_list():
    """Similarities as they come, in float32."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 9, 300)
    embeddings = directions(random.normal(size=(9, 16))[labels] + random.normal(size=(300, 16)))
    scores, genuine = all_pairs(embeddings, labels)
    impostors = np.sort(scores[~genuine])[::-1]
    for one in verify(embeddings, labels, (0.1, 0.01, 1e-3, 1e-4))["tar_at_far"]:
        threshold = impostors[int(one["far"] * len(impostors))]
        assert one["threshold"] == pytest.approx(threshold, abs=1e-6)
        # NumPy sums in another order than the device does: one pair may lie on the other side.
        assert one["tar"] == pytest.approx((scores[genuine] > threshold).mean(), abs=1.01 / genuine.sum())
        assert one["impostors"] == int(one["far"] * len(impostors))


def test_order_names_and_block_do_not_matter():
    embeddings, labels = with_ties(3)
    expected = verify(embeddings, labels, FARS)
    order = np.random.default_rng(0).permutation(len(labels))
    assert verify(embeddings[order], labels[order], FARS) == expected
    assert verify(embeddings, 1000 - labels, FARS)["roc"] == expected["roc"]
    for block in (1, 7, 30, 59, 60, 61):
        assert verify(embeddings, labels, FARS, block=block) == expected


def test_perfect_separation():
    labels = np.repeat(np.arange(8), 5)
    found = verify(np.eye(8, dtype=np.float32)[labels], labels, (0.01, 0.5))
    for one in found["tar_at_far"]:
        # All impostor pairs are equal, and none of them is accepted.
        assert (one["tar"], one["impostors"], one["threshold"], one["high"]) == (1, 0, 0, 1)
        assert one["low"] == pytest.approx(1 / (1 + 1.959964**2 / 8))  # Wilson's for 8 of 8
    assert {tar for _, tar in found["roc"]} == {1}


def test_everyone_alike_is_no_success():
    labels = np.repeat(np.arange(8), 5)
    found = verify(np.ones((40, 3), np.float32) / np.sqrt(np.float32(3)), labels, (0.01, 0.5))
    assert [(one["tar"], one["impostors"], one["low"]) for one in found["tar_at_far"]] == [(0, 0, 0)] * 2
    assert [tar for _, tar in found["roc"]] == [0] * (len(found["roc"]) - 1) + [1]


def test_ranks_are_found_among_floats_of_every_kind():
    """Both zeros are one number, and negative numbers have their place."""
    values = np.float32([-1, -0.5, -1e-30, -0.0, 0.0, 1e-30, 1e-3, 0.5, 1])
    ordered = np.asarray(_order(values[:, None], np.float32([[1.0]])))[:, 0]
    assert (np.diff(ordered.astype(np.int64)) > 0).tolist() == [True] * 3 + [False] + [True] * 4
    np.testing.assert_array_equal(similarities(ordered), values)
    pairs = Pairs.of(values[:, None], np.arange(9), 4)
    products = np.sort((values[:, None] * values)[np.triu_indices(9, 1)])[::-1]
    found, above = pairs.impostors_at(np.arange(1, 37))
    np.testing.assert_array_equal(similarities(found), products)
    np.testing.assert_array_equal(above, [(products > x).sum() for x in products])


def test_a_far_is_what_is_written():
    """In binary 0.29 · 100 is less than 29."""
    labels, embeddings = np.arange(101) // 100, np.ones((101, 1), np.float32)
    embeddings[:100, 0] = np.arange(100)
    assert 0.29 * 100 < 29 and verify(embeddings, labels, (0.29,))["tar_at_far"][0]["impostors"] == 29


def test_the_interval_by_hand():
    # Independent pairs: identities of one pair each, so Wilson's interval itself, at 7 of 10 × (10 − 1)/10 trials.
    accepted, pairs = np.array([1] * 7 + [0] * 3), np.ones(10, int)
    low, high = interval(accepted, pairs)
    trials, z = 9.0, 1.959964
    roots = np.roots([1 + z**2 / trials, -(2 * 0.7 + z**2 / trials), 0.7**2])  # (p − 0.7)² = z²·p(1 − p)/n
    assert (low, high) == pytest.approx(tuple(sorted(roots)))
    # A hundred times as many pairs that go with their identity tell no more; pairs that do not, do.
    assert interval(100 * accepted, 100 * pairs) == pytest.approx((low, high))
    narrow = interval(np.array([70, 71] * 5), 100 * pairs)
    assert narrow[1] - narrow[0] < 0.2 * (high - low)
    # Never narrower than if all pairs were independent, and identities without a pair say nothing.
    assert interval(np.array([70] * 5 + [71]), np.full(6, 100)) == pytest.approx(
        tuple(sorted(np.roots([1 + z**2 / 600, -(2 * 421 / 600 + z**2 / 600), (421 / 600) ** 2])))
    )
    assert interval(np.append(accepted, 0), np.append(pairs, 0)) == (low, high)


@pytest.mark.parametrize("accepted", [0, 1])
def test_the_interval_where_nothing_varies(accepted):
    low, high = interval(np.full(20, accepted * 6), np.full(20, 6))
    edge = 1.959964**2 / (20 + 1.959964**2)
    assert (low, high) == pytest.approx((1 - edge, 1) if accepted else (0, edge))


def test_fars_that_cannot_be_stated():
    labels = np.repeat(np.arange(4), 10)  # 600 impostor pairs
    check(labels, (1 / 600, 0.0017))
    with pytest.raises(UserError, match=r"A FAR of 1e-05 needs 100,000 impostor pairs, and 40 images of 4 ident") as e:
        check(labels)
    said = str(e.value)
    smallest = float(said.partition("can be stated is ")[2].partition(";")[0])
    assert smallest == 0.0017
    check(labels, (smallest,))
    with pytest.raises(UserError, match="smallest FAR"):
        verify(np.ones((40, 2), np.float32), labels)
    for far in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="A FAR is a share between 0 and 1"):
            check(labels, (far,))
    with pytest.raises(UserError, match="two identities or more"):
        check(np.zeros(5, int), (0.5,))
    with pytest.raises(UserError, match="two images of one identity"):
        check(np.arange(5), (0.5,))


def test_embeddings_without_a_direction():
    embeddings = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(directions(1e-30 * embeddings), embeddings / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(directions(1e30 * embeddings), embeddings / np.sqrt(3), rtol=1e-6)
    embeddings[2] = 0
    with pytest.raises(UserError, match=r"The embedding of c\.png is zero and has no direction to compare"):
        directions(embeddings, ["a.png", "b.png", "c.png", "d.png"])
    embeddings[1, 1] = np.nan
    with pytest.raises(UserError, match="The embedding of image 1 and 1 more is not finite"):
        directions(embeddings)


PLAIN = Preprocess(tiny.SIZE, flip=True, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
def test_embeddings_are_sums_with_the_mirror_image(batch_size):
    """Of what the head takes in, in eval mode, of the centre crop."""
    images = np.random.default_rng(2).integers(0, 256, (11, tiny.SIZE + 2, tiny.SIZE + 2, 3), np.uint8)
    module, variables = tiny.TinyNet(3), tiny.variables()
    split = Split(images, np.zeros(11, np.int32))
    found = embed(module, variables, split, PLAIN, batch_size, "fc:input")
    seen = (images[:, 1:-1, 1:-1].astype(np.float32) / 255 - 0.5) / 0.25
    plain, mirrored = (
        np.asarray(forward(module, variables, jnp.asarray(x), taps=("fc:input",)).features["fc:input"])
        for x in (seen, seen[:, :, ::-1])
    )
    assert np.abs(plain - mirrored).max() > 0.01  # so that the test would notice
    expected = (plain + mirrored) / np.linalg.norm(plain + mirrored, axis=1, keepdims=True)
    assert found.dtype == np.float32 and found.shape == (11, 5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Short(nn.Module):
    """Its embedding is in bfloat16, the image's first row of red."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2, name="head", dtype=jnp.bfloat16)(x[:, 0, :, 0].astype(jnp.bfloat16))


def test_short_embeddings_are_added_in_float32():
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[:, 0, :, 0] = [[1, 0], [1, 255]]
    plain = Preprocess(2, flip=False, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    variables = {"params": {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}}
    split = Split(images, np.zeros(2, np.int32))
    np.testing.assert_allclose(embed(Short(), variables, split, plain, 2, "head:input"), 0.5**0.5, rtol=1e-6)
    images[1] = 0
    with pytest.raises(UserError, match=r"The embedding of dark\.png is zero"):
        embed(Short(), variables, Split(images, split.labels, ["a.png", "dark.png"]), plain, 2, "head:input")


MEASURE = r"""
import json, re, time
from pathlib import Path
import numpy as np
from afa_jax.evaluation.verification import directions, verify
random = np.random.default_rng(0)
labels = np.repeat(np.arange(80), 115)
embeddings = directions(random.normal(size=(80, 512))[labels] + 2 * random.normal(size=(9200, 512)))
begun = time.perf_counter()
found = verify(embeddings, labels)
seconds = time.perf_counter() - begun
# Not `ru_maxrss`, which a process inherits from the one that started it.
(memory,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"seconds": seconds, "gigabytes": int(memory) * 1024 / 1e9, "pairs": found["pairs"]}))
"""


@pytest.mark.slow
def test_the_size_of_the_papers_task():
    """9,200 images of 80 identities take less than a minute and 2 GB, all that Python and JAX take included."""
    ended = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    print(found)
    assert found["pairs"] == {"genuine": 80 * 115 * 114 // 2, "impostor": 9200 * 9199 // 2 - 80 * 115 * 114 // 2}
    assert found["seconds"] < 60 and found["gigabytes"] < 2
