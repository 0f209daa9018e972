"""Your own faces, or other pictures of identities: `<identity>/*`, of whom some are verified and the others trained on.

    python -m afa_jax.main --config configs/identities.py --config.data.dir=people --config.data.held_out=20

Or `train/<identity>/*` and `test/<identity>/*`. A table `landmarks.csv` in the folder, five points a picture, has every
face aligned to 112 × 112 pixels; without one pictures are resized. To see what is there, and which false accept rates
so many identities can state: `python tools/prepare_data.py identities --dir people --held-out 20`.

The source network is a file, `mobilefacenet.params` in the working folder (InsightFace's for MXNet), or what
`--config.source.weights` names. ArcFace, AFA in 3,000 steps; alpha is in the measure of the teacher's own features
(`normalised`). One GPU; the time is not measured yet. No result is published for your pictures.
"""

from afa_jax.config import default


def get_config(network="mobilefacenet"):
    config = default()
    config.data.name, config.data.held_out = "identities", 20
    config.network, config.source.weights = network, f"{network}.params"
    config.loss.name = "arcface"
    config.fars = "1e-3,1e-4"
    config.recipe, config.convention = "afa", "normalised"
    config.methods.ast.alpha, config.methods.act.alpha = 0.1, 0.1
    config.steps = 3000
    return config
