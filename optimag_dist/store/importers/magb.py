"""MAGB (arXiv 2410.09132): a DGL graph beside folders of features."""

from pathlib import Path

from optimag_dist.store.arrays import ArrayFeatures, NpyRows
from optimag_dist.store.importers.array_source import ArraySource
from optimag_dist.store.importers.dgl_file import graph_source, is_dgl, load_graph
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.types import InputError

_FOLDERS = {"text": "TextFeature", "image": "ImageFeature"}


def is_magb(folder: Path) -> bool:
    return bool(_graph_files(folder))


def open_magb(folder: Path, options: ImportOptions) -> ArraySource:
    """A dataset's folder: ``<Name>Graph.pt`` of ``dgl.save_graphs``, ``TextFeature/*.npy``, ``ImageFeature/*.npy``.

    Without these two folders every ``.npy`` file beside the graph is a modality, of its own name or that of the
    options. Where there are several encoders, the options' ``features`` choose. The graph is undirected unless they
    say otherwise, as in the benchmark.

    Layout: https://github.com/sktsherlock/MAGB, README.

    Raises:
        InputError: several graphs, several encoders and none chosen, or a file that cannot be used.
    """
    graphs = _graph_files(folder)
    if len(graphs) > 1:
        raise InputError(f"{folder}: several DGL graphs, {', '.join(path.name for path in graphs)}; leave one there")
    graph, beside = load_graph(graphs[0])
    options = options.model_copy(
        update={
            "name": options.name or folder.resolve().name,
            "directed": bool(options.directed),
            "features": _found(folder, options) | dict(options.features),
        }
    )
    modalities = {
        name: ArrayFeatures(folder / file, NpyRows(folder / file), graph.num_nodes(), "the graph")
        for name, file in options.features.items()
    }
    return graph_source(graphs[0], graph, modalities, options, beside)


def _graph_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and is_dgl(path))


def _found(folder: Path, options: ImportOptions) -> dict[str, str]:
    if not any((folder / name).is_dir() for name in _FOLDERS.values()):
        given = set(options.features.values())
        return {path.stem: path.name for path in sorted(folder.glob("*.npy")) if path.name not in given}
    found = {}
    for modality, name in _FOLDERS.items():
        files = sorted((folder / name).glob("*.npy"))
        if len(files) > 1 and modality not in options.features:
            raise InputError(
                f"{folder / name}: several encoders, {', '.join(path.name for path in files)}; choose with "
                f"features.{modality}={name}/FILE"
            )
        if files:
            found[modality] = f"{name}/{files[0].name}"
    return found
