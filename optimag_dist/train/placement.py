"""Whether a cluster can hold the workers that are asked for: on its nodes, or on those its autoscaler may add."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from optimag_dist.ray_private import HEAD
from optimag_dist.types import InputError
from optimag_dist.yaml_files import read_yaml

Bundle = Mapping[str, float]
_ANSWER_S = 60
# Groups of workers that are asked for beyond the room there is: each one that waits is a few idle processes.
_HOPED_FOR = 16


@dataclass(frozen=True)
class Cluster:
    """Resources of a cluster's nodes.

    Attributes:
        nodes: those that are there.
        addable: those that its autoscaler may add: node type → (resources of one, how many at most).
        boundless: its autoscaler may add what nobody here knows (KubeRay's keeps its node types to itself).
    """

    nodes: Sequence[Bundle]
    addable: Mapping[str, tuple[Bundle, int]] = field(default_factory=dict)
    boundless: bool = False

    @classmethod
    def current(cls) -> "Cluster":
        """Of the session this process is connected to. Ray has no call for what an autoscaler may add; its head knows
        by the command line of the autoscaler's process."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        look = ray.remote(_autoscaler).options(num_cpus=0, resources={HEAD: 0.001})
        try:
            found = ray.get(look.remote(ray.get_runtime_context().gcs_address), timeout=_ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError):
            found = None
        if found is None:
            return cls(nodes, boundless=True)
        types = {name: (kind["resources"], kind.get("max_workers", 0)) for name, kind in found.items()}
        return cls(nodes, types)

    def fits(self, bundle: Bundle, count: int) -> int:
        """How many of ``count`` bundles find a place, each whole on one node."""
        places = sum(_times(node, bundle) for node in self.nodes)
        places += sum(number * _times(resources, bundle) for resources, number in self.addable.values())
        return count if self.boundless else min(places, count)

    def groups(self, bundle: Bundle, size: int, count: int) -> int:
        """How many of ``count`` groups of ``size`` bundles should be placed at a time: one at least, which may wait for
        others' work to end; where nobody knows what may be added, a few more than there is room for now."""
        known = replace(self, boundless=False).fits(bundle, size * count) // size
        return max(1, min(count, known + _HOPED_FOR) if self.boundless else known)

    def __str__(self) -> str:
        there = ", ".join(f"{n} × {text}" for text, n in Counter(map(_text, self.nodes)).items())
        types = self.addable.items()
        more = [f"up to {number} × {name} {_text(resources)}" for name, (resources, number) in types if number]
        more += ["any"] if self.boundless else []
        return f"nodes: {there or 'none'}" + (f"; its autoscaler may add {', '.join(more)}" if more else "")


def use_gpus(workers: int, cpus: int, device: str) -> bool:
    """Whether workers get GPUs, given ``workers.device``; ``InputError`` where they can never be placed, for Ray would
    wait for them for ever."""
    here = Cluster([node["Resources"] for node in ray.nodes() if node["Alive"]])
    with_gpu, without = {"CPU": cpus, "GPU": 1}, {"CPU": cpus}
    # The autoscaler is asked only where the nodes that are there do not settle it.
    if device != "cpu" and here.fits(with_gpu, workers) == workers:
        return True
    if device == "cpu" and here.fits(without, workers) == workers:
        return False
    cluster = Cluster.current()
    if device == "auto" and replace(cluster, boundless=False).fits(with_gpu, workers) == workers:
        return True
    bundle = with_gpu if device == "cuda" else without
    placed = cluster.fits(bundle, workers)
    if placed < workers:
        raise InputError(
            f"workers.count={workers} with workers.cpus={cpus} and workers.device={device} needs {workers} × "
            f"{_text(bundle)}, each whole on one node, and the Ray cluster can hold {placed} of them ({cluster}); "
            f"{'use workers.device=cpu, ' if device == 'cuda' else ''}lower workers.count or workers.cpus, or add "
            f"nodes"
        )
    return device == "cuda"


def _times(node: Bundle, bundle: Bundle) -> int:
    return min(int(node.get(name, 0) // amount) for name, amount in bundle.items())


def _text(resources: Bundle) -> str:
    known = {name: resources[name] for name in ("CPU", "GPU") if resources.get(name)}
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in known.items()) + "}"


def _autoscaler(gcs_address: str) -> dict[str, Any] | None:
    """Node types of the autoscaler that runs on this head node; empty where none adds nodes, None where that is not
    known."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        monitor = any(argument.endswith("monitor.py") for argument in arguments)
        if monitor and named.get("--gcs-address") == gcs_address:
            config = named.get("--autoscaling-config")
            if not config:
                return {}
            try:
                types = read_yaml(Path(config).expanduser(), "an autoscaler's configuration")["available_node_types"]
            except (InputError, OSError):
                return None
            return types if all(kind.get("resources") for kind in types.values()) else None
    # Started without one (--no-monitor): the autoscaler is a container of its own, or there is none.
    return None
