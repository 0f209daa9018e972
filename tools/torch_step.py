"""A training step in PyTorch that does the work of one here, for `tools/benchmark.py step` to compare with.

torchvision's networks with the same taps, the teacher in eval mode without gradients, AFA's attentive modules
and losses (or DELTA's) at the released scales, ½·beta·‖head‖² and SGD with momentum. Needs torch and torchvision.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision_networks import create_feature_extractor, torchvision

torch.backends.cudnn.benchmark = True  # the fastest of its programs for these sizes; no effect on a CPU


class Spatial(nn.Module):
    """AFA eq. 5 and 6: where, and how far the features are apart there; `[B]`."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.scores = nn.Sequential(
            nn.Linear(height * width, height, bias=False), nn.ReLU(), nn.Linear(height, height * width)
        )

    def forward(self, target: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        weights = self.scores(teacher.float().mean(1).flatten(1)).softmax(-1)
        squares = (target.float() - teacher.float()).square().sum(1).flatten(1)
        return 0.5 * squares.shape[1] ** 2 * (weights.square() * squares).sum(-1)


class Channel(nn.Module):
    """AFA eq. 7 and 8: which channels, and how far they are apart; `[B]`."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.scores = nn.Sequential(
            nn.Linear(height * width, height, bias=False), nn.ReLU(), nn.Linear(height, 1, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, target: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        weights = (self.scores(teacher.float().flatten(2)).squeeze(-1) + self.bias).softmax(-1)
        squares = (target.float() - teacher.float()).square().flatten(2).sum(-1)
        return 0.5 * squares.shape[1] * (weights * squares).sum(-1)


class Fixed(nn.Module):
    """DELTA eq. 8 with equal weights, which cost what others do; `[B]`."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((channels,), 1 / channels))

    def forward(self, target: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        squares = (target.float() - teacher.float()).square().flatten(2)
        weights = self.get_buffer("weights")
        return 0.5 * squares.shape[1] / squares.shape[2] * (weights * squares.sum(-1)).sum(-1)


_ALIGNMENTS = {"ast": Spatial, "act": Channel, "delta": Fixed}


def make_step(
    network: str,
    method: str,
    variant: str,
    taps: Mapping[str, tuple[int, ...]],
    head: str,
    images: Any,
    labels: Any,
    settings: Mapping[str, float],
    device: str,
    classes: Sequence[int] = (100, 1000),
) -> dict[str, Callable[[], None]]:
    """One `step`, and one `evaluate`, on a batch that is ready: normalised images `[B, 3, S, S]` and labels, in NumPy.

    `wait` returns when the device has done what was asked of it.

    Args:
      taps: the shapes `[1, H, W, C]` of the tapped layers, by their path in torchvision's network.
      settings: `alpha`, `beta`, `weight_decay` and the learning rate.
      device: `cpu` or `cuda`.
      classes: of the target and of the teacher.
    """
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    target = _network(network, classes[0], layout, {**dict.fromkeys(taps), head: None}).to(device)
    teacher = _network(network, classes[1], layout, taps).to(device).eval().requires_grad_(False)
    make = _ALIGNMENTS[method]
    alignments = nn.ModuleList(make(*shape[1:]) for shape in taps.values()).to(device)
    sgd = torch.optim.SGD(
        [{"params": target.parameters(), "weight_decay": settings["weight_decay"]}, {"params": alignments.parameters()}]
        if method != "delta"
        else target.parameters(),
        lr=settings["learning_rate"],
        momentum=0.9,
        fused=device == "cuda",
    )
    x = torch.from_numpy(images).to(device).contiguous(memory_format=layout)
    y = torch.from_numpy(labels).long().to(device)

    def objective() -> torch.Tensor:
        with torch.no_grad():
            theirs = teacher(x)
        ours = target(x)
        pairs = [(ours[tap], theirs[tap]) for tap in taps]
        omega = torch.stack([align(*pair) for align, pair in zip(alignments, pairs, strict=True)]).sum(0)
        penalty = sum(weight.square().sum() for weight in target.get_submodule(head).parameters())
        cross_entropy = nn.functional.cross_entropy(ours[head].float(), y)
        omega = omega.sum() if method == "delta" else omega.mean()
        return cross_entropy + settings["alpha"] * omega + 0.5 * settings["beta"] * penalty

    run = torch.compile(objective) if "compiled" in variant else objective
    look = torch.compile(target) if "compiled" in variant else target

    def step() -> None:
        sgd.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in variant):
            loss = run()
        loss.backward()
        sgd.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def evaluate() -> None:
        target.eval()
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in variant):
            look(x)[head].float().cpu()
        target.train()

    return {"step": step, "evaluate": evaluate, "wait": wait}


def _network(name: str, classes: int, layout: torch.memory_format, outputs: Iterable[str]) -> nn.Module:
    """In train mode; gives what each layer in `outputs` puts out, by its path, and computes nothing else."""
    options = {"init_weights": False} if name == "inception_v3" else {}
    model: Any = getattr(torchvision.models, name)(weights=None, num_classes=classes, **options)
    return create_feature_extractor(model.to(memory_format=layout), list(outputs)).train()
