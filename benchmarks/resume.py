"""Work that can be interrupted: rows kept in a JSON file as they come, and a clock to stop by."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recut.files import write_atomic

_MARGIN = 1.2  # what a row may take of the longest one before it
_LAST = 10.0  # seconds kept for the report and for leaving


class ForeignRecordError(Exception):
    """A record was made under another setting, so its rows do not belong beside new ones."""


class Clock:
    """The time that one command has.

    Args:
        minutes: how long it may run.
        now: the clock, seconds.
    """

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + 60.0 * minutes

    def allows(self, expected: float) -> bool:
        """Whether something that probably takes ``expected`` seconds may begin."""
        return self._now() + _MARGIN * expected + _LAST <= self._end


class Record:
    """The rows of one part, each written before the next one begins.

    Args:
        path: the JSON file; read if it exists.
        setting: what all rows have in common (device, versions, sizes).
        measured: what else a reader wants to know; the first run's is kept.

    Raises:
        ForeignRecordError: the file is of another setting.
    """

    def __init__(
        self, path: Path, setting: Mapping[str, Any], measured: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        # As JSON gives it back: a tuple is a list there.
        setting = json.loads(json.dumps(setting))
        self.document: dict[str, Any] = {
            "setting": setting,
            "measured": dict(measured or {}),
            "complete": False,
            "rows": [],
        }
        if path.exists():
            self.document = json.loads(path.read_text(encoding="utf-8"))
            found = self.document["setting"]
            if found != setting:
                odd = sorted(k for k in found.keys() | setting if found.get(k) != setting.get(k))
                raise ForeignRecordError(
                    f"{path} was measured with another {', '.join(odd)}: give another --output, "
                    "or remove it to measure again"
                )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, oldest first."""
        rows: list[dict[str, Any]] = self.document["rows"]
        return rows

    @property
    def longest(self) -> float | None:
        """Seconds that the longest row took; None before the first."""
        return max((row["spent"] for row in self.rows), default=None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row; it says in ``spent`` how many seconds it took."""
        self.rows.append(json.loads(json.dumps(row)))
        self._write()

    def finish(self) -> None:
        """Say that nothing is missing."""
        self.document["complete"] = True
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.document, indent=1) + "\n")
