"""How long a step takes: kernels by their traffic, everything else by its own price.

Ops that Inductor fuses are priced together: a kernel costs a launch, the bytes that it reads and
writes, each buffer once, however many ops it is made of, and what their functions take to compute.
What stays inside it, or is evaluated anew in it, is free otherwise. So a plan that saves more pays
for writing and reading what it saves, which a sum over ops would not show.
"""

from __future__ import annotations

import numpy as np

from recut.partitioners.kernels import Kernels, kernels
from recut.partitioners.machine import Machine
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule
from recut.partitioners.trace import Trace


def step_seconds(problem: Problem, schedule: Schedule, machine: Machine) -> float:
    """Return the time that a schedule's forward and backward are expected to take, in seconds."""
    trace = Trace(problem, schedule)
    made = kernels(trace) if problem.compiler == "inductor" else None
    return trace_seconds(trace, made, machine)


def trace_seconds(trace: Trace, found: Kernels | None, machine: Machine) -> float:
    """Return the same of a schedule's trace and its kernels, None without Inductor."""
    tables, order = trace.tables, trace.order
    if found is None:
        return float(tables.seconds[order].sum())
    fuses = tables.fuses[order]
    alone = float(tables.seconds[order[~fuses]].sum() + tables.arithmetic[order[fuses]].sum())
    exists = ~found.nothing
    store, load = (np.where(exists, x[trace.value], 0.0) for x in (tables.store, tables.load))
    runs = found.inlined.runs(trace) & fuses
    made = trace.start >= 0
    made[made] = fuses[trace.start[made]]
    written = float(store[made].sum())
    moment, source = found.inlined.reads(trace)
    moment, source = moment[fuses[moment]], source[fuses[moment]]
    place = found.place[moment]
    inner = made[source]  # made in the kernel that reads it: it is read where it is made
    inner[inner] = found.place[trace.start[source[inner]]] == place[inner]
    pairs = np.unique(place[~inner] * len(trace.start) + source[~inner])
    read = float(load[pairs % max(len(trace.start), 1)].sum())
    launches = len(np.unique(found.place[runs]))
    return alone + launches * machine.launch + written + read
