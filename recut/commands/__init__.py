"""The commands of ``recut``: each file has one, with ``add(commands)`` to enter it."""

from __future__ import annotations
