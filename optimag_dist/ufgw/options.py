"""Options of the regulariser: what each means, its default and its bounds, said once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from optimag_dist.ufgw.costs import AnchorCostKind
from optimag_dist.ufgw.validation import as_number

# A field's metadata is its bounds, in pydantic's words.
_POSITIVE = {"gt": 0, "allow_inf_nan": False}
_NOT_NEGATIVE = {"ge": 0, "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """What all kinds have.

    Attributes:
        weight: λ, factor of the whole term; 0 trains without it.
        alpha: weight of structure, 0 to 1; of ``ufgw`` against the anchor cost.
        rho: weight of the marginals; small lets conflicting nodes lose mass cheaply, infinity keeps all of it (of
            ``ufgw``: as far as the solver's budget takes it).
        delta: floor under PPR values in the graph cost.

    Raises:
        ValueError: an option is out of range.
    """

    weight: float = field(default=50.0, metadata=_NOT_NEGATIVE)
    alpha: float = field(default=0.6, metadata={"ge": 0, "le": 1})
    rho: float = field(default=0.5, metadata={"gt": 0})
    delta: float = field(default=1e-5, metadata=_POSITIVE)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            needed = _needed(each.type, each.metadata, each.name, value)
            if needed:
                raise ValueError(f"{each.name}={value!r}: needed {needed}")


@dataclass(frozen=True, kw_only=True)
class LocalOptions(AlignmentOptions):
    """Plans that leave mass where it is, and judge a node by its neighbourhood (:mod:`optimag_dist.ufgw.local`).

    Attributes:
        agreement: γ, how much disagreement with the other modalities counts against a node.
        consistency: σ, weight of the modalities' distances from each other in the loss.
        differentiate: the gradient also goes through what is kept, instead of holding it fixed.
    """

    agreement: float = field(default=0.6, metadata=_NOT_NEGATIVE)
    consistency: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    differentiate: bool = False


@dataclass(frozen=True, kw_only=True)
class UFGWOptions(AlignmentOptions):
    """The published problem, whose plans may also move mass to other nodes.

    Attributes:
        tau: width of the anchor cost.
        epsilon: entropy.
        anchor: ``ppr`` anchors nodes to their PPR neighbours, ``identity`` to themselves alone.
        n_outer, n_sinkhorn: linearisations, and Sinkhorn iterations in each.
    """

    tau: float = field(default=0.5, metadata=_POSITIVE)
    epsilon: float = field(default=0.01, metadata=_POSITIVE)
    anchor: AnchorCostKind = "ppr"
    n_outer: int = field(default=5, metadata={"ge": 1})
    n_sinkhorn: int = field(default=20, metadata={"ge": 1})


@dataclass(frozen=True, kw_only=True)
class RobustOptions(UFGWOptions):
    """Transport between what nodes have that are trusted by their own neighbourhood (:mod:`optimag_dist.ufgw.local`).

    Attributes:
        rho: of trust; small lets conflicting nodes lose mass cheaply.
        stiffness: weight of the marginals in transport, as a multiple of ``rho``.
        agreement: γ, how much disagreement with the other modalities counts against a node.
        epsilon: entropy; with less, plans between such masses are the identity.
    """

    rho: float = field(default=0.3, metadata={"gt": 0})
    stiffness: float = field(default=10.0, metadata={"gt": 0})
    agreement: float = field(default=0.6, metadata=_NOT_NEGATIVE)
    epsilon: float = field(default=0.03, metadata=_POSITIVE)


def _needed(kind: Any, bounds: Mapping[str, Any], name: str, value: object) -> str:
    """What an option's ``value`` had to be; empty where it is that."""
    if choices := get_args(kind):
        return "" if value in choices else f"one of {', '.join(map(repr, choices))}"
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    number = as_number(name, value)
    above, low, high = bounds.get("gt", -math.inf), bounds.get("ge", -math.inf), bounds.get("le", math.inf)
    finite = not bounds.get("allow_inf_nan", kind is float)
    if (
        number > above
        and low <= number <= high
        and (math.isfinite(number) or not finite)
        and (kind is float or number.is_integer())
    ):
        return ""
    what = "a whole number" if kind is int else "a finite number" if finite else "a number"
    limits = [f"above {above}"] * ("gt" in bounds) + [f"of at least {low}"] * ("ge" in bounds)
    return " and ".join([f"{what} {limits[0]}", *([f"at most {high}"] if "le" in bounds else [])])
