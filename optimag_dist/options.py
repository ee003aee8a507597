"""YAML files plus dotted overrides into frozen, validated option records.

Every configurable part keeps its own ``Options`` subclass beside the code it configures. This file only knows how to
read them, and how to say what is wrong in the user's words: the file, the key, what came, what was needed.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from optimag_dist.files import atomic
from optimag_dist.imported import absolute, load
from optimag_dist.types import InputError
from optimag_dist.yaml_files import parse_yaml, read_yaml


class Options(BaseModel):
    """Base of all option records: frozen, and an unknown key is an error."""

    # As "constants": where a value may be anything, pydantic would dump infinity as null.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")


class OptionsOfKind(Options):
    """A section whose ``kind`` says what it is of: a name of ours, or where a class stands, which names its own.

    Attributes:
        kind: as :func:`~optimag_dist.imported.load_kind` takes it; a file's path is absolute.
    """

    kind: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class of a user's file is known to no other process before it has loaded that file.
        return (_of_file, (self.kind, self.model_dump())) if ":" in self.kind else super().__reduce_ex__(protocol)


def _of_file(kind: str, data: dict[str, Any]) -> OptionsOfKind:
    found: OptionsOfKind = load(kind).options_class.model_validate(data)
    return found


# Type of a problem within a section that has a class of its own.
_WITHIN = "within"


def section(options_of: Callable[[str], type[OptionsOfKind]], default: str, needed: str) -> PlainValidator:
    """The type of a key whose section is validated as its ``kind``, ``default`` where it has none, says; for
    ``Annotated``. ``needed`` is the message where there is no section."""

    def validated(value: Any) -> OptionsOfKind:
        if isinstance(value, OptionsOfKind):
            return value
        kind = value.get("kind", default) if isinstance(value, Mapping) else None
        if not isinstance(kind, str):
            raise ValueError(needed)
        cls = options_of(kind)
        try:
            return cls.model_validate({**value, "kind": absolute(kind)})
        except ValidationError as error:
            lines = [
                InitErrorDetails(
                    type=PydanticCustomError(_WITHIN, "{message}", {"message": e["msg"], "of": cls, "problem": e}),
                    loc=e["loc"],
                    input=e["input"],
                )
                for e in error.errors()
            ]
            raise ValidationError.from_exception_data(cls.__name__, lines) from None

    return PlainValidator(validated)


# Letters of a value that a message repeats.
_SHOWN = 200
_LONGEST_NAME = 200


def _names_folder(needed: str, pattern: re.Pattern[str], name: str) -> str:
    if not pattern.fullmatch(name) or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"it names a folder: needed {needed}, and at most {_LONGEST_NAME} bytes")
    return name


#: Type of an option, or of a mapping's keys, that names a folder and is part of tables, messages and commands.
FolderName = Annotated[
    str,
    AfterValidator(partial(_names_folder, "letters, digits and . _ + -, no dot first", re.compile(r"[\w+-][\w.+-]*"))),
]
#: One that people read alone: any text that can name a folder.
FreeName = Annotated[
    str,
    AfterValidator(
        partial(_names_folder, "a text without / and no dot first", re.compile(r"[^\x00-\x1f/.][^\x00-\x1f/]*"))
    ),
]

OptionsT = TypeVar("OptionsT", bound=Options)


def load_options(cls: type[OptionsT], path: str | Path, overrides: Sequence[str] = ()) -> OptionsT:
    """Read ``path`` (YAML), apply ``key.sub=value`` overrides (values are YAML too) and validate as ``cls``.

    Raises:
        InputError: the file is missing or not a mapping, an override has no ``=``, a key is unknown (the nearest
            valid one is named) or a value does not fit.
    """
    return validate_options(cls, merge(read_mapping(cls, path), parse_overrides(overrides), whole=True), str(path))


def read_mapping(cls: type[Options], path: str | Path) -> dict[str, Any]:
    """What stands in ``path`` (YAML), which is meant for ``cls``, not yet validated."""
    data = read_yaml(Path(path), f"a YAML file for {cls.__name__}")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: needed a mapping of keys to values, got {type(data).__name__}")
    return data


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted key → value of ``key.sub=value`` overrides, whose values are YAML; ``InputError`` for others."""
    found = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r}: needed key=value, for example train.epochs=5")
        found[key] = parse_yaml(text, f"override {override!r}")
    return found


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """``base`` with ``changes``, given as dotted keys or nested mappings; with ``whole`` a value takes the place of a
    whole section. One whose ``kind`` changes starts anew: another kind's keys mean nothing to it."""
    merged = dict(base)
    # YAML also has keys that are no text, which no section knows.
    changes = {str(key): value for key, value in changes.items()}
    # A kind first: what else is said of its section is said of the new kind.
    for dotted, value in sorted(changes.items(), key=lambda change: change[0].rpartition(".")[2] != "kind"):
        key, _, rest = dotted.partition(".")
        below = merged.get(key)
        nested = {rest: value} if rest else value
        if not rest and (whole or not (isinstance(below, dict) and isinstance(nested, dict))):
            merged[key] = nested
            continue
        before = below if isinstance(below, dict) else {}
        anew = "kind" in nested and "kind" in before and nested["kind"] != before["kind"]
        merged[key] = merge({} if anew else before, nested, whole=whole)
    return merged


