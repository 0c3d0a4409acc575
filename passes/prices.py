"""What an operation costs: as the user declares it, as it was measured, or by the roofline.

An op that none of the three prices is never assumed free: it may not be recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import CodeType
from typing import Any

from torch import fx

from recut.partitioners.machine import Machine
from recut.passes import costs
from recut.passes.measured import is_measurable, signature


class Basis(StrEnum):
    """Where the price of an op is from."""

    DECLARED = "declared"
    MEASURED = "measured"
    MODELLED = "modelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Declared:
    """A user's price: one of ``seconds`` and ``flops``, a number or a function of a call."""

    seconds: float | Callable[..., float] | None
    flops: float | Callable[..., float] | None


_declared: dict[Any, _Declared] = {}


def register_cost(
    op: Any,
    *,
    seconds: float | Callable[..., float] | None = None,
    flops: float | Callable[..., float] | None = None,
) -> None:
    """Declare what calls of an op cost, so that they may be recomputed.

    Meant for ops from ``torch.library`` that no formula knows; an op that recut prices itself is
    priced as declared from then on. Declare before the model is compiled. Whether an op may run
    twice at all is not asked of its price: one that mutates its inputs, or whose shapes depend on
    data, is saved as before.

    Args:
        op: ``torch.ops.library.name``, or an overload of it.
        seconds: seconds of one call, or a function that returns them.
        flops: FLOPs of one call, or a function that returns them; 0 for an op that is bound by the
            bytes it reads and writes, which are counted in any case.

    A function is called with the arguments of the call, tensors without data in the place of its
    tensors, and with its result as ``out_val``, as ``torch.utils.flop_counter`` does it. Two
    processes that share a compile cache have to declare the same: its code is part of the cache's
    key, what it reads elsewhere is not.

    Raises:
        TypeError: ``op`` is no op, or not exactly one of the prices is given.
    """
    packet = getattr(op, "overloadpacket", op)
    if not isinstance(getattr(packet, "_qualified_op_name", None), str):
        raise TypeError(f"register_cost takes an op such as torch.ops.mylib.myop, not {op!r}")
    if (seconds is None) == (flops is None):
        raise TypeError(f"register_cost({packet}) takes either seconds= or flops=")
    _declared[packet] = _Declared(seconds, flops)


def declared_key() -> str:
    """Return a text of everything declared, for the keys of compile caches."""
    return repr(
        sorted(
            (str(op), _text(price.seconds), _text(price.flops)) for op, price in _declared.items()
        )
    )


def _text(price: float | Callable[..., float] | None) -> str:
    code = getattr(price, "__code__", None)
    if code is None:
        return repr(price) if isinstance(price, int | float | None) else _name(price)
    closure = [cell.cell_contents for cell in getattr(price, "__closure__", None) or ()]
    return repr((_name(price), list(_code(code)), getattr(price, "__defaults__", None), closure))


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _code(code: CodeType) -> Iterator[Any]:
    """Yield what a code object does, without the addresses and lines that its text shows."""
    yield code.co_code
    yield code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield constant


@dataclass(frozen=True)
class Prices:
    """What ops cost on one device.

    Attributes:
        machine: the roofline.
        measured: seconds by ``measured.signature``.
        inductor: Inductor compiles the graph: pointwise ops and reductions run inside its kernels,
            and only what is a call of its own has a measured price.
    """

    machine: Machine
    measured: Mapping[str, float] = field(default_factory=dict)
    inductor: bool = True

    def basis_of(self, node: fx.Node, channels_last: bool = False) -> Basis:
        """Return where a node's price is from."""
        if costs.packet(node) in _declared:
            return Basis.DECLARED
        if self._measured(node, channels_last) is not None:
            return Basis.MEASURED
        return Basis.MODELLED if costs.is_priced(node) else Basis.UNKNOWN

    def seconds_of(self, node: fx.Node, channels_last: bool = False) -> float:
        """Return what running a node once more costs, in seconds.

        Args:
            node: the node.
            channels_last: its images are laid out channels-last.
        """
        declared = _declared.get(costs.packet(node))
        if declared is not None:
            return self._declared_seconds(node, declared)
        measured = self._measured(node, channels_last)
        return costs.seconds_of(node, self.machine) if measured is None else measured

    def arithmetic_of(self, node: fx.Node) -> float:
        """Return how much of a node's seconds is computing, in seconds; see ``Op.arithmetic``."""
        return costs.arithmetic_of(node, self.machine)

    def access_of(self, node: fx.Node, size: int) -> tuple[float, float]:
        """Return what a node's results of some bytes take a kernel to write and to read, seconds.

        Run op by op, they are written in any case, and reading them is part of an op's price.
        """
        return costs.access_of(node, size, self.machine) if self.inductor else (0.0, 0.0)

    def _measured(self, node: fx.Node, channels_last: bool) -> float | None:
        if not self.measured or not is_measurable(node, self.inductor):
            return None
        return self.measured.get(signature(node, channels_last))

    def _declared_seconds(self, node: fx.Node, declared: _Declared) -> float:
        price = declared.seconds if declared.flops is None else declared.flops
        if callable(price):
            args, kwargs = costs.concrete_arguments(node)
            price = price(*args, **kwargs, out_val=costs.concrete(node.meta.get("val")))
        if not isinstance(price, int | float) or not 0 <= price < float("inf"):
            raise TypeError(
                f"the cost registered for {costs.packet(node)} is {price!r}; "
                "register_cost takes a number of seconds or FLOPs, or a function that returns one"
            )
        if declared.flops is None:
            return float(price)
        dtype = costs.dtype_name(costs.tensors(node.meta.get("val")))
        compute = price / self.machine.peak_flops(dtype)
        return self.machine.launch + max(compute, costs.moved_bytes(node) / self.machine.bandwidth)


__all__ = ["Basis", "Prices", "declared_key", "register_cost"]
