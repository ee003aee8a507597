"""What this machine offers and what is wrong with it, each with its remedy.

Every check is a small function that yields findings; one that fails is itself reported, so that the list is always
complete. The checks import the heavy packages on purpose: only an import shows that a package works here.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from rich.table import Table
from rich.text import Text
from torch import distributed

from optimag_dist import sparse
from optimag_dist.messages import without_secrets
from optimag_dist.types import InputError

Status = Literal["ok", "warn", "bad"]
GIB = 1024**3
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "bad": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: ``bad`` prevents work, ``warn`` slows it down or limits it."""

    name: str
    value: str
    status: Status = "ok"
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def _checked(name: str, value: str, works: bool, remedy: str, otherwise: Status = "warn") -> Finding:
    return Finding(name, value) if works else Finding(name, value, otherwise, remedy)


def diagnose() -> list[Finding]:
    """Look at everything the project depends on; takes a few seconds and changes nothing."""
    findings: list[Finding] = []
    for name, check in _CHECKS.items():
        try:
            findings.extend(check())
        except Exception as error:
            what = f"the check itself failed: {type(error).__name__}: {error}"
            remedy = f"see whether {name} works here; reinstall with make clean setup"
            findings.append(Finding(name, what, "bad", remedy))
    return findings


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is bad."""
    return all(finding.status != "bad" for finding in findings)


def as_table(findings: Sequence[Finding]) -> Table:
    """The findings as a table for a rich console."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(mark, Text(finding.name), Text(finding.value), Text(finding.remedy))
    return table


# -- software ----------------------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    fits = (3, 10) <= sys.version_info < (3, 14)
    remedy = "use Python 3.10 to 3.13, for which the pinned versions are known to work"
    yield _checked("python", platform.python_version(), fits, remedy, "bad")


def _packages() -> Iterator[Finding]:
    for name in ("optimag_dist", "torch", "numpy", "pyarrow", "numba", "ray"):
        yield _imported(name, "bad", f"it does not import; reinstall: make clean setup ({name} in .ci/constraints.txt)")
    problem = sparse.torch_sparse_problem()
    yield Finding("torch-sparse", f"not in use: {problem}" if problem else importlib.metadata.version("torch-sparse"))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    yield Finding("sparse products", ", ".join(f"{sparse.default_backend(device)} on {device}" for device in devices))


def _imported(name: str, status: Status, remedy: str) -> Finding:
    try:
        return Finding(name, str(importlib.import_module(name).__version__))
    except Exception as error:  # a broken binary raises whatever it likes
        return Finding(name, f"{type(error).__name__}: {error}", status, remedy)


def _dgl() -> Iterator[Finding]:
    use = "only sampling.sampler=dgl and graphs saved by DGL need it"
    if sys.version_info >= (3, 12) and importlib.util.find_spec("dgl") is None:
        yield Finding("dgl", f"none: it has no wheel beyond Python 3.11; {use}")
        return
    finding = _imported("dgl", "warn", f"{use}; reinstall: make clean setup (dgl 1.1.3 and packaging)")
    yield finding
    if finding.status != "ok":
        return
    dgl: Any = importlib.import_module("dgl")
    # A path 0 → 1 → 2 as in-CSR: the only in-neighbour of 2 is 1.
    indptr, indices = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1])
    graph = dgl.graph(("csc", (indptr, indices, torch.tensor([], dtype=torch.int64))), num_nodes=3)
    found = dgl.sampling.sample_neighbors(graph, torch.tensor([2]), 5).edges()[0].tolist()
    remedy = "the installed DGL samples wrongly; reinstall: make clean setup"
    works = found == [1]
    yield _checked("DGL sampling", "works" if works else f"gave {found} for [1]", works, remedy, "bad")


def _collectives() -> Iterator[Finding]:
    gloo = distributed.is_available() and distributed.is_gloo_available()
    remedy = "this torch cannot train on several CPU workers; install a build with gloo"
    yield _checked("gloo", "available" if gloo else "missing", gloo, remedy, "bad")
    if torch.cuda.is_available():
        nccl = distributed.is_nccl_available()
        remedy = "several GPU workers need it; install a CUDA build of torch"
        yield _checked("NCCL", "available" if nccl else "missing", nccl, remedy)
    host = socket.gethostname()
    try:
        yield Finding("host name", f"{host} is {socket.gethostbyname(host)}")
    except OSError as error:
        remedy = f"workers find each other by it: add '127.0.1.1 {host}' to /etc/hosts"
        yield Finding("host name", f"{host}: {error}", "warn", remedy)


# -- hardware ----------------------------------------------------------------------------------------------------------


def _devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
        remedy = "make clean setup on this machine takes torch's CUDA build; if it has, the driver is too old for it"
        yield Finding("GPU", f"a driver is here, but torch ({build}) sees no device", "warn", remedy)
    else:
        yield Finding("GPU", "none; training runs on the CPU")


