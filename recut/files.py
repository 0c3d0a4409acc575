"""Plans and dumps on disk: written whole or not at all, read back with clear errors."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from recut.errors import SettingError
from recut.partitioners.plan import Plan

_counter = count()
_lock = threading.Lock()


def cache_folder() -> Path:
    """Return where recut keeps what it measures: ``$XDG_CACHE_HOME/recut``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "recut"


def write_atomic(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def dump_graph(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files of one compiled graph into a folder of its own.

    Args:
        folder: the dump folder; made where it is missing.
        files: text by file name.

    Returns:
        The new folder, ``graph_<process>_<number>``: processes and recompilations never meet.
    """
    with _lock:
        number = next(_counter)
    target = folder / f"graph_{os.getpid()}_{number}"
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomic(target / name, text)
    return target


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        SettingError: it cannot be read, or holds no plan.
    """
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SettingError(
            "plan", str(path), f"no readable plan ({error})", "give a plan.json that recut dumped"
        ) from error
