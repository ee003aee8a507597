"""What is named by where it stands, in an installed module or in a file: all that users bring, and ours by its kind."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from optimag_dist.types import InputError

T = TypeVar("T")


def load_kind(kind: str, known: Mapping[str, str], base: type[T], key: str) -> type[T]:
    """The subclass of ``base`` that ``kind`` names: one of ``known`` (kind → path), or a path as of :func:`load_class`;
    ``InputError`` where there is none, which names the ``key`` that the user set."""
    return load_class(path_of(kind, known, key), base)


def path_of(kind: str, known: Mapping[str, str], key: str) -> str:
    """Where what ``kind`` names stands; see :func:`load_kind`."""
    if ":" not in kind and kind not in known:
        close = difflib.get_close_matches(kind.lower(), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"{key}: unknown {kind!r}; {hint}known: {', '.join(known)}, or your own as package.module:ClassName or "
            "path/to/file.py:ClassName"
        )
    return known.get(kind, kind)


def load_class(path: str, base: type[T]) -> type[T]:
    """The subclass of ``base`` at ``package.module:ClassName`` or ``path/to/file.py:ClassName``; errors as of
    :func:`load`."""
    cls = load(path, base)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise InputError(f"{path!r}: needed a subclass of {base.__module__}.{base.__qualname__}; got {cls!r}")
    return cls


def load(path: str, base: type = object) -> Any:
    """What stands at ``package.module:name`` or ``path/to/file.py:name``.

    A relative file is looked for from the working directory. A file runs once in a process, whatever it is called by.

    Raises:
        InputError: no such module or file, it cannot be imported, or it has no such name; names of subclasses of
            ``base`` that it has are told.
    """
    where, _, name = path.rpartition(":")
    if where.endswith(".py"):
        module = _from_file(path, Path(where).expanduser().resolve())
    else:
        try:
            module = importlib.import_module(where)
        except Exception as error:
            raise InputError(
                f"{path!r}: {where!r} cannot be imported ({type(error).__name__}: {error}); needed a module that is "
                "installed or on PYTHONPATH on every worker, or the path of a .py file that all nodes see"
            ) from error
    if not hasattr(module, name):
        names = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and c is not base]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"{path!r}: {where} has no {name!r}; {hint}of {base.__qualname__} there are: {', '.join(names) or 'none'}"
        )
    return getattr(module, name)


def absolute(path: str) -> str:
    """``path`` for processes in other working directories: a file's path absolute, a module's as it is."""
    where, separator, name = path.rpartition(":")
    return f"{Path(where).expanduser().absolute()}{separator}{name}" if where.endswith(".py") else path


def _from_file(path: str, file: Path) -> ModuleType:
    # One entry per file: a class loaded twice would be two classes.
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise InputError(f"{path!r}: no file {file}; needed the path of a .py file that all nodes see")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path!r}: {file} cannot be imported ({type(error).__name__}: {error})") from error
    return module
