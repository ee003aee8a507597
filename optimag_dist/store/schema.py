"""The YAML file that describes a user's node and edge tables."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from optimag_dist.options import Options
from optimag_dist.store.layout import StoredDtype, check_names

TableFiles: TypeAlias = str | Annotated[tuple[str, ...], Field(min_length=1)]


class NodeTable(Options):
    """Where the nodes stand; row order is the order of the dense ids.

    Attributes:
        file: ``.parquet``, ``.csv``, ``.tsv`` or ``.jsonl``, relative to the YAML file; where there are several, a
            folder, a pattern such as ``part-*.parquet`` (both read in sorted order) or a list.
        id: column of the users' ids (strings or integers, any order, no duplicates).
        label: column of class labels (strings, integers or booleans); an empty cell means unlabelled.
        split: column with ``train``, ``val``, ``test`` or empty.
        classes: the allowed labels in their order; by default the sorted distinct labels.
    """

    file: TableFiles
    id: str
    label: str | None = None
    split: str | None = None
    classes: tuple[bool | int | str, ...] | None = None

    @model_validator(mode="after")
    def _classes_fit(self) -> "NodeTable":
        if self.classes is not None:
            if self.label is None:
                raise ValueError("'classes' lists labels, but no 'label' is named; add 'label' or drop 'classes'")
            names = [str(name) for name in self.classes]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"'classes' must list at least one label and none twice, got {names}")
        return self


class ModalitySource(Options):
    """Where one modality's features stand: exactly one of ``column``, ``columns`` and ``file``.

    Attributes:
        column: column of the node table with one list of numbers per node (in CSV: text such as ``0.1 0.2``,
            ``0.1;0.2`` or ``[0.1, 0.2]``); an empty cell means missing.
        columns: several columns of the node table with one number each; all of them empty means missing.
        file: ``.npy`` of shape (nodes, width), rows in the order of the node table; a row of NaN means missing.
        dtype: how the store keeps the numbers.
    """

    column: str | None = None
    columns: tuple[str, ...] | None = None
    file: str | None = None
    dtype: StoredDtype = "float32"

    @model_validator(mode="after")
    def _one_source(self) -> "ModalitySource":
        given = [key for key in ("column", "columns", "file") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"needed exactly one of 'column', 'columns' and 'file', got {given or 'none of them'}")
        if self.columns is not None and (not self.columns or len(set(self.columns)) != len(self.columns)):
            raise ValueError(f"'columns' must name at least one column and none twice, got {list(self.columns)}")
        return self


class AttributeSource(Options):
    """Raw text or pictures kept beside the features, for people to look at.

    Attributes:
        column: column of the node table.
        kind: ``text``; ``image`` (the column holds the picture's bytes); ``image_path`` (the column holds paths of
            picture files, relative to the YAML file, which are read into the store).
        allow: folders beside that of the YAML file, relative to it, in which such picture files may lie.
    """

    column: str
    kind: Literal["text", "image", "image_path"]
    allow: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _only_paths_are_allowed(self) -> "AttributeSource":
        if self.allow and self.kind != "image_path":
            raise ValueError("'allow' names folders of picture files, so it needs kind: image_path")
        return self


class EdgeTable(Options):
    """Where the edges stand.

    Attributes:
        file: as for the nodes.
        source: column of the node id an edge starts at.
        target: column of the node id it ends at.
        directed: whether source and target differ in meaning; otherwise every edge is stored both ways.
        unknown: what becomes of an edge to or from an id that no node has: ``refuse`` or ``drop``.
    """

    file: TableFiles
    source: str
    target: str
    directed: bool = False
    unknown: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _two_columns(self) -> "EdgeTable":
        if self.source == self.target:
            raise ValueError(f"'source' and 'target' are the same column {self.source!r}; every edge would be a loop")
        return self


class IngestSchema(Options):
    """A whole graph in the user's files."""

    name: str = Field(min_length=1)
    nodes: NodeTable
    modalities: dict[str, ModalitySource] = Field(min_length=1)
    attributes: dict[str, AttributeSource] = Field(default_factory=dict)
    edges: EdgeTable

    @field_validator("modalities", "attributes")
    @classmethod
    def _names_fit(cls, value: dict[str, Options]) -> dict[str, Options]:
        check_names(value)
        return value
