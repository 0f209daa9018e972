"""Face networks in PyTorch, written from their tables with torch.nn alone, their layers with published names.

`MobileFaceNet` and `GroupedMobileFaceNet` are one network under the names of two kinds of files, `blocks.N.conv.M` and
`conv_23`; `LResNet34` and `IResNet34` differ in their epsilon. Needs torch; nothing else in the repository does.
"""

import torch
from torch import nn

SETTINGS = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]


def unit(inputs, outputs, kernel, stride, padding, groups=1, linear=False):
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False))
    layers.add_module("bn", nn.BatchNorm2d(outputs))
    if not linear:
        layers.add_module("prelu", nn.PReLU(outputs))
    return layers


class Block(nn.Module):
    def __init__(self, inputs, outputs, expansion, stride):
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x):
        return self.conv(x) + x if self.shortcut else self.conv(x)


class MobileFaceNet(nn.Module):
    def __init__(self, outputs, classes):
        super().__init__()
        self.conv1 = unit(3, 64, 3, 2, 1)
        self.dw_conv1 = unit(64, 64, 3, 1, 1, groups=64)
        blocks, width = [], 64
        for expansion, wide, count, stride in SETTINGS:
            for i in range(count):
                blocks.append(Block(width, wide, expansion, stride if i == 0 else 1))
                width = wide
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = unit(128, 512, 1, 1, 0)
        self.linear7 = unit(512, 512, 7, 1, 0, groups=512, linear=True)
        self.linear1 = unit(512, outputs, 1, 1, 0, linear=True)
        self.head = nn.Linear(outputs, classes)

    def forward(self, x):
        x = self.linear7(self.conv2(self.blocks(self.dw_conv1(self.conv1(x)))))
        return self.head(self.linear1(x).flatten(1))


class DepthWise(nn.Module):
    def __init__(self, inputs, outputs, stride, hidden):
        super().__init__()
        self.conv = unit(inputs, hidden, 1, 1, 0)
        self.conv_dw = unit(hidden, hidden, 3, stride, 1, groups=hidden)
        self.project = unit(hidden, outputs, 1, 1, 0, linear=True)
        self.shortcut = stride == 1

    def forward(self, x):
        y = self.project(self.conv_dw(self.conv(x)))
        return x + y if self.shortcut else y


class Group(nn.Module):
    def __init__(self, width, count, hidden):
        super().__init__()
        self.model = nn.Sequential(*(DepthWise(width, width, 1, hidden) for _ in range(count)))

    def forward(self, x):
        return self.model(x)


class GroupedMobileFaceNet(nn.Module):
    """Its outputs are the embedding."""

    def __init__(self, outputs):
        super().__init__()
        self.conv1 = unit(3, 64, 3, 2, 1)
        self.conv2_dw = unit(64, 64, 3, 1, 1, groups=64)
        self.conv_23, self.conv_3 = DepthWise(64, 64, 2, 128), Group(64, 4, 128)
        self.conv_34, self.conv_4 = DepthWise(64, 128, 2, 256), Group(128, 6, 256)
        self.conv_45, self.conv_5 = DepthWise(128, 128, 2, 512), Group(128, 2, 256)
        self.conv_6_sep = unit(128, 512, 1, 1, 0)
        self.conv_6_dw = unit(512, 512, 7, 1, 0, groups=512, linear=True)
        self.linear, self.bn = nn.Linear(512, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x):
        x = self.conv_3(self.conv_23(self.conv2_dw(self.conv1(x))))
        x = self.conv_5(self.conv_45(self.conv_4(self.conv_34(x))))
        return self.bn(self.linear(self.conv_6_dw(self.conv_6_sep(x)).flatten(1)))


class ResidualUnit(nn.Module):
    def __init__(self, inputs, outputs, stride, epsilon):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, epsilon)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(outputs, epsilon), nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, epsilon)
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs, epsilon))

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class IResNet34(nn.Module):
    """With arcface_torch's names; its outputs are the embedding."""

    def __init__(self, epsilon=1e-5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(64, epsilon), nn.PReLU(64)
        inputs = 64
        for i, (depth, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
            units = [ResidualUnit(inputs, width, 2, epsilon)]
            units += [ResidualUnit(width, width, 1, epsilon) for _ in range(depth - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*units))
            inputs = width
        self.bn2 = nn.BatchNorm2d(512, epsilon)
        self.fc, self.features = nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512, epsilon)
        self.features.weight.requires_grad = False  # it stays at one

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.prelu(self.bn1(self.conv1(x)))))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


class LResNet34(nn.Module):
    """The same layers under the names of MXNet's files, with their epsilon; without dropout."""

    def __init__(self, classes):
        super().__init__()
        net = IResNet34(epsilon=2e-5)
        self.run = [net]  # a list, so that its layers are not there under their other names too
        self.conv0, self.bn0, self.relu0 = net.conv1, net.bn1, net.prelu
        for i in (1, 2, 3, 4):
            stage = nn.Module()
            for number, unit in enumerate(getattr(net, f"layer{i}"), start=1):
                named = nn.Module()
                named.bn1, named.conv1, named.bn2, named.relu1 = unit.bn1, unit.conv1, unit.bn2, unit.prelu
                named.conv2, named.bn3 = unit.conv2, unit.bn3
                if number == 1:
                    named.conv1sc, named.sc = unit.downsample
                stage.add_module(f"unit{number}", named)
            self.add_module(f"stage{i}", stage)
        self.bn1, self.pre_fc1, self.fc1 = net.bn2, net.fc, net.features
        self.head = nn.Linear(512, classes)

    def forward(self, x):
        return self.head(self.run[0](x))


def build(name, classes):
    """The network of the zoo `name`, with the names of its layers there."""
    if name == "lresnet34e_ir":
        return LResNet34(classes)
    return MobileFaceNet(128, classes)


def randomise(model, seed=0):
    """Random weights, statistics and slopes, in place; what is fixed at one stays."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith(("running_var", "weight")) and value.ndim == 1:
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            scale = 0.1 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5
            value.normal_(0, scale, generator=generator)
        else:
            value.fill_(3)
    if hasattr(model, "features"):
        model.features.weight.data.fill_(1)
    return model
