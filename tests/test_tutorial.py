"""The tutorial, followed by copy and paste: its files are saved, and its commands run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from recut.cli import main

TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps() -> list[tuple[str, str]]:
    """Return the tutorial's files and command lines, in order."""
    out: list[tuple[str, str]] = []
    for language, text in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if language == "python":
            first, _, body = text.partition("\n")
            out.append((first.removeprefix("# "), body))
        else:
            out += [("sh", line) for line in text.splitlines()]
    return out


def follow(line: str, patch: pytest.MonkeyPatch) -> int:
    """Run a command line in this process; torch takes long to import anew."""
    words = shlex.split(line, comments=True)
    torch._dynamo.reset()  # what another process would not know
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        patch.setenv(name, value)
    if words[0] == "recut":
        return main(words[1:])
    assert words[0] == "python"
    patch.setattr(sys, "argv", words[1:])
    try:
        runpy.run_path(words[1], run_name="__main__")
    except Exception as error:
        print(error)
        return 1
    return 0


@pytest.mark.slow
def test_the_tutorial_works_by_copy_and_paste(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    told = {}
    for kind, text in steps():
        if kind != "sh":
            Path(kind).write_text(text, encoding="utf-8")
            continue
        with pytest.MonkeyPatch.context() as patch:
            status = follow(text, patch)
        told[text.partition("  #")[0]] = "".join(capsys.readouterr())
        expected = re.search(r"# exits with (\d)", text)
        assert status == (int(expected[1]) if expected else 0), text
    assert {"net.py", "train.py", "plans", "out"} <= {path.name for path in tmp_path.iterdir()}
    assert Path("plans/small/report.html").is_file()
    assert Path("out/index.html").is_file()
    assert "cannot be met" in told["recut plan net.py:make --budget 1MiB"]
    training = told["RECUT_MEMORY_BUDGET=70% RECUT_DUMP=out python train.py"]
    first, last = map(float, re.search(r"loss (\S+) to (\S+)", training).groups())
    assert last < first
    assert "in the generated kernels" in training
