"""MIT Indoors 67: 5,360 training images of 67 scenes; Places365 source (AFA Tables 3 to 11, DELTA Table 1).

    python -m afa_jax.main --config configs/mit_indoors67.py

The papers' protocol (AFA §5.2, DELTA §4.2): batches of 64, 9,000 steps, SGD with momentum 0.9 from a rate of 0.01 that
is divided by ten after two thirds of each stage, images resized to 256 and cropped to 224. These are the defaults.

The tables say ResNet-101, for which no Places365 weights are public; both released codes take ResNet-50, and so does
this. For other networks (`--config configs/mit_indoors67.py:mobilenet_v2`) give a file of Places365 weights:
`--config.source.weights=`. LwF and Soft fine-tuning: `--config.learning_rate=0.001`.

Not published are the alphas: both papers chose them by five-fold cross-validation on the training images, DELTA over
1e-4, 1e-3, 0.01, 0.1 and 0.2. The ones below are those of Stanford Dogs 120, a place to start from.

One GPU; the time is not measured yet. Published top-1, five seeds: L2 83.7, L2-SP 85.1, DELTA 85.5, AFA 85.9.
"""

from afa_jax.config import default


def get_config(network="resnet50"):
    config = default()
    config.data.name = "mit_indoors67"
    config.network, config.source.weights = network, "places365"
    config.source.dataset, config.source.splits = "tfds:places365_small", "train,validation"  # for Soft fine-tuning
    config.learning_rate = 0.001 if network.startswith("inception") else 0.01
    config.recipe = "afa"
    config.methods.ast.alpha, config.methods.act.alpha = 0.1, 0.15
    config.methods.delta.alpha = 0.01
    config.seeds = 5
    return config
