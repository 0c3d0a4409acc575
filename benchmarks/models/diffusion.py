"""The U-Net of a diffusion model, which predicts the noise in an image of known noise level."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.spec import Checkpoint, Made, run_block

STEPS = 1000


class ResBlock(nn.Module):
    """Two 3x3 convolutions behind group norm and SiLU, the time added between, and a shortcut."""

    def __init__(self, channels: int, out: int, times: int, attends: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, out)
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.time = nn.Linear(times, out)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.attention = ImageAttention(out) if attends else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        attended: Tensor = self.attention(y + self.shortcut(x))
        return attended


class ImageAttention(nn.Module):
    """Self-attention among all places of an image, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, 3)
        mixed = F.scaled_dot_product_attention(*parts)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class DiffusionUNet(nn.Module):
    """Two blocks per level down and three up; every result on the way down is concatenated."""

    def __init__(self, widths: tuple[int, ...], attends: int, checkpoint: Checkpoint) -> None:
        """Make the net; the lowest ``attends`` levels have attention."""
        super().__init__()
        self.checkpoint, self.first = checkpoint, widths[0]
        times = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], times), nn.SiLU(), nn.Linear(times, times))
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        skips, channels = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            low = level >= len(widths) - attends
            self.down.append(nn.ModuleList())
            for _ in range(2):
                self.down[-1].append(ResBlock(channels, width, times, low))
                skips.append(channels := width)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(width, width, 3, 2, 1))
                skips.append(width)
        self.middle = ResBlock(channels, channels, times, True)
        for level, width in reversed(list(enumerate(widths))):
            low = level >= len(widths) - attends
            self.up.append(nn.ModuleList())
            for _ in range(3):
                self.up[-1].append(ResBlock(channels + skips.pop(), width, times, low))
                channels = width
            if level:
                self.grow.append(nn.Conv2d(width, width, 3, 1, 1))
        self.norm, self.head = nn.GroupNorm(8, channels), nn.Conv2d(channels, 3, 3, 1, 1)

    def forward(self, images: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        kept = (step / STEPS * math.pi / 2).cos()[:, None, None, None]
        x = self.stem(kept * images + (1 - kept**2).sqrt() * noise)
        time = self.time(self._embed(step))
        skips = [x]
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = run_block(block, self.checkpoint, x, time)
                skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
                skips.append(x)
        x = run_block(self.middle, self.checkpoint, x, time)
        for level, blocks in enumerate(self.up):
            for block in blocks:
                x = run_block(block, self.checkpoint, torch.cat([x, skips.pop()], 1), time)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2.0))
        return F.mse_loss(self.head(F.silu(self.norm(x))), noise)

    def _embed(self, step: Tensor) -> Tensor:
        """Sines and cosines of the step, of geometric frequencies."""
        half = self.first // 2
        scale = torch.exp(torch.arange(half, device=step.device) * (-math.log(10000.0) / half))
        angle = step[:, None] * scale
        return torch.cat([angle.sin(), angle.cos()], 1)


def diffusion(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = DiffusionUNet((32, 64, 96), 2, checkpoint)
    images = torch.randn(4, 3, 48, 48)
    return model, (images, torch.randn_like(images), torch.randint(STEPS, (4,)))