def parse_options(cls: type[OptionsT], overrides: Sequence[str] | None, source: str) -> OptionsT:
    """``cls`` with its defaults changed by ``key.sub=value`` overrides; errors as of :func:`load_options`."""
    return validate_options(cls, merge({}, parse_overrides(overrides or []), whole=True), source)


def validate_options(cls: type[OptionsT], data: dict[str, Any], source: str) -> OptionsT:
    """Validate ``data`` as ``cls``; errors are ``InputError`` in the words of ``source``."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cls, problem) for problem in error.errors()]
        raise InputError("\n".join(f"{source}: {line}" for line in lines)) from error


def dump_options(options: Options, path: Path) -> None:
    """Write ``options`` as YAML that :func:`load_options` reads back."""
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _explain(cls: type[Options], problem: Any, before: Sequence[str] = (), elsewhere: Sequence[str] = ()) -> str:
    """What is wrong in the section ``cls`` at the keys ``before``; ``elsewhere`` are dotted keys around it."""
    everywhere = [".".join([*before, dotted]) for dotted in _dotted_keys(cls)] + list(elsewhere)
    if problem["type"] == _WITHIN:
        inner = problem["ctx"]["problem"]
        outer = _without_tags(cls, problem["loc"][: len(problem["loc"]) - len(inner["loc"])])
        return _explain(problem["ctx"]["of"], inner, [*before, *outer], everywhere)
    *parents, leaf = _without_tags(cls, problem["loc"]) or [""]
    key = ".".join([*before, *parents, leaf]).removesuffix(".")
    if problem["type"] == "extra_forbidden":
        known = sorted({name for each in _classes_under(cls, parents) for name in each.model_fields})
        near_here = [".".join([*before, *parents, name]) for name in difflib.get_close_matches(leaf, known, n=1)]
        same_leaf = [
            dotted for dotted in sorted(set(everywhere)) if dotted.rpartition(".")[2] == leaf and dotted != key
        ]
        close = near_here or same_leaf or difflib.get_close_matches(key, sorted(set(everywhere)), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {key!r}; {hint}known here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    came = repr(value) if len(repr(value)) <= _SHOWN else f"{repr(value)[:_SHOWN]}…"
    # Typed without quotes.
    hint = " (YAML reads true and false as booleans: put a text in quotes)" if isinstance(value, bool) else ""
    return f"key {key!r}: {message}; got {came}{hint}" if key else message


def _without_tags(cls: type[Options], location: Sequence[str | int]) -> list[str]:
    """The user's own keys in ``location``: pydantic adds the names of a union's members."""
    keys: list[str] = []
    for part in location:
        # A member's tag follows a field and is a class name or a literal[...]; the user's keys are neither.
        is_tag = isinstance(part, str) and ("[" in part or part in {c.__name__ for c in _classes_under(cls, keys)})
        if not is_tag:
            keys.append(str(part))
    return keys


def _nested(annotation: Any) -> Iterator[type[Options]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _nested(argument)


def _classes_under(cls: type[Options], parents: Sequence[str]) -> list[type[Options]]:
    candidates: list[type[Options]] = [cls]
    for parent in parents:
        deeper = [n for c in candidates if parent in c.model_fields for n in _nested(c.model_fields[parent].annotation)]
        # A dictionary's own keys are no fields: stay where we are.
        candidates = deeper or candidates
    return candidates


def _dotted_keys(cls: type[Options], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for nested in _nested(field.annotation):
            yield from _dotted_keys(nested, f"{prefix}{name}.")
