"""torch's private names: all in one file, all there, and nowhere else but in the listed places."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from recut.passes import _torch

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


@pytest.mark.parametrize("name", _torch.__all__)
def test_a_name_behind_the_gate_is_there(name):
    assert getattr(_torch, name) is not None


def test_the_gate_lists_what_it_imports():
    imported = set()
    for node in ast.walk(ast.parse(GATE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "torch":
            names = {alias.asname or alias.name for alias in node.names}
            imported |= {name for name in names if not name.startswith("_")}  # the gate's own
    assert imported == set(_torch.__all__)
    assert len(_torch.__all__) == len(set(_torch.__all__))


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
