"""Stanford Dogs 120: 12,000 training images of 120 breeds; ImageNet source (AFA Tables 3 to 11, DELTA Table 1).

    python -m afa_jax.main --config configs/stanford_dogs120.py

The papers' protocol (AFA §5.2, DELTA §4.2): batches of 64, 9,000 steps, SGD with momentum 0.9 from a rate of 0.01 that
is divided by ten after two thirds of each stage, images resized to 256 and cropped to 224. These are the defaults.

Other networks: `--config configs/stanford_dogs120.py:mobilenet_v2`, or `:inception_v3_no_aux`, whose rate is 0.001
(resized to 320, cropped to 299). LwF and Soft fine-tuning: `--config.learning_rate=0.001`.

Known: alpha 0.1 in stage I and 0.15 in stage II (0.09 and 0.04 for MobileNetV2), beta 0.01, from the authors' released
configurations; their released networks have 90.22 and 82.17 %, the best epoch on the test set. DELTA: alpha 0.01 in its
paper, 0.1 in its run script. Ours: what neither says, for LwF, Soft fine-tuning, BSS and Co-Tuning.

One GPU; the time is not measured yet. Published top-1, five seeds: L2 83.3, L2-SP 88.3, DELTA 88.7, AFA 90.1.
"""

from afa_jax.config import default


def get_config(network="resnet101"):
    config = default()
    config.data.name = "stanford_dogs120"
    config.network, config.source.weights = network, "imagenet1k_v1"
    config.source.dataset, config.source.splits = "tfds:imagenet2012", "train,validation"  # for Soft fine-tuning
    config.learning_rate = 0.001 if network.startswith("inception") else 0.01
    config.recipe = "afa"
    alphas = (0.09, 0.04) if network == "mobilenet_v2" else (0.1, 0.15)
    config.methods.ast.alpha, config.methods.act.alpha = alphas
    config.methods.delta.alpha = 0.01
    config.seeds = 5
    return config
