"""Conditions on tensor values, read from the device together.

Every ``if (x < 0).any()`` on a GPU waits for all work queued before it. So what is wrong with the values is noted as
flags that stay on the device, and read in one transfer with the solver's own health.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class DoorChecks:
    """Flags raised by the values of the input; :meth:`settle` reads them and raises for the user."""

    def __init__(self) -> None:
        self._bad: list[Tensor] = []
        self._explain: list[Callable[[], str]] = []

    def refuse_if(self, bad: Tensor, explain: Callable[[], str]) -> None:
        """Note a 0-dim bool ``bad``; ``explain`` is called only where it turns out true."""
        self._bad.append(bad)
        self._explain.append(explain)

    def refuse_non_finite(self, x: Tensor, name: str) -> None:
        def explain() -> str:
            return f"{name} holds {int((~x.isfinite()).sum())} NaN or infinite values; needed finite numbers"

        self.refuse_if(~x.isfinite().all(), explain)

    def settle(self, healthy: Tensor) -> list[bool]:
        """Read all flags and ``healthy`` (any shape, bool) in one transfer; returns ``healthy`` as a flat list.

        Raises:
            ValueError: a noted condition holds.
        """
        flags = torch.cat([torch.stack(self._bad), healthy.flatten()]) if self._bad else healthy.flatten()
        values = flags.tolist()
        complaints = [explain() for bad, explain in zip(values, self._explain, strict=False) if bad]
        if complaints:
            raise ValueError("; ".join(complaints))
        return values[len(self._bad) :]


def check_weights(alpha: float, rho: float, epsilon: float, n_outer: int, n_sinkhorn: int) -> None:
    """Raise ValueError unless the objective's weights and the solver's budget make sense."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}: needed a structure weight between 0 and 1")
    require_positive(rho=rho, epsilon=epsilon)
    for name, value in (("n_outer", n_outer), ("n_sinkhorn", n_sinkhorn)):
        if int(value) != value or value < 1:
            raise ValueError(f"{name}={value!r}: needed a whole number of iterations, at least 1")


def require_positive(**values: float) -> None:
    """Raise ValueError for the first of ``values`` that is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r}: needed a finite number above 0")
