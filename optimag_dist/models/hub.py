"""Models that a configuration names: a folder, or an id on the Hugging Face hub.

A folder is read as it lies there. A hub id is looked for in the hub's cache on this host first, and asked for over the
network only where something of it is missing there (``HF_HUB_OFFLINE=1``: not at all).
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from optimag_dist.types import InputError

T = TypeVar("T")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Of what a loader says of a file that it cannot read.
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Source:
    """Where models of one sort come from: the ``library`` that reads them, and the ``extra`` of this package that
    brings it; what a folder must hold, in words; the names that stand for neither a folder nor a hub id."""

    library: str
    extra: str
    contents: str
    shipped: tuple[str, ...]

    def imported(self, module: str, what: str) -> Any:
        """The module that ``what`` needs; an InputError where it is not installed."""
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"{what}: needs the package {error.name}; pip install 'optimag_dist[{self.extra}]'"
            ) from error

    def absolute(self, model: str) -> str:
        """A folder's absolute path, so that processes with other working directories find it; other names as given."""
        if model in self.shipped or not Path(model).expanduser().exists():
            return model
        return str(Path(model).expanduser().resolve())

    def read(self, model: str, load: Callable[..., T], **how: Any) -> T:
        """``load(place, local_files_only=…, **how)`` of the folder or hub id ``model``; an InputError where it is not
        there, cannot be fetched, or is no model of this sort."""
        place = self.absolute(model)
        on_disk = Path(place).is_absolute() and Path(place).exists()
        if not on_disk and (model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model)):
            raise InputError(
                f"{model}: no such folder; needed one that holds {self.contents}, an id on the Hugging Face hub, or "
                f"{' or '.join(self.shipped)}"
            )
        try:
            with self._quiet():
                try:
                    return load(place, local_files_only=True, **how)
                except OSError:
                    if on_disk:
                        raise
                    return load(place, local_files_only=False, **how)
        except Exception as error:
            # What a damaged or foreign file makes a loader raise has no end.
            words = " ".join(str(error).split())
            words = words if len(words) <= _MOST_CHARACTERS else words[: _MOST_CHARACTERS - 1] + "…"
            if not on_disk and isinstance(error, OSError):
                raise InputError(
                    f"{model}: no such folder, and it cannot be fetched from the Hugging Face hub: {words} Give a "
                    f"folder that holds {self.contents}, fetch it once where there is a connection (hf download "
                    f"{model}), or use {' or '.join(self.shipped)}"
                ) from error
            raise InputError(f"{model}: cannot be read as {self.contents}: {words}") from error

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without the library's bars and reports: what of them matters is checked."""
        logging = importlib.import_module(f"{self.library}.utils.logging")
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
