"""The loop: what it writes when, and that it stops at the first number that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.data.dataset import Split
from afa_jax.errors import DivergedError
from afa_jax.training.checkpoint import Checkpoints
from afa_jax.training.journal import Journal
from afa_jax.training.loop import Cadence, Pace, train_stage
from afa_jax.training.parallel import Devices
from afa_jax.training.step import init_state
from afa_jax.transfer.method import Frozen
from tests import tiny


def train(workdir, stage, *, step_fn=None, state=None, cadence=None):
    task = tiny.task(stage)
    frozen = Frozen(teacher=tiny.variables(tiny.SOURCE_CLASSES))
    batch = tiny.batch(20)
    if state is None:
        state = init_state(task, tiny.variables(), frozen, jnp.asarray(batch["image"]), jax.random.PRNGKey(0))
    journal = Journal(workdir, "test", {stage.name: stage.steps})
    checkpoints = Checkpoints(workdir / "checkpoints", 5, pytest.fail)
    pace = Pace()
    try:
        final = train_stage(
            step_fn or Devices().compile(task),
            state,
            frozen,
            stage,
            Split(batch["image"], batch["label"]),
            devices=Devices(),
            batch_size=8,
            seed=0,
            source=None,
            cadence=cadence or Cadence(log=3, evaluation=4, checkpoint=5),
            journal=journal,
            checkpoints=checkpoints,
            evaluate=lambda state: {"top1": float(state.step)},
            pace=pace,
        )
        return final, journal.records, pace
    finally:
        checkpoints.close()
        journal.close()


def kept(workdir):
    return sorted(int(f.name) for f in (workdir / "checkpoints").iterdir())


def test_what_is_written_when(tmp_path):
    final, records, pace = train(tmp_path, tiny.stage("ast", steps=10))
    assert int(final.step) == 10
    assert [(r["step"]) for r in records if r["split"] == "train"] == [3, 6, 9, 10]
    assert [(r["step"], r["top1"]) for r in records if r["split"] == "test"] == [(4, 4.0), (8, 8.0), (10, 10.0)]
    assert kept(tmp_path) == [5, 10]
    assert pace.images == 9 * 8 and pace.images_per_second > 0  # all but the first, which compiles
    wanted = {"loss", "cross_entropy", "alignment", "top1", "gradient_norm", "learning_rate", "alignment/conv1"}
    assert wanted <= records[0].keys()


def test_a_stage_cut_in_two_gives_the_same_numbers(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    every = Cadence(log=1, evaluation=0, checkpoint=100)
    stage = tiny.stage("ast", alpha=1e-3, steps=10)
    whole, records, _ = train(tmp_path / "whole", stage, cadence=every)

    def stop_at_six(state, frozen, batch):
        if int(state.step) == 6:
            raise KeyboardInterrupt
        return Devices().compile(tiny.task(stage))(state, frozen, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stage, step_fn=stop_at_six, cadence=Cadence(1, 0, 4))
    template = jax.tree.map(jnp.zeros_like, whole)
    checkpoints = Checkpoints(tmp_path / "cut" / "checkpoints", 5, pytest.fail)
    state, kept_records = checkpoints.restore(template)
    assert kept_records == records[:4]
    checkpoints.close()
    assert int(state.step) == 4
    final, again, _ = train(tmp_path / "cut", stage, state=state, cadence=every)
    jax.tree.map(np.testing.assert_array_equal, final, whole)
    assert again == records


@pytest.mark.parametrize("bad", [3, 4, 10])
@pytest.mark.parametrize("term", ["alignment/conv2", "gradient_norm"])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, bad, term):
    stage = tiny.stage("ast", alpha=1e-3, steps=10)
    seen = []

    def spoilt(state, frozen, batch):
        state, metrics = Devices().compile(tiny.task(stage))(state, frozen, batch)
        seen.append(int(state.step))
        if seen[-1] == bad:
            spoil = {term: jnp.float32(jnp.nan)} | ({} if term == "gradient_norm" else {"loss": jnp.float32(jnp.nan)})
            metrics = {**metrics, **spoil}
        return state, metrics

    with pytest.raises(DivergedError) as error:
        train(tmp_path, stage, step_fn=spoilt, cadence=Cadence(log=100, evaluation=0, checkpoint=2))
    assert f"at step {bad} of stage ast in training: {term} is nan; lower methods.ast.alpha (now 0.001)" in str(
        error.value
    )
    assert seen[-1] <= bad + 1  # at most one step late
    assert kept(tmp_path) == [step for step in (2, 4, 6, 8) if step < bad]  # the last good one is there, no bad one


def test_a_last_step_that_blows_up_gives_no_result(tmp_path):
    """Its metrics are those before the move; the evaluation and the state after it are looked at too."""
    with pytest.raises(DivergedError, match="at step 1 of stage l2"):
        train(tmp_path, tiny.stage("l2", alpha=0.0, weight_decay=1e10, learning_rate=1e38, steps=1))
    assert not kept(tmp_path)


def test_a_real_blow_up_is_noticed(tmp_path):
    with pytest.raises(DivergedError, match=r"stage ast in training: .*alignment/conv2.* (nan|inf); lower"):
        train(tmp_path, tiny.stage("ast", alpha=1e3, learning_rate=10.0, steps=50))
