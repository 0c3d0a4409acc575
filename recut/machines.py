"""Which description of the machine is in force: the user's, a calibrated one, or a built-in one.

Calibrations lie in the user's cache folder, one file for each product and number of threads. They
are valid for the torch that measured them; others are noticed and left alone.
"""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from recut.files import cache_folder, write_atomic
from recut.partitioners.machine import Machine, described
from recut.settings import Settings

log = logging.getLogger("recut")


@dataclass(frozen=True)
class Host:
    """What a calibration was measured on, and is valid for.

    Attributes:
        device: torch's device type.
        product: name of the processor, with the instructions that torch uses on it, or of the GPU.
        threads: torch's threads; 0 on a GPU.
        torch: torch's version.
    """

    device: str
    product: str
    threads: int
    torch: str

    @property
    def slug(self) -> str:
        """The product as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.device} {self.product}".lower()).strip("-")


def this_host(device: str) -> Host:
    """Return what this process runs on."""
    if device == "cpu":
        return Host(device, _processor(), torch.get_num_threads(), torch.__version__)
    return Host(device, torch.cuda.get_device_name(), 0, torch.__version__)


@cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    # Virtual machines of one name differ in what they offer, and half the width is half the rate.
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def folder() -> Path:
    """Return where calibrations are kept: ``$XDG_CACHE_HOME/recut/machines``."""
    return cache_folder() / "machines"


def store(machine: Machine, host: Host, date: str) -> Path:
    """Keep a calibration; returns its file."""
    path = _path(host)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.to_json(), "host": asdict(host), "date": date}
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    return path


def _path(host: Host) -> Path:
    return folder() / f"{host.slug}-{host.threads}.json"


def calibrated(host: Host) -> Machine | None:
    """Return the calibration of a host, or None where there is none that is valid for it."""
    path = _path(host)
    if not path.exists():
        others = sorted(p.name for p in folder().glob(f"{host.slug}-*.json"))
        if others:
            _notice(f"{', '.join(others)} was measured with another number of threads")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        machine, found = Machine.from_json(content["machine"]), Host(**content["host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _notice(f"{path} cannot be read ({error})")
        return None
    if found != host:
        _notice(f"{path.name} was measured on {_text(found)}, and this is {_text(host)}")
        return None
    return machine


def _text(host: Host) -> str:
    return f"{host.product} with torch {host.torch}"


@cache
def _notice(text: str) -> None:
    """Say once why a calibration is not used."""
    log.warning("%s: it is not used; `recut calibrate` measures this machine as it is now", text)


def in_force(settings: Settings) -> Mapping[str, Machine]:
    """Return the description by type of device: the settings' for all, or the best known."""
    # Asking a GPU for its name starts CUDA: not where no tensor has done so.
    devices = ["cpu", "cuda"] if torch.cuda.is_initialized() else ["cpu"]  # type: ignore[no-untyped-call]
    found = {}
    for device in devices:
        if settings.machine is not None:
            found[device] = settings.machine
            continue
        host = this_host(device)
        found[device] = calibrated(host) or described(device, host.product)
    return found


def pick(machines: Mapping[str, Machine], device: str) -> Machine:
    """Return the description for a graph's device type; a GPU's for a device that is not here."""
    return machines.get(device) or described(device, "")


def to_text(machine: Machine) -> list[tuple[str, str]]:
    """Return a description as labels and values to show."""
    rows = [
        (f"matmul, {name}", f"{rate / 1e9:,.0f} GFLOP/s") for name, rate in machine.flops.items()
    ]
    rows += [(name, f"{rate:.2f} of a matmul's rate") for name, rate in machine.rates.items()]
    rows += [(name, f"{rate / 1e9:,.2f} G/s") for name, rate in machine.functions.items()]
    rows.append(("memory bandwidth", f"{machine.bandwidth / 1e9:,.0f} GB/s"))
    rows.append(("starting a kernel", f"{machine.launch * 1e6:.1f} us"))
    if machine.link:
        rows.append(("host link", f"{machine.link / 1e9:,.0f} GB/s"))
    return rows
