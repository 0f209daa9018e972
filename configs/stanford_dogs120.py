"""Stanford Dogs 120: 12,000 training images of 120 breeds; ImageNet source (AFA Tables 3 to 11, DELTA Table 1).

    python -m afa_jax.main --config configs/stanford_dogs120.py

The papers' protocol (AFA §5.2, DELTA §4.2): batches of 64, 9,000 steps, SGD with momentum 0.9 from a rate of 0.01 that
is divided by ten after two thirds of each stage, images resized to 256 and cropped to 224. These are the defaults.

Inception-V3: `--config.network=inception_v3_no_aux --config.learning_rate=0.001` (resized to 320, cropped to 299).
MobileNetV2: `--config.network=mobilenet_v2` with the alphas 0.09 and 0.04.
LwF and Soft fine-tuning: `--config.learning_rate=0.001`.

Known: alpha 0.1 in stage I and 0.15 in stage II (0.09 and 0.04 for MobileNetV2), beta 0.01, from the authors' released
configurations; their released networks have 90.22 and 82.17 %, the best epoch on the test set. DELTA: alpha 0.01 in its
paper, 0.1 in its run script. Ours: what neither says, for LwF, Soft fine-tuning, BSS and Co-Tuning.

One GPU; the time is not measured yet. Published top-1, five seeds: L2 83.3, L2-SP 88.3, DELTA 88.7, AFA 90.1.
"""

from afa_jax.config import default


def get_config():
    config = default()
    config.data.name = "stanford_dogs120"
    config.network, config.source.weights = "resnet101", "imagenet1k_v1"
    config.recipe = "afa"
    config.methods.ast.alpha, config.methods.act.alpha = 0.1, 0.15
    config.methods.delta.alpha = 0.01
    config.seeds = 5
    return config
