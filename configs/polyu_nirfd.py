"""PolyU-NIRFD: near-infrared faces of 255 people, 80 others are verified; source MS-Celeb-1M (AFA Table 12).

    python -m afa_jax.main --config configs/polyu_nirfd.py

The database is given on request: one folder of images for each person goes into the cache's `archives/polyu_nirfd`, or
where `--config.data.dir` says, with a table of five landmarks a face if there is one. The source networks are
InsightFace's files for MXNet, placed in the working folder as `mobilefacenet.params` and `lresnet34e_ir.params`, or
what `--config.source.weights` names, PyTorch's in the layouts of the README among them. The public ones have no
classification layer, which `lwf`, `soft_ft` and `co_tuning` need: those want a file that has one.

Known from the paper (§5.2, §6): 80 people held out, batches of 64, 9,000 steps, SGD with momentum 0.9, rates of 0.001
for LwF and 0.0001 for Soft fine-tuning. Not published: the rate of the others (below: 0.01, that of §5.2), the loss
(ArcFace, that of the source networks), the alphas, whether faces were aligned, and which people were held out: the seed
draws them. The alphas are those of Stanford Dogs 120, a place to start from.

Other networks: `--config configs/polyu_nirfd.py:lresnet34e_ir`. One GPU; the time is not measured yet. Published TAR at
false accept rates of 1e-5, 1e-6 and 1e-7 on MobileFaceNet: L2 94.4, 89.1, 87.6; DELTA 97.3, 96.1, 94.9; AFA 98.1, 97.2,
96.7.
"""

from afa_jax.config import default


def get_config(network="mobilefacenet"):
    config = default()
    config.data.name = "polyu_nirfd"
    config.data.held_out = 80
    config.network = network
    config.source.weights = f"{network}.params"
    config.loss.name = "arcface"
    config.recipe = "afa"
    config.methods.ast.alpha, config.methods.act.alpha = 0.1, 0.15
    config.methods.delta.alpha = 0.01
    config.seeds = 5
    return config
