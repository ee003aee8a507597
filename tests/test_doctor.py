"""``optimag doctor``: every check reports, and what is reported follows from what the machine says."""

import importlib
import importlib.util
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from optimag_dist import doctor
from optimag_dist.doctor import GIB, Finding, as_table, diagnose, healthy


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_diagnosis_of_this_machine() -> None:
    findings = diagnose()
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings)
    assert {"python", "torch", "dgl", "ray", "torch-sparse", "memory", "/dev/shm", "CPU cores", "gloo"} <= set(named)
    if sys.version_info < (3, 12):
        assert named["DGL sampling"] == Finding("DGL sampling", "works")
    assert named["sparse products"].value.startswith("torch on cpu")
    for finding in findings:
        assert bool(finding.remedy) == (finding.status != "ok"), finding


def test_check_that_fails_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise OSError("no such counter")
        yield

    monkeypatch.setattr(doctor, "_CHECKS", {"cores": broken, "fine": lambda: iter([Finding("fine", "1")])})
    first, second = diagnose()
    assert first.status == "bad"
    assert "OSError: no such counter" in first.value
    assert second == Finding("fine", "1")
    assert not healthy([first, second])
    assert healthy([second, Finding("slow", "2", "warn", "wait")])


def test_table_shows_every_word() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(as_table([Finding("ray", "[bold]odd[/x]", "bad", "install ray[default]")]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("bad", "ray", "[bold]odd[/x]", "install ray[default]"):
        assert word in text


def test_broken_dgl_limits_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libdgl.so: undefined symbol")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", fail)
    finding = only(doctor._dgl())
    assert finding.status == "warn"
    assert "undefined symbol" in finding.value
    assert "make" in finding.remedy


def test_dgl_is_not_missed_where_it_has_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    finding = only(doctor._dgl())
    assert finding.status == "ok"
    assert "sampling.sampler=dgl" in finding.value


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"pod/job/cpu.max": "150000 100000"}, 1.5),
        ({"pod/job/cpu.max": "max 100000"}, None),
        ({"pod/job/cpu.max": "400000 100000", "pod/cpu.max": "50000 100000"}, 0.5),
        ({"pod/job/cpu.cfs_quota_us": "200000", "pod/job/cpu.cfs_period_us": "100000"}, 2.0),
        ({"pod/job/cpu.cfs_quota_us": "-1", "pod/job/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(doctor, "_groups", lambda _: [tmp_path / "pod/job", tmp_path / "pod", tmp_path])
    assert doctor._cpu_quota() == quota


def test_memory_is_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(doctor, "_groups", lambda _: [tmp_path])
    assert only(doctor._memory()).value == "64.0 GiB, 60.0 GiB available"

    (tmp_path / "memory.max").write_text(str(4 * GIB))
    (tmp_path / "memory.current").write_text(str(3 * GIB))
    finding = only(doctor._memory())
    assert finding.value == "4.0 GiB (the container's limit), 1.0 GiB available"
    assert finding.status == "warn"

    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GIB}\n")
    finding = only(doctor._memory())
    assert finding.value == "4.0 GiB (the container's limit), 3.0 GiB available"
    assert finding.status == "ok"

    (tmp_path / "memory.max").write_text("max")
    assert only(doctor._memory()).value == "64.0 GiB, 60.0 GiB available"


@pytest.mark.parametrize(("free", "status"), [(GIB // 16, "warn"), (2 * GIB, "ok")])
def test_small_shared_memory_names_the_flag(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=4 * GIB, used=4 * GIB - free, free=free))
    finding = only(doctor._shared_memory())
    assert finding.status == status
    assert ("--shm-size" in finding.remedy) == (status == "warn")


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(total=1000 * GIB, used=960 * GIB, free=40 * GIB)
    )
    assert [finding.status for finding in doctor._disks()] == ["warn", "warn"]


def test_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "absent")
    finding = only(doctor._home())
    assert finding.status == "warn"
    assert "HOME" in finding.remedy
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert only(doctor._home()).status == "ok"
    assert list(tmp_path.iterdir()) == []
