"""Bytes and seconds as short text for people; three digits, and a unit that fits."""

from __future__ import annotations


def size(count: float) -> str:
    """Return bytes as text: ``512 B``, ``3.00 MiB``."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if abs(count) < 1000 or unit == "GiB":
            break
    return f"{_three(count)} {unit}"


def duration(seconds: float) -> str:
    """Return a time as text: ``12.5 us``, ``1.20 ms``, ``0 us``."""
    if not seconds:
        return "0 us"
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if abs(seconds) * factor < 1000:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds)} s"


def _three(number: float) -> str:
    """Return a number with about three digits."""
    return f"{number:.{2 if abs(number) < 10 else 1 if abs(number) < 100 else 0}f}"


__all__ = ["duration", "size"]
