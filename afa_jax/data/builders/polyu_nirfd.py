"""PolyU-NIRFD: 38,430 near-infrared photos of 335 faces (Zhang et al., 2010), of which AFA §6 verifies 80.

It is given on request and for research only, so it is placed by hand: one folder an identity, in the cache's
`archives/polyu_nirfd` or where `data.dir` says, with `landmarks.csv` if there is one. Its layout is not public, and
neither is which 80 the paper held out; the seed chooses them. All else is as for any folder of `identities`.
"""

from afa_jax.data import folders
from afa_jax.data.builders.identities import load_from
from afa_jax.data.dataset import Builder, Dataset, Request
from afa_jax.errors import UserError
from afa_jax.files import cache_folder

NAME = "polyu_nirfd"


def load(request: Request) -> Dataset:
    """80 identities for verification, or as many as `request.held_out` says, and the others for training.

    Raises:
      UserError: it has not been placed, or as `identities.load_from`.
    """
    place = cache_folder() / "archives" / NAME
    if not request.folder and not place.is_dir():
        raise UserError(
            "PolyU-NIRFD cannot be fetched: ask the Hong Kong Polytechnic University for it, and place one folder of "
            f"images for each identity in {place}, or name another place with --config.data.dir."
        )
    return load_from(folders.existing(request.folder or place), NAME, request)


DATASETS = {NAME: Builder(load, seeded=True, verified=True)}
