"""The ``torch.compile`` backend: settings in, Inductor with recut's partitioner out."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import fx

from recut.errors import SettingError
from recut.partitioners.machine import MACHINES
from recut.passes import _torch
from recut.passes.fusion import inductor_patches, wrap_inner_compile
from recut.pipeline import partition_under
from recut.settings import Settings


@cache
def _sources_digest() -> str:
    """Return a hash over every source file of the package: any of them may change a plan."""
    root = Path(__file__).parent
    digest = hashlib.sha256(sys.version.encode())
    for folder in (root, root / "passes", root / "partitioners"):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Partitioner(_torch.CustomPartitionerFn):  # type: ignore[misc, name-defined, unused-ignore]
    """Inductor's partitioner hook, bound to the settings of one ``torch.compile`` call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Partition ``gm``; called by Inductor after its joint-graph passes."""
        return partition_under(
            self.settings,
            gm,
            num_fwd_outputs=kwargs["num_fwd_outputs"],
            static_lifetime_input_indices=kwargs.get("static_lifetime_input_indices"),
            compiler="inductor",
        )

    def uuid(self) -> object:
        """Return what the compile caches key a plan on: sources, settings and machine.

        Never ``None``: Inductor gives a partitioner without an id the key of no partitioner at
        all, and would serve a stale plan.
        """
        machines = tuple(MACHINES[name].key() for name in sorted(MACHINES))
        return ("recut", _sources_digest(), self.settings.key(), machines)


def ckpt_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Compile a graph with Inductor under a peak-memory budget: ``torch.compile(backend=...)``.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: its inputs.
        mode: an Inductor mode ("default", "max-autotune", ...).
        options: see :class:`recut.settings.Settings`.

    Raises:
        SettingError: an unknown option, or a value that cannot be read.
        InfeasibleBudget: no plan fits the budget.
    """
    import torch._inductor
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    settings = Settings.read(options)
    patches: dict[str, Any] = {}
    if mode is not None and mode != "default":
        modes = torch._inductor.list_mode_options()
        if mode not in modes:
            raise SettingError(
                "mode", mode, "unknown mode", f"use one of {', '.join(sorted(modes))}"
            )
        patches.update(modes[mode])
    patches.update(settings.inductor)
    patches.update(inductor_patches())
    patches["custom_partitioner_fn"] = Partitioner(settings)
    compiled: Any = compile_fx(
        gm,
        list(example_inputs),
        inner_compile=wrap_inner_compile(compile_fx_inner),
        config_patches=patches,
    )
    return compiled  # type: ignore[no-any-return]
