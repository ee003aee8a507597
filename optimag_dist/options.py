"""YAML files plus dotted overrides into frozen, validated option records.

Every configurable part keeps its own ``Options`` subclass beside the code it configures. This file only knows how to
read them, and how to say what is wrong in the user's words: the file, the key, what came, what was needed.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from optimag_dist.types import InputError


class Options(BaseModel):
    """Base of all option records: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


OptionsT = TypeVar("OptionsT", bound=Options)


def load_options(cls: type[OptionsT], path: str | Path, overrides: Sequence[str] = ()) -> OptionsT:
    """Read ``path`` (YAML), apply ``key.sub=value`` overrides (values are YAML too) and validate as ``cls``.

    Raises:
        InputError: the file is missing or not a mapping, an override has no ``=``, a key is unknown (the nearest
            valid one is named) or a value does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; needed a YAML file for {cls.__name__}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: needed a mapping of keys to values, got {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    return validate_options(cls, data, source=str(path))


def validate_options(cls: type[OptionsT], data: dict[str, Any], source: str) -> OptionsT:
    """Validate ``data`` as ``cls``; errors are ``InputError`` in the words of ``source``."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cls, problem) for problem in error.errors()]
        raise InputError("\n".join(f"{source}: {line}" for line in lines)) from error


def dump_options(options: Options, path: Path) -> None:
    """Write ``options`` as YAML that :func:`load_options` reads back."""
    path.write_text(yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"override {override!r}: needed key=value, for example train.epochs=5")
    *parents, leaf = key.split(".")
    node = data
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"override {override!r}: {parent!r} holds a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _explain(cls: type[Options], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = sorted(_sibling_keys(cls, location[:-1]))
        everywhere = sorted(set(_dotted_keys(cls)))
        close = difflib.get_close_matches(location[-1], known, n=1) or difflib.get_close_matches(key, everywhere, n=1)
        hint = f"did you mean {'.'.join([*location[:-1], close[0]]) if close[0] in known else close[0]!r}? " if close else ""
        return f"unknown key {key!r}; {hint}known here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    return f"key {key!r}: {message}; got {problem['input']!r}" if key else message


def _nested(annotation: Any) -> Iterator[type[Options]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    elif get_origin(annotation) is not None or get_origin(annotation) is Union:
        for argument in get_args(annotation):
            if argument is not NoneType:
                yield from _nested(argument)


def _sibling_keys(cls: type[Options], parents: Sequence[str]) -> set[str]:
    candidates: list[type[Options]] = [cls]
    for parent in parents:
        deeper = [n for c in candidates if parent in c.model_fields for n in _nested(c.model_fields[parent].annotation)]
        # A dictionary's own keys (or a union's tags) are no fields: stay where we are.
        candidates = deeper or candidates
    return {name for candidate in candidates for name in candidate.model_fields}


def _dotted_keys(cls: type[Options], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for nested in _nested(field.annotation):
            yield from _dotted_keys(nested, f"{prefix}{name}.")
