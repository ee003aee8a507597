"""The boundary to Ray: what its errors become, where its sessions live, and where its private names stand."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray import exceptions

from optimag_dist.private_folder import private_folder
from optimag_dist.ray_session import ensure_ray, session_folder, translated_ray_errors
from optimag_dist.types import InputError, RunError

PACKAGE = Path(__file__).parents[1] / "optimag_dist"


def test_what_ray_does_not_publish_is_named_in_one_file() -> None:
    private = re.compile(r"\bray(\.\w+)*\._\w|\bray\.train\.v2\b|__internal_head__|_global_node")
    files = {file.name for file in PACKAGE.rglob("*.py") if private.search(file.read_text(encoding="utf-8"))}
    assert files == {"ray_private.py"}


def _task_error(cause: Exception) -> Exception:
    return exceptions.RayTaskError("f", "Traceback: of a worker", cause, "f", 1, "127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (_task_error(InputError("shop.csv: row 7")), InputError, r"^shop.csv: row 7$"),
        (_task_error(RunError("diverged")), RunError, r"^block 3: diverged; again$"),
        (_task_error(OSError(errno.ENOSPC, "full", "/x/part")), RunError, r"^block 3: /x/part: full; "),
        (_task_error(MemoryError()), RunError, r"^block 3: the memory of a host ran out; again$"),
        (_task_error(_task_error(InputError("inner"))), InputError, r"^inner$"),
        (exceptions.ActorDiedError(), RunError, r"^block 3: a process died.*; again$"),
        (exceptions.OutOfMemoryError("a\nb"), RunError, r"memory of a host ran out.*\(a b\); again$"),
        (exceptions.NodeDiedError("n"), RunError, "a host of the cluster was lost"),
        (exceptions.LocalRayletDiedError(), RunError, "session broke down"),
    ],
)
def test_a_ray_error_is_one_of_ours(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as raised, translated_ray_errors("block 3", "again"):
        raise error
    assert not isinstance(raised.value, exceptions.RayError)
    assert raised.value.__cause__ is error


def test_a_defect_in_a_task_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="of a worker"), translated_ray_errors("block 3", "again"):
        raise _task_error(KeyError("x"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "that is a dashboard's address, for optimag submit"),
        ("somehost", "needed HOST:PORT of a running Ray head.* such as somehost:6379"),
        ("somehost:gcs", "needed HOST:PORT"),
        ("127.0.0.1:99999", "needed HOST:PORT"),
        (":6379", "needed HOST:PORT"),
        ("ray://somehost", "needed HOST:PORT"),
        (f"{'a' * 80}.example:6379", "nothing answers at"),
    ],
)
def test_an_address_that_is_none_is_told_at_once(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(InputError, match=words):
        ensure_ray(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=words):
        ensure_ray()


# -- the folder of a session -------------------------------------------------------------------------------------------


def _left(place: Path) -> list[Path]:
    return sorted(place.glob("optimag-*"))


def _hold(place: Path) -> subprocess.Popen:
    """A process that has a folder with something in it."""
    code = (
        "from optimag_dist.private_folder import private_folder\n"
        "folder = private_folder(0)\n"
        "(folder / 'r' / 'sockets').mkdir(parents=True)\n"
        "print(folder, flush=True)\n"
        "input()\n"
    )
    env = {**os.environ, "RAY_TMPDIR": str(place)}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_folder_is_private_and_goes_with_its_process_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, ended = _hold(tmp_path), _hold(tmp_path)
    assert len(_left(tmp_path)) == 2
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in _left(tmp_path)} == {0o700}
    ended.communicate(b"\n", timeout=60)
    assert len(_left(tmp_path)) == 1
    (stranger := tmp_path / "optimag-notours1").symlink_to(tmp_path / "elsewhere")
    (other := tmp_path / "optimag-bigger12").mkdir(mode=0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    own = private_folder(0)
    assert len(_left(tmp_path)) == 4, "of one that is alive nothing is taken"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    another = private_folder(0)
    assert _left(tmp_path) == sorted([own, another, stranger, other])


@pytest.mark.parametrize("place", ["missing", "a file", "long"])
def test_a_place_that_does_not_serve_is_told(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    (long := tmp_path / ("x" * 70)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long if place == "long" else tmp_path / place))
    with pytest.raises(InputError, match=r"^RAY_TMPDIR: .*; set RAY_TMPDIR to a short path"):
        private_folder(40 if place == "long" else 0)


def test_a_long_temporary_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (long := tmp_path / ("x" * 70)).mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = session_folder()
    assert folder.parent == Path("/tmp")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()


_SESSION = """
import os, pathlib, stat, sys, tempfile
from optimag_dist.ray_session import ensure_ray
ensure_ray(num_cpus=1)
import ray
node = ray._private.worker._global_node
folder = pathlib.Path(node.get_session_dir_path()).parents[1]
longest = max(len(str(file)) for file in folder.rglob("*") if file.is_socket())
where = ray.get(ray.remote(lambda: tempfile.mkdtemp()).remote())
print(folder, oct(stat.S_IMODE(folder.stat().st_mode)), longest <= 107, where.startswith(str(folder)))
print(tempfile.gettempdir())
"""


@pytest.mark.cluster
def test_a_session_is_private_and_leaves_nothing(tmp_path: Path) -> None:
    """With a temporary folder that is too long for sockets, and a home that cannot be written to."""
    (long := tmp_path / ("x" * 70)).mkdir()
    env = {**os.environ, "TMPDIR": str(long), "HOME": "/proc/1"}
    env.pop("RAY_ADDRESS", None)
    asked = subprocess.run([sys.executable, "-c", _SESSION], env=env, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr
    folder, *found = asked.stdout.split()
    assert found == ["0o700", "True", "True", str(long)]
    assert not Path(folder).exists()
    assert not list(long.iterdir())


@pytest.mark.parametrize("failures", [1, 2])
def test_a_machine_that_is_busy_gets_a_second_chance(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def init(*, _temp_dir: str, **options: object) -> None:
        calls.append(Path(_temp_dir))
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.\nThis could happen because …")

    monkeypatch.setattr("optimag_dist.ray_session.session_folder", lambda: tmp_path)
    monkeypatch.setattr("optimag_dist.ray_session.atexit.register", lambda *what: None)
    monkeypatch.setattr("optimag_dist.ray_session._make_token", lambda: None)
    monkeypatch.setattr("optimag_dist.ray_session.use_token", lambda: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = os.environ.get("TMPDIR")
    if failures == 1:
        ensure_ray()
    else:
        with pytest.raises(
            RunError, match=r"does not start .*\(The current node timed out during startup\.\): .*again"
        ):
            ensure_ray()
    assert len(calls) == 2
    assert os.environ.get("TMPDIR") == before
