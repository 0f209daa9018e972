"""Your own pictures: `train/<class>/*` and `test/<class>/*`, or `<class>/*` of which a fifth is kept for testing.

    python -m afa_jax.main --config configs/image_folder.py --config.data.dir=photos

ResNet-50 from ImageNet, AFA in 3,000 steps; `--config.network=mobilenet_v2` is smaller and quicker. Few labels:
`--config.data.per_class=10`. Text, signs, anything that must not be mirrored: `--config.data.mirror=False`. Files that
are no images stop it with their names; `--config.data.skip_damaged=True` leaves them out.

Alpha is in the measure of the teacher's own features (`normalised`), so that it holds for other networks too. To see
what is there before you train: `python tools/prepare_data.py image_folder --dir photos`.

One GPU; the time is not measured yet. Two CPU cores take five minutes to try it out, at a quarter of the pixels:
`--config.network=mobilenet_v2 --config.data.image_size=112 --config.data.resize=128 --config.data.per_class=20
--config.steps=60 --config.batch_size=16`. No result is published for your pictures.
"""

from afa_jax.config import default


def get_config():
    config = default()
    config.data.name = "image_folder"
    config.network, config.source.weights = "resnet50", "imagenet1k_v1"
    config.recipe, config.convention = "afa", "normalised"
    config.methods.ast.alpha, config.methods.act.alpha = 0.1, 0.1
    config.steps = 3000
    return config
