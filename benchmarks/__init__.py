"""Measurements of recut against stock Inductor, per-block checkpointing and torch's own budget."""

import os

# The profiler prints two lines per measured peak otherwise; read when torch is first imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
