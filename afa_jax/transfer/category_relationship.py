"""How the source task's classes relate to the target's, for Co-Tuning (You et al. 2020, §3.2)."""

import warnings
from typing import Any

import numpy as np
from jax import Array

# scikit-learn's C, the inverse of the regularisation.
_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)

_STEPS = 100


def category_relationship(probabilities: Array, labels: Array) -> np.ndarray:
    """p(source class | target class) by the reverse approach, float32 `[target classes, source classes]`.

    A logistic regression learns p(target | source probabilities); its answer to a pure source class is p(target |
    source), and Bayes' rule with the mean probabilities as the prior turns it around. Its regularisation is the one
    with the smallest cross-entropy on a fifth of the images, held out class by class (accuracy, which the authors' code
    takes, ties where images are few), or 1 where a class has fewer than five.

    Args:
      probabilities: the source network's, `[N, source classes]`, rows summing to 1.
      labels: of the target task, int `[N]`.
    """
    # Here, because they take long to import, and only Co-Tuning needs them.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split

    p, y = np.asarray(probabilities, np.float32), np.asarray(labels)
    classes, counts = np.unique(y, return_counts=True)
    strength = 1.0
    if counts.min() >= 5:
        train, held, own, others = map(np.asarray, train_test_split(p, y, test_size=0.2, stratify=y, random_state=0))
        # From the most regular on, each begins where the last one ended.
        path = LogisticRegression(max_iter=_STEPS, warm_start=True)
        losses = {
            c: log_loss(others, _fit(path, train, own, c).predict_proba(held), labels=classes) for c in _STRENGTHS
        }
        strength = min(losses, key=lambda c: losses[c])
    best = _fit(LogisticRegression(max_iter=_STEPS), p, y, strength)
    target_given_source = best.predict_proba(np.eye(p.shape[1], dtype=np.float32))  # [source, target]
    joint = target_given_source.T * p.mean(0)  # [target, source]
    relationship = np.zeros((int(classes.max()) + 1, p.shape[1]), np.float32)
    relationship[classes] = joint / joint.sum(1, keepdims=True)
    return relationship


def _fit(model: Any, probabilities: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The weakest regularisations need more steps than they are worth; their loss tells.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.set_params(C=strength).fit(probabilities, labels)
