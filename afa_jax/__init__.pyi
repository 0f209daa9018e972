"""What type checkers see of the names that are imported when they are asked for."""

from afa_jax.api import Arrays as Arrays
from afa_jax.api import Result as Result
from afa_jax.api import finetune as finetune
from afa_jax.api import load as load
from afa_jax.api import table as table
from afa_jax.data.augment import Preprocess as Preprocess
from afa_jax.errors import UserError as UserError
from afa_jax.inference.classifier import Classifier as Classifier
from afa_jax.models.network import Network as Network
from afa_jax.models.own import register as register
from afa_jax.training.own_loop import make_train_step as make_train_step
from afa_jax.transfer.attention import ChannelAttention as ChannelAttention
from afa_jax.transfer.attention import SpatialAttention as SpatialAttention
from afa_jax.transfer.losses import channel_alignment as channel_alignment
from afa_jax.transfer.losses import delta_alignment as delta_alignment
from afa_jax.transfer.losses import direct_alignment as direct_alignment
from afa_jax.transfer.losses import spatial_alignment as spatial_alignment

__version__: str
