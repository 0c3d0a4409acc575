"""Packaging: one name per module, a planner without torch, and a wheel that works elsewhere."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = {
    "recut": "recut",
    "recut.commands": "recut/commands",
    "recut.passes": "passes",
    "recut.partitioners": "partitioners",
}


def python(code: str, *, cwd: Path = ROOT, executable: str = sys.executable) -> str:
    """Run code in a process of its own and return what it printed."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("RECUT_", "PYTHONPATH"))}
    done = subprocess.run(
        [executable, "-c", code], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def module_files() -> dict[str, Path]:
    """Archive name and path of each file that the wheel must hold."""
    files = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix == ".py" or path.name == "py.typed":
                files[f"{package.replace('.', '/')}/{path.name}"] = path
    for path in sorted((ROOT / "recut" / "report_page").iterdir()):
        files[f"recut/report_page/{path.name}"] = path
    return files


def test_the_package_list_is_the_tree():
    found = {"recut"}
    for top, prefix in (("recut", "recut"), ("passes", ""), ("partitioners", "")):
        for path in (ROOT / top).rglob("__init__.py"):  # rglob does not enter the links
            parts = path.parent.relative_to(ROOT).parts
            found.add(".".join(parts if prefix else ("recut", *parts)))
    setuptools = PROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(found)
    assert setuptools["package-dir"] == PACKAGES
    assert set(setuptools["package-data"]) == found


@pytest.mark.parametrize("name", ["passes", "partitioners"])
def test_the_links_lead_to_the_rooms(name):
    link = ROOT / "recut" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert (link / "__init__.py").samefile(ROOT / name / "__init__.py")


@pytest.mark.parametrize("folder", PACKAGES.values())
def test_each_package_is_typed(folder):
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("name", ["passes", "partitioners"])
def test_the_bare_name_is_refused(name):
    code = f"try: import {name}\nexcept ImportError as error: print(error)"
    assert f"import recut.{name}" in python(code)


def test_partitioners_import_without_torch():
    # recut/__init__ imports torch, so a bare `recut` with the same search path stands in for it.
    modules = sorted(path.stem for path in (ROOT / "partitioners").glob("*.py"))
    code = f"""
import importlib, sys, types

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "functorch", "triton"}}:
            raise AssertionError(f"{{name}} was imported")

sys.meta_path.insert(0, Blocked())
recut = types.ModuleType("recut")
recut.__path__ = [{str(ROOT / "recut")!r}]
sys.modules["recut"] = recut
importlib.import_module("recut.partitioners")
for name in {[name for name in modules if name != "__init__"]!r}:
    importlib.import_module("recut.partitioners." + name)
assert not [name for name in sys.modules if name.startswith("recut.passes")]
print("torch" in sys.modules)
"""
    assert python(code) == "False"


def test_the_backend_is_registered():
    code = "import torch._dynamo as d; print('recut' in d.list_backends(exclude_tags=()))"
    assert python(code) == "True"


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the files git would track, and a wheel built from that sdist alone."""
    folder = tmp_path_factory.mktemp("build")
    source, dist = folder / "source", folder / "dist"
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    # Tracked files and new ones that are not ignored, so the test also holds before a commit.
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listing.stdout.split("\0")):
        if os.path.lexists(ROOT / name):  # deleted here, but still in the index
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    # Without --wheel and --sdist, `build` makes the wheel from the sdist. No isolation: no network.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_sources_and_licence(archives):
    with tarfile.open(archives[0]) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    sources = {str(path.relative_to(ROOT)) for path in module_files().values()}
    assert sources | {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert not [name for name in names if name.startswith(("tests", ".", "benchmarks"))]


def test_the_wheel_holds_each_module_once(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        for name, path in module_files().items():
            assert archive.read(name) == path.read_bytes()
    assert sorted(n for n in names if ".dist-info/" not in n) == sorted(module_files())
    assert any(n.endswith("/licenses/LICENSE") for n in names)
    assert "License-Expression: Apache-2.0" in text
    assert f"Version: {PROJECT['project']['version']}" in text


COMPILE = """
import pathlib, sys
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
x = torch.randn(4, 8)
model(x).sum().backward()
expected = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
compiled = torch.compile(model, backend="recut", options={"memory_budget": 0.5})
compiled(x).sum().backward()
for p, grad in zip(model.parameters(), expected, strict=True):
    torch.testing.assert_close(p.grad, grad)

from recut.page import render, style
assert "prefers-color-scheme" in style()

import recut, recut.passes, recut.partitioners
for module in (recut, recut.passes, recut.partitioners):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
print("compiled")
"""


@pytest.fixture
def installed(archives, tmp_path: Path) -> str:
    """The interpreter of a new environment: the wheel, and this environment's libraries."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    executable = str(home / "bin" / "python")
    target = python("import sysconfig; print(sysconfig.get_path('purelib'))", executable=executable)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, archives[1]], check=True)
    # A path line, not site.addsitedir: this environment's own .pth files would bring back the
    # checkout, which is installed here in editable form.
    paths = "\n".join(site.getsitepackages())
    (Path(target) / "libraries.pth").write_text(paths + "\n", encoding="utf-8")
    return executable


def test_the_wheel_compiles_a_model_elsewhere(installed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert python(COMPILE, cwd=elsewhere, executable=installed) == "compiled"
