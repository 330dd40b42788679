"""From npm packages to glyphs: 96-pixel RGBA emoji of every class in four drawing styles.

The packages come through ``npm pack``, are read as archives and are never installed. Code points are chosen
by hand: one or a few pictures for each class, faces and full bodies alike.
"""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 96
"""Side of a stored glyph in pixels: three times the model's, so that rotations and shifts stay sharp."""

PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent 3d": "@lobehub/fluent-emoji-3d@1.1.0",
}
"""Exact package of each style (licences: NOTICE at the root of the repository)."""

SVG_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 32 32">'

CODE_POINTS = """
cat 1F431 1F408; dog 1F436 1F415 1F429; horse 1F434 1F40E; monkey 1F435 1F412; rabbit 1F430 1F407;
zebra 1F993; spider 1F577; bird 1F426; sheep 1F411 1F40F; deer 1F98C; cow 1F42E 1F404; goat 1F410;
lion 1F981; tiger 1F42F 1F405; bear 1F43B; raccoon 1F99D; fox 1F98A; wolf 1F43A; lizard 1F98E;
beetle 1FAB2 1F41E; ant 1F41C; butterfly 1F98B; fish 1F41F 1F420; shark 1F988; whale 1F433 1F40B;
dolphin 1F42C; squirrel 1F43F; mouse 1F42D 1F401; rat 1F400; snake 1F40D; turtle 1F422; frog 1F438;
chicken 1F414 1F413; duck 1F986; goose 1FABF; bee 1F41D; pig 1F437 1F416; turkey 1F983; fly 1FAB0;
llama 1F999; camel 1F42B 1F42A; bat 1F987; gorilla 1F98D; hedgehog 1F994; kangaroo 1F998; panda 1F43C;
koala 1F428; penguin 1F427; owl 1F989; elephant 1F418; crab 1F980; octopus 1F419; snail 1F40C;
dragon 1F432; unicorn 1F984; apple 1F34E 1F34F; banana 1F34C; strawberry 1F353; car 1F697; bus 1F68C;
bicycle 1F6B2; rocket 1F680; tree 1F333; flower 1F33B 1F33C; house 1F3E0
"""


def code_points() -> dict[str, list[str]]:
    """Class name to its Unicode code points, upper-case hexadecimal."""
    entries = (entry.split() for entry in CODE_POINTS.replace("\n", " ").split(";"))
    return {name: points for name, *points in entries}


def fetch_packages(folder: Path) -> None:
    """Download the package archives that ``folder`` lacks (about 150 MB in all).

    Raises:
        subprocess.CalledProcessError: npm failed; its own message is on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES.values():
        if not archive(folder, package).exists():
            subprocess.run(["npm", "pack", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def archive(folder: Path, package: str) -> Path:
    """File that ``npm pack`` makes of ``name@version``."""
    name, _, version = package.rpartition("@")
    return folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def load_glyphs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All glyphs that the packages have.

    Returns:
        ``[N, 96, 96, 4]`` uint8 RGBA and ``[N, 3]`` strings: class, style, code point.
    """
    readers = {
        "noto": _datasource_reader(folder, PACKAGES["noto"], "google"),
        "twemoji": _datasource_reader(folder, PACKAGES["twemoji"], "twitter"),
        "fluent flat": _svg_reader(folder, PACKAGES["fluent flat"]),
        "fluent 3d": _webp_reader(folder, PACKAGES["fluent 3d"]),
    }
    pictures, labels = [], []
    for name, points in code_points().items():
        for point in points:
            for style, read in readers.items():
                picture = read(point)
                if picture is not None:
                    pictures.append(np.asarray(_square(picture)))
                    labels.append((name, style, point))
    return np.stack(pictures), np.array(labels)


def _square(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    return picture if picture.size == (SIZE, SIZE) else picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _members(folder: Path, package: str, wanted) -> dict[str, bytes]:
    """Content of the archive members whose path below ``package/`` satisfies ``wanted``."""
    with tarfile.open(archive(folder, package)) as tar:
        found = (m for m in tar if m.isfile() and wanted(m.name.removeprefix("package/")))
        return {m.name.removeprefix("package/"): tar.extractfile(m).read() for m in found}


def _datasource_reader(folder: Path, package: str, vendor: str):
    prefix = f"img/{vendor}/64/"
    files = _members(folder, package, lambda path: path == "emoji.json" or path.startswith(prefix))
    image_of = {}
    for entry in json.loads(files["emoji.json"]):
        for key in (entry["unified"], entry.get("non_qualified")):
            if key:
                image_of[key.upper()] = entry["image"]

    def read(point: str) -> Image.Image | None:
        data = files.get(prefix + image_of.get(point, ""))
        return Image.open(io.BytesIO(data)) if data else None

    return read


def _svg_reader(folder: Path, package: str):
    import resvg_py

    files = _members(folder, package, lambda path: path in ("icons.json", "chars.json"))
    icons, names = json.loads(files["icons.json"]), json.loads(files["chars.json"])

    def read(point: str) -> Image.Image | None:
        name = names.get(point.lower()) or names.get(point.lower() + "-fe0f")
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        if not isinstance(name, str) or name not in icons["icons"]:
            return None
        drawing = f"{SVG_HEAD}{icons['icons'][name]['body']}</svg>"
        data = resvg_py.svg_to_bytes(svg_string=drawing, width=SIZE, height=SIZE)
        return Image.open(io.BytesIO(bytes(data)))

    return read


def _webp_reader(folder: Path, package: str):
    files = _members(folder, package, lambda path: path.startswith("assets/"))

    def read(point: str) -> Image.Image | None:
        names = (f"assets/{point.lower()}.webp", f"assets/{point.lower()}-fe0f.webp")
        data = next((files[name] for name in names if name in files), None)
        return Image.open(io.BytesIO(data)) if data else None

    return read
