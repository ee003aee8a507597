"""A store that shares most of its files with another one."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimag_dist.files import sync
from optimag_dist.store.layout import StoredFile, read_meta, write_meta
from optimag_dist.store.reader import GraphStore
from optimag_dist.types import InputError


def derive_store(store: GraphStore, directory: Path, files: Mapping[str, StoredFile], **changes: Any) -> GraphStore:
    """Finish the store in ``directory``, where the new ``files`` are; the others become hard links to ``store``'s.

    Args:
        changes: fields of ``meta.json`` that differ from those of ``store``.

    Raises:
        InputError: the store was replaced by another one meanwhile.
    """
    meta = read_meta(store.path)
    for name in meta.files.keys() - files.keys():
        _link(store.path / name, directory / name)
    if read_meta(store.path).content_hash != store.content_hash:
        raise InputError(f"{store.path}: the store was replaced by another one while in use; start again")
    write_meta(directory, meta.model_copy(update={**changes, "files": {**meta.files, **files}}))
    return GraphStore.open(directory)


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError as error:
        # Another disk, or a file system without hard links.
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copyfile(old, new)
        sync(new)
