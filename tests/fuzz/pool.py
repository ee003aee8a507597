"""Runs examples in a child process that is started again when one kills it or keeps it too long."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
# The first example of a child, which imports and compiles.
_FIRST_SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """What came of an example.

    Attributes:
        kind: ``success`` and ``refused`` are right; ``traceback``, ``crash``, ``hang``, ``wrong answer``, ``memory``,
            ``silence`` and ``no sentence`` are not.
        text: the message, the traceback or the stack.
        command: which one was run.
        what: how its input was changed.
    """

    kind: str
    text: str
    command: str = ""
    what: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return self.kind in ("success", "refused")

    @property
    def signature(self) -> str:
        """What other examples of the same defect have in common."""
        frames = re.findall(r'File "[^"]*?((?:optimag_dist|tests)/[^"]+)", line (\d+)', self.text)
        frames = frames[:1] if self.kind in ("crash", "hang") else frames[-1:]
        last = self.text.strip().splitlines()[-1:] if self.kind == "traceback" else []
        names = re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception|Invalid|Interrupt|Warning))\b", self.text, re.M)
        place = ":".join(frames[0]) if frames else " ".join(last)[:80]
        return f"{self.kind} {names[-1] if names else ''} {place} {self.command if not frames else ''}".strip()


class Child:
    """The process.

    Args:
        folder: which it works in.

    Attributes:
        seconds: that an example may take.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds = 20.0
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def run(self, case: str, command: int, numbers: list[list[int]]) -> Outcome:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"case": case, "command": command, "numbers": numbers}).encode() + b"\n")
        process.stdin.flush()
        told: dict[str, Any] = self._answer(_FIRST_SECONDS) or {}
        outcome = self._answer(self.seconds if numbers else _FIRST_SECONDS) if told else None
        if outcome is None:
            kind = "hang" if process.poll() is None else "crash"
            outcome = {"is": kind, "text": self._end(process, kind)}
        return Outcome(outcome["is"], outcome["text"], told.get("command", ""), tuple(told.get("what", ())))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._unread = b""
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "XDG_CACHE_HOME": str(self._folder / "cache"),
            "TMPDIR": str(self._folder),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env=environment,
        )

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            read = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not read:
                if ready:
                    process.wait()
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _end(self, process: subprocess.Popen[bytes], kind: str) -> str:
        """The stack it had; the next example starts another process."""
        self._process = None
        if kind == "hang":
            # faulthandler writes where it is.
            process.send_signal(signal.SIGABRT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        errors = self._folder / "errors.txt"
        return f"exit status {process.returncode}\n{errors.read_text() if errors.is_file() else ''}"