def _cores() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    value = f"{usable} of {os.cpu_count()}" + (f", limited to {quota:g} by the container" if quota else "")
    yield _checked("CPU cores", value, min(usable, quota or usable) >= 2, "two workers will take turns on one core")


def _memory() -> Iterator[Finding]:
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    limited = ""
    for limit, used in _memory_limits():
        if limit < total:
            total, limited = limit, " (the container's limit)"
        available = min(available, limit - used)
    remedy = "a run with two workers and Ray takes about 2 GiB: close something or raise the limit"
    value = f"{total / GIB:.1f} GiB{limited}, {available / GIB:.1f} GiB available"
    yield _checked("memory", value, available >= 2 * GIB, remedy)


def _shared_memory() -> Iterator[Finding]:
    path = Path("/dev/shm")
    if not path.is_dir():
        yield Finding("/dev/shm", "missing", "warn", "Ray's object store falls back to slow files in /tmp")
        return
    usage = shutil.disk_usage(path)
    remedy = "Ray's object store lives there: start the container with --shm-size=2g"
    value = f"{usage.total / GIB:.1f} GiB, {usage.free / GIB:.1f} GiB free"
    yield _checked("/dev/shm", value, usage.free >= GIB, remedy)


def _disks() -> Iterator[Finding]:
    for name, path in (("disk, here", Path.cwd()), ("disk, temporary files", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(path)
        # Ray stops creating objects on a disk that is 95 % full.
        fits = usage.used / usage.total <= 0.95 and usage.free >= GIB
        remedy = f"make room on the disk of {path}: Ray refuses to work on one that is 95 % full"
        yield _checked(name, f"{usage.free / GIB:.1f} GiB free at {path}", fits, remedy)


# -- permissions and limits --------------------------------------------------------------------------------------------


def _home() -> Iterator[Finding]:
    try:
        home = Path.home()
        with tempfile.TemporaryFile(dir=home):
            yield Finding("home folder", f"{home} is writable")
    except (OSError, RuntimeError) as error:
        remedy = "tokens, compiled code and copies are kept there: set HOME to a folder you may write to"
        yield Finding("home folder", str(error), "warn", remedy)


def _session_folder() -> Iterator[Finding]:
    # Where Ray does not import, the other findings are wanted all the more.
    from optimag_dist.ray_session import session_folder

    try:
        yield Finding("Ray's session folder", f"{session_folder().parent} serves")
    except InputError as error:
        yield Finding("Ray's session folder", str(error), "bad", "see there")


def _address() -> Iterator[Finding]:
    if address := os.environ.get("RAY_ADDRESS"):
        remedy = "commands join that cluster instead of working on this machine; unset RAY_ADDRESS if that is not meant"
        yield Finding("RAY_ADDRESS", without_secrets(address), remedy=remedy)


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= 4096  # Ray raises the soft limit to the hard one by itself
    show = {resource.RLIM_INFINITY: "unlimited"}
    remedy = "Ray's processes may run out of them: ulimit -n 65536, or LimitNOFILE of the service"
    yield _checked("open files", f"{show.get(soft, soft)}, at most {show.get(hard, hard)}", enough, remedy)


# -- control groups ----------------------------------------------------------------------------------------------------


def _groups(v1_controller: str) -> Iterator[Path]:
    """This process's control group folders, from its own up to the root: a limit may sit on any of them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "" or v1_controller in controllers.split(","):
            root = Path("/sys/fs/cgroup", v1_controller if controllers else "")
            relative = Path(own.lstrip("/"))
            yield from dict.fromkeys([root / relative, *(root / parent for parent in relative.parents), root])


def _numbers(path: Path) -> list[float]:
    """The numbers in a control file; none where it is absent or says "max"."""
    try:
        return [float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _cpu_quota() -> float | None:
    quotas = []
    for group in _groups("cpu"):
        limits = _numbers(group / "cpu.max")
        limits = limits or _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(limits) == 2 and limits[0] > 0:
            quotas.append(limits[0] / limits[1])
    return min(quotas, default=None)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) bytes of every group that has a limit; file cache that can be dropped does not count as used."""
    for group in _groups("memory"):
        for names in _MEMORY_FILES:
            limit, used = (_numbers(group / name) for name in names)
            if limit and used:
                droppable = 0
                with suppress(OSError, ValueError):
                    fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    droppable = int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
                yield int(limit[0]), int(used[0]) - droppable


_SOFTWARE: tuple[Check, ...] = (_python, _packages, _dgl, _collectives)
_MACHINE: tuple[Check, ...] = (_devices, _cores, _memory, _shared_memory, _disks)
_LIMITS: tuple[Check, ...] = (_home, _session_folder, _address, _open_files)
_CHECKS = {each.__name__[1:].replace("_", " "): each for each in (*_SOFTWARE, *_MACHINE, *_LIMITS)}
