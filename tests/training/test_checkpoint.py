"""Checkpoints: exact, few, and never trusted when damaged."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.errors import UserError
from afa_jax.training.checkpoint import Checkpoints
from afa_jax.training.step import init_state
from afa_jax.transfer.method import Frozen
from tests import tiny


def states():
    task = tiny.task(tiny.stage("ast"))
    frozen = Frozen(teacher=tiny.variables(tiny.SOURCE_CLASSES))
    state = init_state(task, tiny.variables(), frozen, jnp.asarray(tiny.batch()["image"]), jax.random.PRNGKey(0))
    for step in (2, 4, 6):
        random = np.random.default_rng(step)
        params = jax.tree.map(lambda p, r=random: jnp.asarray(r.normal(size=p.shape), p.dtype), state.params)
        yield state.replace(step=jnp.int32(step), params=params)


@pytest.fixture
def saved(tmp_path):
    """(folder, the three states that were saved, the last two of which are kept)."""
    folder, made = tmp_path / "checkpoints", list(states())
    checkpoints = Checkpoints(folder, 2, pytest.fail)
    for state in made:
        checkpoints.save(state)
    checkpoints.close()
    return folder, made


def restore(folder, like):
    told = []
    checkpoints = Checkpoints(folder, 2, told.append)
    found = checkpoints.restore(like)
    checkpoints.close()
    return found and found[0], told


def test_the_newest_is_restored_to_the_bit_and_the_oldest_is_gone(saved):
    folder, made = saved
    found, told = restore(folder, made[0])
    jax.tree.map(np.testing.assert_array_equal, found, made[-1])
    assert jax.tree.structure(found) == jax.tree.structure(made[-1])
    assert not told
    assert sorted(int(f.name) for f in folder.iterdir()) == [4, 6]


def test_nothing_saved(tmp_path):
    assert restore(tmp_path / "none", next(states())) == (None, [])


def data_files(folder):
    """The files of a checkpoint, the large ones, which hold the arrays, first."""
    return sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda folder: flip(data_files(folder)[0]), "damaged"),
        (lambda folder: data_files(folder)[0].write_bytes(b""), "damaged"),
        (lambda folder: data_files(folder)[0].unlink(), "damaged"),
        (lambda folder: shutil.rmtree(folder / "state"), "damaged"),
        (lambda folder: (folder / "seal.json").unlink(), "half-written"),
        (lambda folder: (folder / "seal.json").write_text("{"), "half-written"),
    ],
    ids=["one bit", "emptied", "file lost", "folder lost", "no seal", "broken seal"],
)
def test_the_last_good_one_is_used_and_it_says_so(saved, harm, word):
    folder, made = saved
    harm(folder / "6")
    found, told = restore(folder, made[0])
    jax.tree.map(np.testing.assert_array_equal, found, made[1])
    (sentence,) = told
    assert f"{folder / '6'} is {word}" in sentence
    assert not (folder / "6").exists()


def test_none_is_good(saved):
    folder, made = saved
    for step in ("4", "6"):
        flip(data_files(folder / step)[0])
    found, told = restore(folder, made[0])
    assert found is None and len(told) == 2


def test_a_step_can_be_saved_again_after_its_checkpoint_was_removed(saved):
    folder, made = saved
    flip(data_files(folder / "6")[0])
    checkpoints = Checkpoints(folder, 2, lambda _: None)
    assert int(checkpoints.restore(made[0])[0].step) == 4
    checkpoints.save(made[2])
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restore(folder, made[0])[0], made[2])


def test_the_seal_covers_every_file_of_state_and_journal(saved):
    folder, _ = saved
    sealed = json.loads((folder / "6" / "seal.json").read_text())
    files = {
        str(f.relative_to(folder / "6")) for f in (folder / "6").rglob("*") if f.is_file() and f.parent.name != "6"
    }
    assert {name.split("/")[0] for name in sealed} == {"state", "journal"}
    assert set(sealed) == files


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_bytes(b"\0{")])
def test_what_lies_beside_the_state_is_not_needed(saved, harm):
    folder, made = saved
    for file in [f for f in (folder / "6").iterdir() if f.is_file() and f.name != "seal.json"]:
        harm(file)
    found, told = restore(folder, made[0])
    jax.tree.map(np.testing.assert_array_equal, found, made[-1])
    assert not told


def test_what_is_saved_is_the_state_as_it_was_although_the_next_step_takes_its_memory(tmp_path):
    """Saving goes on beside the training: it must not see what becomes of the arrays."""
    state = next(states()).replace(params={"large": jnp.arange(1 << 22, dtype=jnp.float32)})
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    move_on = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, 2, pytest.fail)
    checkpoints.save(state)
    for _ in range(20):
        state = move_on(state)
    jax.block_until_ready(state)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path, state)[0], expected)


def test_the_journal_is_kept_with_the_state(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, pytest.fail)
    state = next(states())
    records = [{"stage": "ast", "step": 2, "split": "train", "loss": 0.1}]
    checkpoints.save(state, records)
    checkpoints.close()
    assert Checkpoints(tmp_path, 2, pytest.fail).restore(state)[1] == records


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2, pytest.fail)
    first, second, _ = states()
    checkpoints.save(first)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 1, 1))
    with pytest.raises(UserError, match=r"cannot be written to .* \(it takes 0.0 MB, and 0.0 MB are free\).* goes on"):
        checkpoints.save(second)
    checkpoints.close()
    found, told = restore(tmp_path, first)
    assert int(found.step) == 2 and not told
