"""torchvision's networks, also where its package was built for another torch than the one installed.

Such a package lacks its own operators, without which it cannot be imported; the networks use none of them.
"""

import torch

try:
    import torchvision
except RuntimeError:
    LIBRARY = torch.library.Library("torchvision", "DEF")  # which ends with the object
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

from torchvision.models.feature_extraction import create_feature_extractor

__all__ = ["create_feature_extractor", "torchvision"]
