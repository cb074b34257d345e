"""Pictures that the page shows and `generate` does not write: change maps, and thumbnails of large images."""

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ace.files import check_inside, make_folder, write_whole, writing
from ace.images import load_png, reading, save_png
from ace.report.change import heat_map
from ace.run_store import IMAGE_KINDS, RunStore

THUMBNAIL = 384
"""Longest side of a thumbnail in pixels; images up to this size have none."""

_THUMBNAILED = ("original", "counterfactual")  # maps are small files as they are


def image_size(store: RunStore) -> tuple[int, int] | None:
    """Width and height of a run's images, which are all of one size; None where there are none."""
    path = next((store.folder / "images" / "original").glob("*.png"), None)
    if path is None:
        return None
    with Image.open(path) as image:
        return image.size


def kinds_by_id(store: RunStore) -> dict[str, list[str]]:
    """Which pictures there are of each image, in the order of `IMAGE_KINDS`."""
    found: dict[str, list[str]] = {}
    for kind in IMAGE_KINDS:
        for path in (store.folder / "images" / kind).glob("*.png"):
            found.setdefault(path.stem, []).append(kind)
    return found


def draw_pictures(store: RunStore, ids: Iterable[str]) -> None:
    """Draw the change map of every image that has a counterfactual, and thumbnails if the images are large.

    What is newer than the pictures that it comes from is not drawn again.

    Raises:
        ValueError: a folder of the pictures is a link that leads out of the run folder.
        WriteError: the disk is full, or the folder cannot be written.
    """
    large = max(image_size(store) or [0]) > THUMBNAIL
    folders = ["change", *(f"thumbnail/{kind}" for kind in _THUMBNAILED if large)]
    for folder in (store.folder / "images" / name for name in folders):
        check_inside(folder, store.folder)
        with writing(folder):
            make_folder(folder)
    with ThreadPoolExecutor() as pool:  # PIL decodes and the disk flushes without holding the interpreter
        for _ in pool.map(lambda id: _draw(store, id, large), ids):
            pass


def _draw(store: RunStore, id: str, large: bool) -> None:
    before, after, change = (store.image_path(kind, id) for kind in ("original", "counterfactual", "change"))
    if before.exists() and after.exists() and not _is_newer(change, before, after):
        changes = heat_map(load_png(before), load_png(after))
        with writing(change):
            save_png(changes, change)
    for kind in _THUMBNAILED if large else ():
        picture = store.image_path(kind, id)
        thumbnail = store.folder / "images" / "thumbnail" / kind / f"{id}.jpg"
        if picture.exists() and not _is_newer(thumbnail, picture):
            small = _thumbnail(picture)
            with writing(thumbnail):
                write_whole(small, thumbnail)


def _thumbnail(picture: Path) -> bytes:
    """A JPEG file of the picture, made small."""
    buffer = io.BytesIO()
    with reading(picture), Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _is_newer(path: Path, *sources: Path) -> bool:
    return path.exists() and os.stat(path).st_mtime_ns >= max(os.stat(source).st_mtime_ns for source in sources)
