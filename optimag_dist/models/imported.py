"""Classes that users bring: named by where they stand, in an installed module or in a file."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from optimag_dist.types import InputError


def load_class(path: str) -> type[nn.Module]:
    """The class at ``package.module:ClassName`` or ``path/to/file.py:ClassName``.

    A relative file is looked for from the working directory. A file runs once in a process, whatever it is called by.

    Raises:
        InputError: no such module or file, it cannot be imported, it has no such class, or that is no ``nn.Module``.
    """
    where, _, name = path.rpartition(":")
    module = _from_file(path, Path(where).expanduser()) if where.endswith(".py") else _from_module(path, where)
    cls = getattr(module, name, None)
    if cls is None:
        names = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, nn.Module)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"{path!r}: {where} has no {name!r}; {hint}nn.Module classes in it: {', '.join(names) or 'none'}"
        )
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"{path!r}: needed a subclass of torch.nn.Module; got {cls!r}")
    return cls


def absolute(path: str) -> str:
    """``path`` for processes in other working directories: a file's path absolute, a module's as it is."""
    where, separator, name = path.rpartition(":")
    return f"{Path(where).expanduser().absolute()}{separator}{name}" if where.endswith(".py") else path


def _from_module(path: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except Exception as error:
        raise InputError(
            f"{path!r}: {where!r} cannot be imported ({type(error).__name__}: {error}); needed a module that is "
            "installed or on PYTHONPATH on every worker, or the path of a .py file that all nodes see"
        ) from error


def _from_file(path: str, where: Path) -> ModuleType:
    file = where.resolve()
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
