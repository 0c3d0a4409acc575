"""What a machine can do: the roofline that prices operations.

Ratios between prices decide a plan, and absolute figures decide how well its time is predicted. The
descriptions here are starting points, from datasheets or from one machine; ``recut calibrate``
measures the one at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# 2: the packing of truth values is among the functions; what is absent takes no time.
VERSION = 2

# Families of library calls that do not reach a matmul's rate.
FAMILIES = (
    "attention",
    "attention backward",
    "convolution",
    "convolution backward",
    "batched matmul",
)
# Functions that take a kernel longer than to read and write their numbers.
FUNCTIONS = (
    *("uniform", "normal", "exp", "log", "tanh", "sigmoid", "erf", "sin", "pow"),
    *("bool store", "bool load"),
)


@dataclass(frozen=True)
class Machine:
    """A roofline.

    Attributes:
        name: what it describes.
        flops: FLOP/s that matmuls reach by dtype name; ``"default"`` serves every other dtype.
        bandwidth: bytes/s that one kernel which reads and writes large tensors reaches.
        launch: seconds that starting a kernel costs.
        fused: share of a pointwise op's memory traffic that is left when it runs in the kernel of
            its reader.
        device: torch's device type, ``"cpu"`` or ``"cuda"``.
        rates: what the calls of a family (``FAMILIES``) reach of a matmul's FLOP/s; 1 where absent.
        functions: numbers/s that a kernel computes of a function (``FUNCTIONS``), random ones and
            the packing of masks included; those that are absent take no time beside their traffic.
        link: bytes/s between host and device; 0 where there is no such link.
        source: where the figures are from.
    """

    name: str
    flops: Mapping[str, float] = field(hash=False)
    bandwidth: float
    launch: float
    fused: float = 0.05
    device: str = "cpu"
    rates: Mapping[str, float] = field(hash=False, default_factory=dict)
    functions: Mapping[str, float] = field(hash=False, default_factory=dict)
    link: float = 0.0
    source: str = ""

    @property
    def label(self) -> str:
        """The name, and where the figures are from."""
        return f"{self.name} ({self.source or 'of the settings'})"

    def peak_flops(self, dtype: str, family: str = "") -> float:
        """Return FLOP/s for a dtype name such as ``"float32"`` and a family of calls."""
        return self.flops.get(dtype, self.flops["default"]) * self.rates.get(family, 1.0)

    def function_seconds(self, function: str, count: int) -> float:
        """Return the seconds that computing a function of ``count`` numbers takes."""
        return count / self.functions[function] if function in self.functions else 0.0

    def key(self) -> str:
        """Return a stable text of everything that changes a price."""
        prices = (self.bandwidth, self.launch, self.fused, self.link)
        tables = [sorted(t.items()) for t in (self.flops, self.rates, self.functions)]
        return repr((self.name, self.device, prices, tables))

    def to_json(self) -> dict[str, Any]:
        """Return the description as plain JSON data; :meth:`from_json` reads it back."""
        return {"version": VERSION, **asdict(self)}

    @staticmethod
    def from_json(data: Any) -> Machine:
        """Read a description.

        Raises:
            ValueError: another version, an unknown or missing field, or a figure that no machine
                has; the text names it.
        """
        if not isinstance(data, Mapping) or data.get("version") != VERSION:
            raise ValueError(f"this is not a machine description of version {VERSION}")
        known = {f.name for f in fields(Machine)}
        given = {k: v for k, v in data.items() if k != "version"}
        if given.keys() != known:
            odd = sorted(given.keys() ^ known)
            raise ValueError(f"fields are missing or unknown: {', '.join(map(str, odd))}")
        for name in ("name", "device", "source"):
            if not isinstance(given[name], str):
                raise ValueError(f"{name} has to be text, not {given[name]!r}")
        if given["device"] not in ("cpu", "cuda"):
            raise ValueError(f'device has to be "cpu" or "cuda", not {given["device"]!r}')
        for name in ("bandwidth", "launch", "fused"):
            _positive(name, given[name])
        if given["link"] != 0:
            _positive("link", given["link"])
        for name in ("flops", "rates", "functions"):
            if not isinstance(given[name], Mapping):
                raise ValueError(f"{name} has to be a table of numbers, not {given[name]!r}")
            for key, value in given[name].items():
                _positive(f"{name}[{key!r}]", value)
        if "default" not in given["flops"]:
            raise ValueError('flops has no "default"')
        for name, known_keys in (("rates", FAMILIES), ("functions", FUNCTIONS)):
            if unknown := sorted(given[name].keys() - set(known_keys)):
                raise ValueError(f"{name} has unknown entries: {', '.join(unknown)}")
        return Machine(**given)


def _positive(name: str, value: object) -> None:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise ValueError(f"{name} has to be a positive number, not {value!r}")


# Two server cores with AVX-512, of which the library uses AVX2.
CPU = Machine(
    "cpu",
    {"default": 230e9, "float64": 115e9, "bfloat16": 900e9},
    bandwidth=60e9,
    launch=5e-6,
    rates={"attention": 0.35, "attention backward": 0.35},
    functions={
        "uniform": 2.7e8,
        "normal": 6.5e7,
        "tanh": 2.3e9,
        "bool store": 2.6e8,
        "bool load": 7.5e8,
    },
    source="recut calibrate on two cores of an AMD EPYC (Zen 5)",
)

# Rates that flash attention and cuDNN reach of a GPU's matmuls: FlashAttention-2 and 3 report half
# to three quarters forwards, a little less backwards (arXiv 2307.08691, 2407.08608).
_GPU_RATES = {
    "attention": 0.65,
    "attention backward": 0.55,
    "convolution": 0.7,
    "convolution backward": 0.6,
}
# What matmuls reach of a datasheet's dense peak, and kernels of its memory bandwidth.
_OF_PEAK = 0.6
_OF_BANDWIDTH = 0.8


def _accelerator(  # a row of a table of datasheets
    name: str, half: float, single: float, double: float, bandwidth: float, link: float, source: str
) -> Machine:
    """Describe a GPU by its datasheet: dense TFLOP/s of bf16, fp32 and fp64, then GB/s."""
    tera = 1e12 * _OF_PEAK
    return Machine(
        name,
        {
            "default": single * tera,
            "float16": half * tera,
            "bfloat16": half * tera,
            "float64": double * tera,
        },
        bandwidth * 1e9 * _OF_BANDWIDTH,
        launch=3e-6,
        device="cuda",
        rates=_GPU_RATES,
        link=link * 1e9 * _OF_BANDWIDTH,
        source=source,
    )


_GPUS = (
    _accelerator("v100", 125, 15.7, 7.8, 900, 16, "NVIDIA V100 datasheet, SXM2 32 GB"),
    _accelerator("a100", 312, 19.5, 19.5, 2039, 32, "NVIDIA A100 datasheet, SXM 80 GB"),
    _accelerator("a10g", 70, 31.5, 0.5, 600, 32, "NVIDIA A10 datasheet"),
    _accelerator("l4", 121, 30.3, 0.5, 300, 32, "NVIDIA L4 datasheet, without sparsity"),
    _accelerator("l40s", 362, 91.6, 1.4, 864, 32, "NVIDIA L40S datasheet, without sparsity"),
    _accelerator("rtx 4090", 165, 82.6, 1.3, 1008, 32, "NVIDIA Ada architecture whitepaper"),
    _accelerator("h100", 989, 67, 67, 3350, 64, "NVIDIA H100 datasheet, SXM, without sparsity"),
    _accelerator("h200", 989, 67, 67, 4800, 64, "NVIDIA H200 datasheet, SXM, without sparsity"),
    _accelerator("b200", 2250, 75, 37, 8000, 64, "NVIDIA DGX B200 datasheet, a GPU's share"),
    _accelerator("mi300x", 1307, 163.4, 163.4, 5300, 64, "AMD Instinct MI300X datasheet"),
)

MACHINES: Mapping[str, Machine] = {machine.name: machine for machine in (CPU, *_GPUS)}
# For a GPU that no description fits.
GPU = MACHINES["h100"]


def described(device: str, product: str) -> Machine:
    """Return the description that fits a device by its type and the name that its driver gives.

    Args:
        device: torch's device type.
        product: such as ``"NVIDIA H100 80GB HBM3"``.
    """
    if device == "cpu":
        return CPU
    text = product.lower()
    # The longest name first: an "l40s" is no "l4".
    for name in sorted(MACHINES, key=len, reverse=True):
        if MACHINES[name].device == device and name in text:
            return MACHINES[name]
    return GPU
