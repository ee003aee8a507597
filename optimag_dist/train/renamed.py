"""Keys of a run's configuration that have moved: a user is told where to, what earlier versions wrote is converted."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from optimag_dist.options import merge
from optimag_dist.ufgw import LocalOptions, UFGWOptions

# Old key → where it is now.
RENAMED = {
    "train.lr": "optim.lr",
    "train.weight_decay": "optim.weight_decay",
    "train.workers": "workers.count",
    "train.cpus_per_worker": "workers.cpus",
    "train.device": "workers.device",
    "train.placement": "workers.placement",
    "train.owners": "workers.shard_servers",
    "train.max_failures": "workers.max_failures",
    "train.start_timeout_s": "workers.start_timeout_s",
    "train.stall_timeout_s": "workers.stall_timeout_s",
    "train.checkpoint_every": "checkpoint.every",
    "train.checkpoint_every_s": "checkpoint.every_s",
    "sampling.anchors": "sampling.targets",
    "regulariser.plan": "regulariser.kind",
    "regulariser.prior": "regulariser.anchor",
}
# The one kind that there was, whose ``plan`` was one of these.
_OLD_KIND = "ufgw"
_PLANS = {"local": LocalOptions, "transport": UFGWOptions}
_KINDS = {"local": "local", "transport": "ufgw"}
# What a configuration of that kind held besides its own plan's options.
_OLD_DEFAULTS = {
    **{"weight": 50.0, "alpha": 0.6, "rho": 0.5, "delta": 1e-5, "agreement": 0.6, "consistency": 0.0},
    **{"differentiate": False, "tau": 0.5, "epsilon": 0.01, "anchor": "ppr", "n_outer": 5, "n_sinkhorn": 20},
}


def refuse_renamed(data: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a key of ``data``, or of any section or variant in it, has moved; all are named."""
    found = dict.fromkeys(_moved(data, ""))
    if found:
        raise ValueError("; ".join(found))


def _moved(data: Mapping[str, Any], before: str) -> Iterator[str]:
    for key, value in data.items():
        dotted = f"{before}{key}"
        for old, new in RENAMED.items():
            if dotted == old or dotted.endswith(f".{old}"):
                yield f"key {dotted!r} is now {dotted.removesuffix(old) + new!r}"
        if isinstance(value, Mapping):
            yield from _moved(value, f"{dotted}.")


def converted(data: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote, with all keys of every section, as it is written now."""
    found = _converted(data, data)
    if isinstance(variants := data.get("variants"), Mapping):
        changes = {name: merge({}, each) for name, each in variants.items() if isinstance(each, Mapping)}
        found["variants"] = {**variants, **{name: _converted(each, data) for name, each in changes.items()}}
    return found


def _converted(data: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Sections, or changes to those of ``base``."""
    found = dict(data)
    if isinstance(train := data.get("train"), Mapping):
        left = dict(train)
        moved = {new: left.pop(key) for old, new in RENAMED.items() if (key := old.removeprefix("train.")) in left}
        # An override says already where a key is now.
        found = merge(merge({}, moved), {**data, "train": left})
    if isinstance(sampling := data.get("sampling"), Mapping):
        found["sampling"] = {"targets" if key == "anchors" else key: value for key, value in sampling.items()}
    if isinstance(changes := data.get("regulariser"), Mapping):
        # Beside another kind than that of the base, the keys that both have were kept.
        regulariser = merge({"": base["regulariser"]}, {"": changes})[""]
        if regulariser.get("kind", _OLD_KIND) == _OLD_KIND:
            plan = str(regulariser.get("plan", "local"))
            renamed = {**regulariser, "anchor": regulariser.get("prior", "ppr")}
            known = {each.name for each in fields(_PLANS[plan])} if plan in _PLANS else set()
            kept = {name: value for name, value in renamed.items() if name in known}
            regulariser = {"kind": _KINDS.get(plan, plan), **kept}
        found["regulariser"] = regulariser
    return found


def in_old_layout(data: Mapping[str, Any]) -> dict[str, Any]:
    """Converted back, of ``sampling``, ``regulariser`` and ``train`` what decides the weights: files name a fit by
    it."""
    sampling = {"anchors" if key == "targets" else key: value for key, value in data["sampling"].items()}
    regulariser, train = dict(data["regulariser"]), {**data["optim"], "eval_every": data["train"]["eval_every"]}
    plans = {kind: plan for plan, kind in _KINDS.items()}
    if regulariser.get("weight") is not None:
        # Of a share nothing is left where the weight is given.
        regulariser = {key: value for key, value in regulariser.items() if key not in ("share", "warm_up")}
        if plan := plans.get(regulariser["kind"]):
            regulariser = {**_OLD_DEFAULTS, **regulariser, "plan": plan}
            regulariser["prior"] = regulariser.pop("anchor")
            del regulariser["kind"]
    kept = {name: section for name, section in data.items() if name != "optim"}
    return {**kept, "sampling": sampling, "regulariser": regulariser, "train": train}
