"""What a machine can do: the roofline that prices operations.

Only ratios between prices decide a plan, so rough figures serve until a machine is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """A roofline.

    Attributes:
        name: what it describes.
        flops: peak FLOP/s of matmuls by dtype name; ``"default"`` serves every other dtype.
        bandwidth: bytes/s of main memory that one kernel reaches.
        launch: seconds that starting a kernel costs.
        fused: share of a pointwise op's memory traffic that is left when it runs in the kernel of
            its reader.
    """

    name: str
    flops: Mapping[str, float] = field(hash=False)
    bandwidth: float
    launch: float
    fused: float = 0.05

    def peak_flops(self, dtype: str) -> float:
        """Return FLOP/s for a dtype name such as ``"float32"``."""
        return self.flops.get(dtype, self.flops["default"])

    def key(self) -> str:
        """Return a stable text of everything that changes a price."""
        return repr(
            (self.name, sorted(self.flops.items()), self.bandwidth, self.launch, self.fused)
        )


# Two server cores with AVX-512; measured order of magnitude, see docs/design.md.
CPU = Machine("cpu", {"default": 120e9, "float64": 60e9}, bandwidth=8e9, launch=3e-6)

# An H100/H200-like accelerator: half of the datasheet's dense peak, three quarters of its HBM.
GPU = Machine(
    "gpu",
    {"default": 25e12, "float32": 25e12, "bfloat16": 400e12, "float16": 400e12},
    bandwidth=2.0e12,
    launch=3e-6,
)

MACHINES: Mapping[str, Machine] = {"cpu": CPU, "gpu": GPU}
