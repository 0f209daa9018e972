"""How much worse the trained network does on images that it was not trained on."""

from typing import Any

from afa_jax.analysis.trained import TrainedRun
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError
from afa_jax.evaluation.classification import evaluate


def generalisation(run: TrainedRun) -> dict[str, Any]:
    """Cross-entropy and top-1 of the final target on its training and its test images, and the gap between the two.

    Theorem 1 (AFA §4.6, eq. 13) says that with probability 1 − δ, for all (f, h) of the function space at once,

        E(f, h) ≤ Ê(f, h) + 2·R_N(Φ) + U·√(log(1/δ) / 2N),

    where E is the expected and Ê the empirical mean, over the N training images, of the whole objective: cross-entropy
    plus alpha·Ω, attention and teacher included. So it bounds E − Ê from above; it neither computes R_N nor says how
    large the gap of one trained network is, and eq. 14 compares the bounds of AFA and DFA, not their gaps.

    What is measured here is one sample of such a gap, for the cross-entropy alone, because that is what a network is
    judged by and what all methods have: mean over the test images minus mean over the training images. The test images
    stand for the expectation. Both are seen in eval mode and by their centre crop, also where the run's own top-1 is
    that of ten crops; in training they were cropped at random. The test and training curves of the whole objective are
    in the run's `metrics.jsonl`, for methods whose penalty can be had of test images.

    Returns:
      `train` and `test`, each with `loss` (mean cross-entropy in nats), `top1` (a share) and `count`, and `gap`.

    Raises:
      UserError: the test images show classes that are not trained on, of which the network says nothing.
    """
    if run.data.held_out:
        raise UserError(
            f"The test images of {run.experiment.data.name} are of {len(run.data.held_out)} identities that are not "
            "trained on, so a classification loss on them says nothing: look at verification."
        )

    def judge(split: Split) -> dict[str, float]:
        found = evaluate(run.target.module, run.target.variables, split, run.preprocess, run.experiment.eval_batch_size)
        return {"loss": found["cross_entropy"], "top1": found["top1"], "count": found["count"]}

    train, test = judge(run.data.train), judge(run.test)
    return {"train": train, "test": test, "gap": test["loss"] - train["loss"]}
