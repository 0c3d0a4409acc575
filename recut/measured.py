"""Costs measured op by op (``costs="measure"``): each call once for a device, kept on disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from torch import fx

from recut.files import cache_folder, write_atomic
from recut.machines import Host, this_host
from recut.passes.capture import channels_last_nodes, device_of
from recut.passes.measured import is_measurable, measure, signature
from recut.passes.views import is_view

log = logging.getLogger("recut")

_VERSION = 1
# What this process knows by host; None for a call that does not run on made-up data.
_known: dict[Host, dict[str, float | None]] = {}


def measured_costs(joint: fx.GraphModule, compiler: str) -> Mapping[str, float]:
    """Return the seconds of every call of a joint graph that can be measured, by signature.

    Measures those that no earlier run has measured on this device: about 30 ms each.

    Args:
        joint: the joint graph.
        compiler: "inductor" or "eager": who runs the graphs.
    """
    host = this_host(device_of(joint.graph))
    known = _known.setdefault(host, dict(_load(_path(host))))
    turned = channels_last_nodes(joint.graph, compiler == "inductor")
    calls = {
        signature(n, n in turned): (n, n in turned)
        for n in joint.graph.nodes
        if n.op == "call_function" and not is_view(n) and is_measurable(n, compiler == "inductor")
    }
    missing = {text: call for text, call in calls.items() if text not in known}
    if missing:
        known.update(_measure(missing))
        _store(_path(host), known)
    return {text: s for text in calls if (s := known[text]) is not None}


def _measure(calls: Mapping[str, tuple[fx.Node, bool]]) -> dict[str, float | None]:
    """Time calls one after the other, with their progress on standard error."""
    start = time.perf_counter()
    found = {}
    # No thread of its own that draws: it would slow down what is measured.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=len(calls))
        for text, (node, turned) in calls.items():
            progress.update(task, description=f"recut measures {node.target}", refresh=True)
            found[text] = measure(node, turned)
            progress.advance(task)
    log.info("measured %d calls in %.1f s", len(found), time.perf_counter() - start)
    return found


def _path(host: Host) -> Path:
    release = host.torch.replace("+", "-")
    return cache_folder() / "costs" / f"{host.slug}-{host.threads}-torch-{release}.json"


def _load(path: Path) -> dict[str, float]:
    """Return what a file holds; a file that cannot be read is measured again."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}, expected {_VERSION}")
        return {str(text): float(seconds) for text, seconds in content["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read (%s): calls are measured again", path, error)
        return {}


def _store(path: Path, known: Mapping[str, float | None]) -> None:
    """Keep what was measured, beside what other processes have kept meanwhile."""
    seconds = {**_load(path), **{text: s for text, s in known.items() if s is not None}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"version": _VERSION, "seconds": seconds}, indent=1) + "\n")
    except OSError as error:
        log.warning("measured costs cannot be kept (%s): the next run measures again", error)


def forget() -> None:
    """Forget what this process knows; the files stay."""
    _known.clear()
