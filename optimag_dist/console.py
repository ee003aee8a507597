"""The one way to the terminal: text is shown as it is, and output that cannot be written is no reason to fail."""

import io
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from optimag_dist.messages import printable, said_by_system, without_secrets

_PACKAGE = Path(__file__).parent


class _PlainConsole(Console):
    """Takes nothing in a text for markup, emoji or control; secrets of URIs are left out."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(without_secrets(text)), **options)

    @property
    def encoding(self) -> str:
        """Of the stream as it is now; rich asks the one it was made with, and draws boxes that ASCII has not."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or error for everything that may hold a user's text."""
    return _PlainConsole(stderr=stderr)


def say(text: str, *, stderr: bool = False) -> None:
    """Print ``text``, unbroken, however wide the terminal is."""
    console(stderr=stderr).print(text, soft_wrap=True)


def end(error: BaseException) -> NoReturn:
    """Tell of ``error`` on standard error and leave with its status: a sentence for a user's input (2) and for what
    happened to the work (1); anything else is a defect of this package, keeps its traceback and is called one."""
    if told := _told(error):
        fail(*told)
    say("".join(traceback.format_exception(error)).rstrip(), stderr=True)
    fail(
        "this is a defect of optimag_dist and not of your input. Please report it: the lines above, the command, "
        "and what optimag doctor prints",
        1,
    )


def fail(message: str, status: int) -> NoReturn:
    """Print ``message`` on standard error and leave with ``status``."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()  # in a log, what was said before comes before
    err = console(stderr=True)
    err.print("optimag:", style="bold red", end=" ")
    err.print(message, soft_wrap=True)
    sys.exit(status)


def _told(error: BaseException) -> tuple[str, int] | None:
    # With torch, which takes seconds that no command needs before it knows what it is to do.
    from optimag_dist.types import InputError, RunError

    if isinstance(error, InputError | RunError):
        return str(error), 2 if isinstance(error, InputError) else 1
    if isinstance(error, OSError):
        return said_by_system(error) + _place(error), 1
    if isinstance(error, MemoryError):
        return f"the memory of this machine does not suffice{_place(error)}", 1
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= letter <= "\udfff" for letter in error.object):
        return f"{error.object!r}: a name that is not UTF-8; rename it, or go to a folder with another name", 2
    return None


def _place(error: BaseException) -> str:
    """The line of this package that ``error`` came through last, for who has to look for it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(f.filename).parents]
    return f" ({Path(frames[-1].filename).relative_to(_PACKAGE.parent)}:{frames[-1].lineno})" if frames else ""


class _Unfailing(io.FileIO):
    """A descriptor to write to, whose reader may leave and whose disk may be full."""

    lost = False

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # a terminal or a pipe that does not block
            return written
        except OSError:
            self.lost = True
            return len(data)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Within, writing to standard output and error never raises: what the encoding has not is spelt out, what nobody
    reads any more (``| head``) or no disk takes is dropped."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_unfailing, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def nobody_listens() -> bool:
    """Whether something written to standard output, within :func:`unfailing_output`, was lost."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", False)


def _unfailing(stream: Any) -> Any:
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream  # closed, or none of the system's
    stream.flush()
    raw = _Unfailing(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
    )
