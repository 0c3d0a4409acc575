"""The model of a command: ``pkg.mod:make`` names a function that returns it with its inputs."""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from recut.doctor import stdout_to_stderr
from recut.errors import RecutError, SettingError
from recut.passes import _torch
from recut.planning import Traced, trace
from recut.settings import Settings
from recut.trace import Call, Dynamic

_FORMS = (
    "give pkg.module:function or file.py:function; the function returns (model, inputs), with "
    "inputs a tuple, or a dict by name"
)


def add_factory(parser: argparse.ArgumentParser) -> None:
    """Let a command take a model."""
    parser.add_argument(
        "factory",
        metavar="pkg.mod:make",
        help="a function that returns (model, inputs), inputs a tuple or a dict by name; "
        "file.py:make names one in a file. It is called with fake tensors: nothing of the model "
        "takes memory, and nothing runs",
    )
    parser.add_argument(
        "--machine",
        help="whose prices and memory: a name such as h200 or a100, or the file of a description; "
        "default: RECUT_MACHINE, or this machine",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_keyword,
        metavar="NAME=VALUE",
        help="call the function with this keyword; may be repeated",
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="call the function with real tensors: for one that looks at their values",
    )


def _keyword(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@contextmanager
def importable() -> Iterator[None]:
    """Let modules of the working folder be imported, as ``python -m`` does."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the traceback that torch logs where shapes do not fit: the error itself is told."""

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def traced(options: argparse.Namespace, settings: Settings, **keywords: Any) -> Traced:
    """Return the traced model that a command's options name.

    Args:
        options: of :func:`add_factory`.
        settings: the machine, mostly.
        keywords: for the function, beside those of the options.

    Raises:
        SettingError: there is no such function, it fails, or returns something else.
        TraceError: the model has no training graph, or more than one.
    """
    return traced_call(options, settings, made(options, **keywords))


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[None]:
    """Import and trace as a command does."""
    with ExitStack() as stack:
        stack.enter_context(importable())
        stack.enter_context(_quiet())
        if options.json:
            stack.enter_context(stdout_to_stderr())
        yield


def made(options: argparse.Namespace, **keywords: Any) -> Call:
    """Return the model and the inputs that a command's options name.

    Raises:
        SettingError: there is no such function, it fails, or returns something else.
    """
    with _prepared(options):
        make = load(options.factory)
        return called(options.factory, make, {**dict(options.set), **keywords}, options.real)


def traced_call(
    options: argparse.Namespace, settings: Settings, call: Call, dynamic: Dynamic | None = None
) -> Traced:
    """Return what was made, traced.

    Raises:
        SettingError: the model does not take its inputs.
        TraceError: the model has no training graph, or more than one.
    """
    with _prepared(options):
        try:
            return trace(call, settings, dynamic)
        except RecutError:
            raise
        except Exception as error:
            raise SettingError(
                "factory", options.factory,
                f"tracing its model with its inputs failed ({told(error)})",
                "does the model take these inputs in eager mode?",
            ) from error  # fmt: skip


def load(text: str) -> Callable[..., Any]:
    """Return the function that ``pkg.mod:make`` or ``file.py:make`` names.

    Raises:
        SettingError: there is none.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise SettingError("factory", text, "it names no function", _FORMS)
    try:
        module = (
            _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except (Exception, SystemExit) as error:
        sought = getattr(error, "name", None)
        missing = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{sought}.")
        problem = (
            f"there is no module {sought}" if missing else f"importing it failed ({told(error)})"
        )
        raise SettingError("factory", text, problem, _FORMS) from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1, cutoff=0.5)
            remedy = f"did you mean {place}:{near[0]}?" if near else _FORMS
            raise SettingError("factory", text, f"{place} has no {part}", remedy)
        found = getattr(found, part)
    if not callable(found) or isinstance(found, torch.nn.Module):
        kind = type(found).__name__
        raise SettingError("factory", text, f"{name} is no function, but {kind}", _FORMS)
    function: Callable[..., Any] = found
    return function


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"_recut_{path.stem}"  # it may be called as a module that others import
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the name ends with .py"
    assert spec.loader is not None, "the name ends with .py"
    sys.path.insert(0, str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _fake() -> Iterator[None]:
    """Make fake tensors, and let modules be moved and cast, as ``model.bfloat16()`` does.

    A module swaps a fake parameter for the new one, and torch swaps nothing that a weak reference
    leads to. The mode's own do (``torch/_subclasses/meta_utils.py``): which fake tensor a real one
    has become, for the next time that it is met.
    """
    swap = torch.utils.swap_tensors

    def swapped(one: torch.Tensor, other: torch.Tensor) -> None:
        memo.clear()
        swap(one, other)  # type: ignore[no-untyped-call, unused-ignore]

    with _torch.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        memo = mode.fake_tensor_converter.meta_converter.tensor_memo
        with mock.patch.object(torch.utils, "swap_tensors", swapped):
            yield


def called(text: str, make: Callable[..., Any], keywords: Mapping[str, Any], real: bool) -> Call:
    """Return the model and the inputs that a factory makes.

    Args:
        text: its name, for errors.
        make: the function.
        keywords: what it is called with.
        real: call it with real tensors.

    Raises:
        SettingError: it fails, or returns something else.
    """
    try:
        with nullcontext() if real else _fake():
            made = make(**keywords)
    except (Exception, SystemExit) as error:
        remedy = "does it run by itself?"
        if "cuda" in str(error).lower():
            remedy = (
                "make the model without a device: nothing runs here, and --machine says what it "
                "is planned for"
            )
        elif not real:
            remedy += (
                " It is called with fake tensors, which hold no values; --real calls it with real "
                "ones"
            )
        raise SettingError("factory", text, f"it failed ({told(error)})", remedy) from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise SettingError("factory", text, f"it returned {_kind(made)}", _FORMS)
    model, inputs = made
    if not callable(model):
        raise SettingError("factory", text, f"its model is {_kind(model)}", _FORMS)
    if isinstance(inputs, torch.Tensor):
        raise SettingError(
            "factory", text, "its inputs are a bare tensor", "return (model, (tensor,))"
        )
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        return Call(model, (), dict(inputs))
    if isinstance(inputs, tuple | list):
        return Call(model, tuple(inputs), {})
    raise SettingError("factory", text, f"its inputs are {_kind(inputs)}", _FORMS)


def _kind(value: object) -> str:
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    more = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{article} {kind}{more}"


def told(error: BaseException) -> str:
    """Return an error in a line: its kind, its first line, and where it was raised."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    users = [f for f in frames if "site-packages" not in f.filename and "<" not in f.filename]
    if not users:
        return text
    return f"{text} at {Path(users[-1].filename).name}:{users[-1].lineno}"
