"""Progress of a run in the driver's terminal: workers tell an actor, the driver draws what the actor knows.

Bars drawn by the workers themselves would be mixed up with each other and with Ray's own lines. Where the output is no
terminal (a job's log, CI) every finished fit is one line instead.
"""

import threading
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from optimag_dist.console import console as plain_console
from optimag_dist.train.log import in_one_line
from optimag_dist.train.watch import Beat
from optimag_dist.types import InputError

_POLL_S = 0.3


class ProgressBoard:
    """Holds the latest word from the workers; runs as a Ray actor."""

    def __init__(self) -> None:
        self._current: dict[str, Any] = {}
        self._finished: list[dict[str, Any]] = []
        self._life = 0
        self._beats: dict[int, Beat] = {}
        self._refusal: InputError | None = None
        self._controller: Any = None
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        """A line for the terminal."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """What was said since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def epoch(self, fit: str, record: dict[str, Any], epochs: int) -> None:
        """``fit`` has ended an epoch."""
        self._current = {"fit": fit, "record": record, "epochs": epochs}

    def finished(self, result: dict[str, Any]) -> None:
        """A fit has ended, or was found finished; restarted workers tell again of those that ended before."""
        if result not in self._finished:
            self._finished.append(result)

    def starting(self) -> None:
        """The workers are about to be started, or started again."""
        self._life += 1
        self._beats = {}

    def beat(self, beat: Beat) -> None:
        """A worker is alive, and there."""
        self._beats[beat.rank] = beat

    def refuse(self, error: InputError) -> None:
        """A worker cannot use its input; starting it again would not help."""
        self._refusal = error

    def signs(self) -> tuple[int, list[Beat], InputError | None]:
        """How often the workers were started, what was heard since the last call, and what was refused."""
        beats, self._beats = list(self._beats.values()), {}
        return self._life, beats, self._refusal

    def controlled_by(self, controller: Any) -> None:
        """The actor that starts the workers, so that the driver can stop it."""
        self._controller = controller

    def controller(self) -> Any:
        return self._controller

    def read(self, seen: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The current fit's state and the results after the first ``seen``."""
        return self._current, self._finished[seen:]


class ProgressView:
    """Draws a :class:`ProgressBoard` until the ``with`` block ends.

    Args:
        num_fits: how many fits the run has in all.
        console: where to draw; default is standard output.
    """

    def __init__(self, num_fits: int, console: Console | None = None) -> None:
        # On the driver's own node: another may be taken away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressBoard).remote()
        self._console = console or plain_console()
        self._num_fits = num_fits
        self._seen = 0
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def say(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._bars.console.print(f"  {text}", soft_wrap=True)

    def __enter__(self) -> "ProgressView":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _draw(self) -> None:
        with self._bars:
            fits = self._bars.add_task("fits", total=self._num_fits, note="starting workers")
            epochs = self._bars.add_task("", total=None, note="", visible=False)
            while not self._stop.wait(_POLL_S):
                if not self._poll(fits, epochs):
                    return
            self._poll(fits, epochs)

    def _poll(self, fits: TaskID, epochs: TaskID) -> bool:
        try:
            calls = [self.board.read.remote(self._seen), self.board.lines.remote()]
            (current, finished), lines = ray.get(calls, timeout=5)
        except ray.exceptions.GetTimeoutError:
            return True
        except Exception:
            # The session is going down, with or without an error of its own: the driver's main thread tells.
            return False
        for line in lines:
            self.say(line)
        for result in finished:
            self._seen += 1
            self.say(
                f"{self._seen:>3}/{self._num_fits}  {result['variant']:<14} seed {result['seed']:<2}  "
                f"{in_one_line(result)}"
            )
            for advice in filter(None, result.get("advice", "").split("\n")):
                if advice not in self._told:
                    self._told.add(advice)
                    self.say(f"         {advice}")
        self._bars.update(fits, completed=self._seen, note="")
        if current:
            record = current["record"]
            # One has room, the first.
            validated = [f"  val {n.removeprefix('val/')} {v:.3f}" for n, v in record.items() if n.startswith("val/")]
            note = f"loss {record['loss']:.3f}" + "".join(validated[:1])
            self._bars.update(
                epochs,
                description=current["fit"],
                completed=record["epoch"] + 1,
                total=current["epochs"],
                note=note,
                visible=True,
            )
        return True
