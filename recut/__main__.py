"""``python -m recut`` is the ``recut`` command."""

from __future__ import annotations

import sys

from recut.cli import main

if __name__ == "__main__":
    sys.exit(main())
