"""Plans and dumps on disk: written whole or not at all, read back with clear errors."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

from recut.errors import SettingError
from recut.partitioners.difference import graph_difference
from recut.partitioners.errors import ForeignPlan
from recut.partitioners.plan import Plan
from recut.partitioners.problem import Problem

Parsed = TypeVar("Parsed")

_counter = count()
_lock = threading.Lock()


def cache_folder() -> Path:
    """Return where recut keeps what it measures: ``$XDG_CACHE_HOME/recut``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "recut"


def write_atomic(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it; others may read it as the umask says."""
    # tempfile's own files are for their owner alone, also when renamed.
    temporary = path.with_name(f".{path.name[:100]}.{uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def dump_graph(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files of one compiled graph into a folder of its own, which appears whole.

    Args:
        folder: the dump folder; made where it is missing.
        files: text by file name.

    Returns:
        The new folder, ``graph_<process>_<number>``, or ``graph_rank<rank>_<process>_<number>``
        where the RANK of a distributed run is set. One that is there already is never touched,
        whoever wrote it: the next number is taken.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    with _assembled(folder, files) as made:
        return _claim(made, folder)


@contextmanager
def _assembled(parent: Path, files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder of files under a hidden one, to be renamed; what is not is removed.

    So are folders above it that were missing, where something goes wrong.
    """
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".recut_") as hidden:
            made = Path(hidden) / "whole"
            made.mkdir()
            for name, text in files.items():
                (made / name).write_text(text, encoding="utf-8")
            yield made
    except BaseException:
        for path in missing:
            with suppress(OSError):  # another process may use it by now
                path.rmdir()
        raise


def _claim(made: Path, folder: Path) -> Path:
    """Rename a finished folder to the first free name; processes may race for one."""
    rank = os.environ.get("RANK", "")
    prefix = f"graph_rank{rank}_" if rank.isdecimal() else "graph_"
    while True:
        with _lock:
            number = next(_counter)
        target = folder / f"{prefix}{os.getpid()}_{number}"
        try:
            return made.rename(target)  # a folder never replaces one that holds something
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def checked_folder(setting: str, folder: Path) -> Path:
    """Return a folder that a plan may be written to: a new one, an empty one, or an earlier plan's.

    It is asked before planning, which takes long; a new one is made when there is something to
    write.

    Raises:
        SettingError: it holds something else, or cannot be made.
    """
    remedy = "give a new folder, or one that a plan was written to before"
    try:
        held = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise SettingError(setting, str(folder), f"no folder ({error})", remedy) from error
    near = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        what = "may not be written to" if near.is_dir() else "is no folder"
        raise SettingError(setting, str(folder), f"{near} {what}", remedy)
    if held and "plan.json" not in held:
        raise SettingError(setting, str(folder), f"it holds other files ({held[0]})", remedy)
    return folder


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write files into a folder that appears whole where it was not there; else each by itself.

    Raises:
        SettingError: it cannot be written.
    """
    try:
        if folder.exists():
            for name, text in files.items():
                write_atomic(folder / name, text)
            return
        with _assembled(folder.parent, files) as made:
            made.replace(folder)
    except OSError as error:
        raise SettingError(
            "dump", str(folder), f"it cannot be written ({error})", "give another folder"
        ) from error


def graph_folder(folder: Path, file: str) -> Path:
    """Return the folder of one graph: the given one, or the only one in a folder of dumps.

    Args:
        folder: what a user named; a file in it will do.
        file: what each graph's folder holds.

    Raises:
        SettingError: there is none, or there are several.
    """
    folder = folder.parent if folder.is_file() else folder
    if (folder / file).is_file():
        return folder
    remedy = "give the folder of one graph, such as `recut plan --dump FOLDER` writes"
    if not folder.is_dir():
        raise SettingError("folder", str(folder), "there is no such folder", remedy)
    found = sorted(path.parent for path in folder.glob(f"*/{file}"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found)
    problem = f"it holds several graphs: {names}" if found else f"it holds no {file}"
    raise SettingError("folder", str(folder), problem, remedy)


def read_json(path: Path) -> Any:
    """Read a JSON file as strictly as a plan wants it: no key twice, and no number that is none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such JSON.
    """
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def figures(data: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return some fields of what was read, each of one of its kinds.

    Raises:
        ValueError: one is missing, or of another kind.
    """
    for name in kinds:
        if name not in data or type(data[name]) not in kinds[name]:
            raise ValueError(f"{name} is {data.get(name)!r}")
    return {name: data[name] for name in kinds}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is given twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text)


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        SettingError: it cannot be read, or holds no plan.
    """
    return _read(path, "plan", "plan", Plan.from_json)


def read_problem(path: Path) -> Problem:
    """Read the graph that a plan was made for, as it lies beside the plan.

    Raises:
        SettingError: it cannot be read, or is no graph.
    """
    return _read(path, "problem", "graph", Problem.from_json)


def _read(path: Path, setting: str, what: str, parse: Callable[[Any], Parsed]) -> Parsed:
    try:
        return parse(read_json(path))
    except (OSError, ValueError) as error:
        raise SettingError(
            setting,
            str(path),
            f"no readable {what} ({error})",
            f"give a {setting}.json that recut dumped",
        ) from error


def replayed(path: Path, problem: Problem) -> Plan:
    """Return a saved plan for a graph.

    Raises:
        ForeignPlan: it was made for another graph; the error tells the two apart where that other
            one lies beside it, as in a dump.
        InvalidSchedule: it is none for this graph.
        SettingError: it cannot be read.
    """
    plan = read_plan(path)
    try:
        plan.check(problem)
    except ForeignPlan as error:
        with suppress(SettingError):
            planned_for = read_problem(path.parent / "problem.json")
            if planned_for.digest == plan.digest:
                lines = graph_difference(planned_for, problem).lines()
                told = "\n  ".join(["This graph differs from that of the plan:", *lines])
                raise ForeignPlan(f"{error}\n{told}") from None
        raise
    return plan
