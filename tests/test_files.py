"""Locks of directories: one writer at a time, who is named, and nothing left behind; and full disks."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from optimag_dist.files import LOCK, atomic, sole_writer
from optimag_dist.train import checkpoint

_HOLDS = """
import sys, time
from pathlib import Path
from optimag_dist.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


class BusyError(Exception):
    pass


def _go_away(holder: str) -> None:
    raise BusyError(holder)


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    other = subprocess.Popen([sys.executable, "-c", _HOLDS, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyError, match=rf"^pid {other.pid} on host {os.uname().nodename}, since 20"),
            sole_writer(folder, _go_away),
        ):
            pass
        with (
            pytest.raises(TimeoutError, match=rf"pid {other.pid} on host .*: end it: '{folder}'$"),
            sole_writer(folder, patience_s=0.3),
        ):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        # What a kill leaves says nothing any more.
        assert (folder / LOCK).exists()
        with sole_writer(folder, _go_away):
            assert f"pid {os.getpid()} " in (folder / LOCK).read_text()
        assert not (folder / LOCK).exists()
    finally:
        other.kill()
        other.communicate()


def test_only_directories_that_were_made_and_are_empty_go(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


def test_many_take_turns_though_the_lock_goes_each_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(30):
            with sole_writer(tmp_path / "turns"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (tmp_path / "turns" / LOCK).exists()


def test_a_directory_that_was_replaced_keeps_the_lock_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with sole_writer(folder):
        folder.rename(tmp_path / "old")
        folder.mkdir()
        (folder / LOCK).write_text("another's")
    assert (folder / LOCK).read_text() == "another's"


def test_a_full_disk_is_what_the_system_says_and_leaves_the_old_file(tmp_path: Path) -> None:
    """Also by torch, whose writer complains of its own position instead."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"w": torch.zeros(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as told:
            checkpoint.save(path, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.filename == str(path)
    # Names a file that the system does not.
    with pytest.raises(OSError, match="No space left") as told, atomic(path):
        Path("/dev/full").write_text("x", encoding="utf-8")
    assert told.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
    assert len(checkpoint.load(path, torch.device("cpu"))["w"]) == 10
