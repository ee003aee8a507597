"""What comes in is checked: types and numbers at once, values together at the end.

Every ``if (x < 0).any()`` on a GPU waits for all work queued before it. So what is wrong with the values is noted as
flags that stay on the device, and read in one transfer with the solver's own health.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


class DeferredChecks:
    """Flags raised by the values of the input; :meth:`settle` reads them and raises for the user."""

    def __init__(self) -> None:
        self._bad: list[Tensor] = []
        self._explain: list[Callable[[], str]] = []

    def refuse_if(self, bad: Tensor, explain: Callable[[], str]) -> None:
        """Note a 0-dim bool ``bad``; ``explain`` is called only where it turns out true."""
        self._bad.append(bad)
        self._explain.append(explain)

    def refuse_negative(self, name: str, x: Tensor, *, what: str, note: str = "", tolerance: float = 0.0) -> Tensor:
        """Note values that are NaN, infinite or below 0, by one sweep; returns the largest (0-dim).

        Values below 0 by up to the share ``tolerance`` of the largest count as rounding.
        """
        smallest, largest = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))

        def explain() -> str:
            if count := int((~x.isfinite()).sum()):
                return f"{name} holds {count} NaN or infinite values; needed finite numbers"
            return f"{name} has a minimum of {float(smallest):.3g}; needed {what} of at least 0{note}"

        # NaN passes no comparison.
        fine = (smallest >= -tolerance * largest) & (largest < math.inf)
        self.refuse_if(~fine, explain)
        return largest

    def settle(self, healthy: Tensor) -> list[bool]:
        """Read all flags and ``healthy`` (any shape, bool) in one transfer; return ``healthy`` as a flat list, or raise
        ValueError where a noted condition holds."""
        flags = torch.cat([torch.stack(self._bad), healthy.flatten()]) if self._bad else healthy.flatten()
        values = flags.tolist()
        complaints = [explain() for bad, explain in zip(values, self._explain, strict=False) if bad]
        if complaints:
            raise ValueError("; ".join(complaints))
        return values[len(self._bad) :]


def check_tensor(name: str, x: object, *, what: str = "floating point") -> Tensor:
    """``x`` where it is a dense tensor with values, outside torch.func's transforms, of the kind ``what``, ``floating
    point`` or ``bool``; else a ValueError that calls it ``name``."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: got {type(x).__name__}, needed a {what} torch.Tensor (torch.as_tensor converts)")
    is_dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
    if is_dual or torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise ValueError(
            f"{name} comes from torch.func (grad, vmap, jvp) or forward-mode differentiation, which cannot go "
            "through the solver; torch.autograd.grad can, and a loop over problems, or a batch of them"
        )
    if x.layout != torch.strided:
        raise ValueError(f"{name}: got a tensor of layout {x.layout}, needed a dense one; x.to_dense() makes it one")
    if x.device.type == "meta":
        raise ValueError(f"{name} is on the meta device, so it has no values; needed a tensor on a CPU or GPU")
    fine = x.dtype == torch.bool if what == "bool" else x.is_floating_point() and x.dtype.itemsize > 1
    if not fine:
        advice = "; x.float() makes it that" if what == "floating point" else ""
        raise ValueError(f"{name}: got {x.dtype}, needed {what}{advice}")
    return x


def as_number(name: str, value: object) -> float:
    """``value`` where it is one real number, a tensor's or numpy's included; else a ValueError."""
    if isinstance(value, Tensor):
        value = value.detach()
    try:
        # float() would read text, and warn of what a tensor's gradient loses.
        if not isinstance(value, (str, bytes, bool)):
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(f"{name}={value!r}: needed a number")


def check_weights(alpha: float, epsilon: float) -> None:
    """Raise ValueError unless the objective's weights make sense."""
    if not 0 <= as_number("alpha", alpha) <= 1:
        raise ValueError(f"alpha={alpha!r}: needed a structure weight between 0 and 1")
    require_positive(epsilon=epsilon)


def check_budget(n_outer: int, n_sinkhorn: int, tol: float | None = None) -> None:
    """Raise ValueError unless the numbers of iterations and the tolerance make sense."""
    for name, value in (("n_outer", n_outer), ("n_sinkhorn", n_sinkhorn)):
        number = as_number(name, value)
        if not number >= 1 or not number.is_integer():
            raise ValueError(f"{name}={value!r}: needed a whole number of iterations, at least 1")
    if tol is not None:
        require_positive(tol=tol)


def require_positive(**values: float) -> None:
    """Raise ValueError for the first of ``values`` that is not a finite number above 0."""
    for name, value in values.items():
        number = as_number(name, value)
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name}={value!r}: needed a finite number above 0")
