"""Ten kinds of clothes, twenty labelled photos of each, MobileNetV2 from ImageNet: which method helps, by how much?

    python tools/sweep.py --config configs/clothing.py --recipes l2,l2_fe,l2_sp,delta,dfa,ast,act,afa --jobs 2 \
        --cross_validate alpha --grid 0.01,0.1,1,10,100 --folds 2

What came of it: docs/evidence.md. One recipe by itself: `python -m afa_jax.main --config configs/clothing.py
--config.recipe=ast`, five seeds. The photos: `git clone --depth 1
https://github.com/alexeygrigorev/clothing-dataset-small photos`; the test images are those of `photos/test`. Other
numbers of labelled images: `--config.data.per_class=5 --config.steps=38`, or 50 and 375.

The papers' protocol in small: a rate of 0.01 that is divided by ten after two thirds of a stage, momentum 0.9, the last
step counts. They see each labelled image 48 times (Caltech-256-60: 9,000 steps of 64 over 12,000 images); here it is 24
times, 150 steps of 32 over 200 images, at 96 pixels in place of 224, so that a processor does it. Ours too: alpha is in
the measure of the teacher's features (`normalised`), and chosen for every method alike by cross-validation on the
labelled images of seed 0.
"""

from afa_jax.config import default


def get_config():
    config = default()
    config.network, config.source.weights = "mobilenet_v2", "imagenet1k_v1"
    config.data.name, config.data.dir = "image_folder", "photos"
    config.data.per_class = 20
    config.data.image_size, config.data.resize = 96, 110
    config.recipe, config.convention = "afa", "normalised"
    config.seeds = 5
    config.batch_size = 32
    config.steps = 150
    config.eval_every = 50
    config.log_every = 25
    return config
