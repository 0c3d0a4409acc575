"""What the commands share: answers to standard output, progress and refusals to standard error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

# Exit statuses, as diff(1) has them: 0 is well, 1 is a finding, 2 is a request that cannot be met.
WELL, FOUND, REFUSED, STOPPED = 0, 1, 2, 130


def refuse(text: str) -> int:
    """Say what cannot be done, and return the exit status for it."""
    print(f"recut: {text}", file=sys.stderr)
    return REFUSED


def answer(data: Any) -> None:
    """Print an answer as one JSON document."""
    print(json.dumps(data, indent=1, allow_nan=False))


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal what takes long, while it does."""
    with Console(stderr=True).status(text):
        yield


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command answer in JSON."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document; bytes and seconds throughout",
    )


def positive(text: str) -> int:
    """Read a positive whole number, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
