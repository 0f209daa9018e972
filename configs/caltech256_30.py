"""Caltech-256-30: 30 training images of each of 257 classes; ImageNet source (AFA Tables 3 to 11, DELTA Table 1).

    python -m afa_jax.main --config configs/caltech256_30.py

The papers' protocol (AFA §5.2, DELTA §4.2): batches of 64, 9,000 steps, SGD with momentum 0.9 from a rate of 0.01 that
is divided by ten after two thirds of each stage, images resized to 256 and cropped to 224. These are the defaults.

Other networks: `--config configs/caltech256_30.py:mobilenet_v2`, or `:inception_v3_no_aux`, whose rate is 0.001
(resized to 320, cropped to 299). LwF and Soft fine-tuning: `--config.learning_rate=0.001`.

Not published are the alphas: both papers chose them by five-fold cross-validation on the training images, DELTA over
1e-4, 1e-3, 0.01, 0.1 and 0.2. The ones below are those of Stanford Dogs 120, a place to start from.

One GPU; the time is not measured yet. Published top-1, five seeds: L2 84.7, L2-SP 85.4, DELTA 86.6, AFA 87.2.
"""

from afa_jax.config import default


def get_config(network="resnet101"):
    config = default()
    config.data.name = "caltech256"
    config.data.per_class = 30
    config.network, config.source.weights = network, "imagenet1k_v1"
    config.source.dataset, config.source.splits = "tfds:imagenet2012", "train,validation"  # for Soft fine-tuning
    config.learning_rate = 0.001 if network.startswith("inception") else 0.01
    config.recipe = "afa"
    config.methods.ast.alpha, config.methods.act.alpha = 0.1, 0.15
    config.methods.delta.alpha = 0.01
    config.seeds = 5
    return config
