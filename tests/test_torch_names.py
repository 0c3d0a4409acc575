"""torch's private names: all in one file, all there, and nowhere else but in the listed places."""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from nets import RELEASE
from private_names import NEWEST, OLDEST, SOMEWHERE, releases_of

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("recut", "recut/commands", "passes")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).glob("*.py"))
GATE = ROOT / "passes" / "_torch.py"

# What is used outside the gate, and why that is accepted.
ACCEPTED = {
    # Public by torch.compile's documentation, in a package with a private name: the list of
    # options and modes. recut/settings.py imports it late, since it costs seconds.
    "recut/backend.py": {"torch._inductor", "torch._inductor.list_mode_options"},
    "recut/settings.py": {"torch._inductor", "torch._inductor.list_options"},
    # The type of torch.ops.aten.*.default, which has no public name. Since 1.10.
    "passes/views.py": {"torch._ops.OpOverload"},
    "passes/measured.py": {"torch._ops.OpOverload"},
    "passes/rules.py": {"torch._ops.OpOverload"},
}
# Known breaches that wait to move behind the gate.
ACCEPTED["recut/backend.py"] |= {
    "torch._inductor.compile_fx.compile_fx",
    "torch._inductor.compile_fx.compile_fx_inner",
}


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of an attribute chain, or the empty string."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def is_private(name: str) -> bool:
    """Whether a dotted name goes through a private part of torch; names of ops do not count."""
    parts = name.split(".")
    if parts[0] != "torch" or parts[1:2] == ["ops"]:
        return False
    return any(p.startswith("_") and not p.startswith("__") for p in parts)


def private_names(tree: ast.AST) -> set[str]:
    """Return the private names of torch that a module imports or reaches by attributes."""
    found = set()
    inner = set()  # attributes that are part of a longer chain
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Attribute):
                inner.add(id(node.value))
            if id(node) not in inner:
                found.add(dotted(node))
    return {name for name in found if is_private(name)}


def test_the_scan_sees_each_form():
    code = """
import torch._a
from torch.b import _c
from torch._d import e
from recut.passes import _torch
def f(x):
    torch.utils._g.h(torch.ops.aten._softmax, x._i, torch.nn.j, torch.__version__)
"""
    found = private_names(ast.parse(code))
    assert found == {"torch._a", "torch.b._c", "torch._d.e", "torch.utils._g.h"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_private_names_stay_behind_the_gate(path):
    if path == GATE:
        return
    name = path.relative_to(ROOT).as_posix()
    assert private_names(ast.parse(path.read_text(encoding="utf-8"))) == ACCEPTED.get(name, set())


def gate_imports() -> dict[str, str]:
    """Return what the gate calls each name of torch that it imports."""
    out = {}
    for node in ast.walk(ast.parse(GATE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torch"):
            out |= {f"{node.module}.{a.name}": a.asname or a.name for a in node.names}
    return out


def found(name: str) -> Any:
    """Return what a dotted name stands for.

    Raises:
        ImportError, AttributeError: it is not there.
    """
    place, _, last = name.rpartition(".")
    try:
        holder = import_module(place)
    except ModuleNotFoundError:
        return getattr(pkgutil.resolve_name(place), last)  # of a class, or of a namespace in C
    return getattr(holder, last) if hasattr(holder, last) else import_module(name)


# The gate is not imported before the last test, so a name that has moved fails alone, by its name.
@pytest.mark.parametrize(("name", "releases"), releases_of().items(), ids=releases_of())
def test_a_name_is_where_its_releases_have_it(name, releases):
    first, last = releases
    if first <= RELEASE and (last >= RELEASE or last == NEWEST):
        found(name)  # raises where it is not
    else:
        with pytest.raises((ImportError, AttributeError)):
            found(name)


def test_the_list_has_each_name_that_is_used():
    listed = set(releases_of())
    assert gate_imports().keys() <= listed
    for names in ACCEPTED.values():
        assert names <= listed | {"torch._inductor"}
    # What the gate's names are asked for, as `_torch.V.choices`.
    holders = {alias: name for name, alias in gate_imports().items()}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = dotted(node).split(".") if isinstance(node, ast.Attribute) else []
            # V.graph is there while a graph is lowered.
            if parts[:1] == ["_torch"] and len(parts) == 3 and parts[1:] != ["V", "graph"]:
                assert f"{holders[parts[1]]}.{parts[2]}" in listed, path.name


def test_the_gate_has_a_substitute_for_what_some_releases_lack():
    guarded = set()
    for node in ast.walk(ast.parse(GATE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Try):
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    guarded |= {f"{inner.module}.{alias.name}" for alias in inner.names}
    assert guarded == SOMEWHERE.keys()


def test_the_list_and_the_checkup_know_the_same_releases():
    from recut import checkup

    assert (checkup._OLDEST, checkup._NEWEST) == (OLDEST, NEWEST)


def test_the_gate_lists_what_it_imports():
    imported = {alias for alias in gate_imports().values() if not alias.startswith("_")}  # own
    from recut.passes import _torch

    assert imported == set(_torch.__all__)
    assert len(_torch.__all__) == len(set(_torch.__all__))
    assert all(getattr(_torch, name) is not None for name in _torch.__all__)


def test_planning_never_imports_torch():
    for path in sorted((ROOT / "partitioners").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "torch", f"{path.name} imports {name}"
                assert not name.startswith("recut.passes"), f"{path.name} imports {name}"
