"""Convolutional nets for images: ResNet, U-Net, ConvNeXt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.spec import Blocks, Checkpoint, Made, run_block


class Bottleneck(nn.Module):
    """ResNet's bottleneck: 1x1, 3x3, 1x1 convolutions with batch norm, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (width, width, out))
        # Branches of full weight make a random net of this depth chaotic: rounding flips ReLUs, and
        # eager's own gradients are then 17 % off those in float64, which hides real errors.
        nn.init.constant_(self.bn3.weight, 0.2)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50's [3, 4, 6, 3] bottlenecks at half its width.

    At full width and this size the parameters' gradients are half of the peak, and no plan can
    shrink those.
    """

    def __init__(self, checkpoint: Checkpoint, width: int = 32, classes: int = 100) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate((3, 4, 6, 3)):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * (width << stage)
        self.blocks = Blocks(blocks, checkpoint)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.blocks(self.stem(images)).mean((2, 3))
        return F.cross_entropy(self.head(x), labels)


def resnet50(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = ResNet50(checkpoint)
    return model, (torch.randn(8, 3, 128, 128), torch.randint(100, (8,)))


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with group norm and SiLU: U-Net's block."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.norm1, self.norm2 = nn.GroupNorm(8, out), nn.GroupNorm(8, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Four levels with skips concatenated on the way up: activations live across the whole net."""

    def __init__(self, checkpoint: Checkpoint, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        sizes = [width << level for level in range(levels)]
        self.down = nn.ModuleList(
            DoubleConv(a, b) for a, b in zip([3, *sizes[:-1]], sizes, strict=True)
        )
        self.middle = DoubleConv(sizes[-1], sizes[-1])
        self.up = nn.ModuleList(
            DoubleConv(2 * b, a) for a, b in zip([width, *sizes[:-1]], sizes, strict=True)
        )
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        x, skips = images, []
        for block in self.down:
            x = run_block(block, self.checkpoint, x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = run_block(self.middle, self.checkpoint, x)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1)
            x = run_block(block, self.checkpoint, x)
        return F.mse_loss(self.head(x), targets)


def unet(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = UNet(checkpoint)
    images = torch.randn(4, 3, 96, 96)
    return model, (images, torch.randn_like(images))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, layer norm over channels, and an MLP at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Stages of blocks, each begun by a norm and a convolution that makes the image smaller."""

    def __init__(
        self, depths: tuple[int, ...], widths: tuple[int, ...], classes: int, checkpoint: Checkpoint
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            before = widths[stage - 1]
            stages += [
                *([ChannelNorm(before), nn.Conv2d(before, width, 2, 2)] if stage else []),
                Blocks((ConvNeXtBlock(width) for _ in range(depth)), checkpoint),
            ]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0]))
        self.stages = nn.Sequential(*stages)
        self.norm, self.head = nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.stages(self.stem(images)).mean((2, 3))
        return F.cross_entropy(self.head(self.norm(x)), labels)


def convnext(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = ConvNeXt((2, 2, 4, 2), (48, 96, 192, 256), 100, checkpoint)
    return model, (torch.randn(6, 3, 128, 128), torch.randint(100, (6,)))
