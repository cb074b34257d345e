"""Examples of runs as a picture: the gallery of a run, and figures for a paper."""

from collections.abc import Sequence
from pathlib import Path

from ace.images import load_png
from ace.record import Record
from ace.report.change import heat_map
from ace.report.names import run_names
from ace.report.sheet import BAD, GOOD, GREY, Tile, draw_sheet, save_sheet
from ace.run_store import RunStore


def write_gallery(store: RunStore, max_images: int = 16) -> Path:
    """Write `gallery.png` into a run folder: original, pre-explanation, counterfactual and change.

    The examples are spread evenly over directions and ids, successes and failures alike: nothing is picked.

    Args:
        store: the run.
        max_images: most examples to draw, at least 1.

    Returns:
        Path of the file.

    Raises:
        ValueError: `max_images` is below 1, or no finished image of the run has pictures.
        WriteError: the disk is full, or the folder cannot be written.
    """
    records = store.records()
    chosen = _spread(store, [record for record in records if record.explained], max_images)
    attempted = [record for record in records if record.attempted]
    title = f"Counterfactual explanations: {sum(record.flipped for record in attempted)} of {len(attempted)} flipped"
    headings = ("Original", "Pre-explanation", "Counterfactual", "Change")
    sheet = draw_sheet([_gallery_row(store, record) for record in chosen], headings, title)
    return save_sheet(sheet, store.folder / "gallery.png", dpi=140)


def write_figure(
    stores: Sequence[RunStore],
    path: str | Path,
    ids: Sequence[str] | None = None,
    max_images: int = 6,
    width: float = 6.9,
    dpi: int = 300,
) -> Path:
    """Write examples of one or several runs as a figure for a paper, a row an image.

    A row holds the original, and from each run the counterfactual and the change, with the names of the classes
    and the probability of the target before and after.

    Args:
        stores: the runs, which name the columns by their folders where they are several.
        path: file to write or replace, `.pdf` or `.png`.
        ids: the images, in this order; by default spread evenly over the directions and ids of the first run.
        max_images: most images to choose where no ids are given.
        width: width of the figure in inches; 6.9 are both columns of a page.
        dpi: pixels in an inch of the pictures.

    Returns:
        The path.

    Raises:
        ValueError: an id is not explained in all runs, no id is, the name of the file ends otherwise, or the
            pictures do not fit in the width.
        FileNotFoundError: the file's folder does not exist.
        WriteError: the disk is full, or the folder cannot be written.
    """
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: make it first")
    by_id = [{record.id: record for record in store.records() if record.explained} for store in stores]
    if ids is None:
        shared = [record for id, record in by_id[0].items() if all(id in run for run in by_id)]
        if by_id[0] and not shared:
            raise ValueError(f"there is no explained image that {', '.join(str(s.folder) for s in stores)} share")
        ids = [record.id for record in _spread(stores[0], shared, max_images)]
    for store, run in zip(stores, by_id, strict=True):
        if missing := [id for id in ids if id not in run]:
            raise ValueError(f"{store.folder} holds no explained image {missing[0]!r}: see the ids in its records.csv")
    names = ["Counterfactual"] if len(stores) == 1 else run_names(stores)
    headings = ["Original", *(heading for name in names for heading in (name, "Change"))]
    sheet = draw_sheet([_figure_row(stores, [run[id] for run in by_id]) for id in ids], headings, width=width)
    return save_sheet(sheet, path, dpi)


def _spread(store: RunStore, records: Sequence[Record], count: int) -> list[Record]:
    """Some of the records, spread evenly over directions and, in each, over the sorted ids."""
    if count < 1:
        raise ValueError(f"max_images must be at least 1, got {count}")
    if not records:
        raise ValueError(f"{store.folder} holds no explained image to draw: run `generate` first")
    ordered = sorted(records, key=lambda record: (store.direction(record), record.id))
    count = min(count, len(ordered))
    return [ordered[index * len(ordered) // count] for index in range(count)]


def _gallery_row(store: RunStore, record: Record) -> list[Tile]:
    picture = load_png(store.image_path("pre_explanation", record.id))
    attack = f" {_number(record.p_attack, '.2f')}"
    between = Tile(picture, "before refinement", store.target_name(record.target), attack, GREY)
    return [_original(store, record), between, _counterfactual(store, record), _change(store, record)]


def _figure_row(stores: Sequence[RunStore], records: Sequence[Record]) -> list[Tile]:
    pairs = [(_counterfactual(*run), _change(*run)) for run in zip(stores, records, strict=True)]
    return [_original(stores[0], records[0]), *(tile for pair in pairs for tile in pair)]


def _original(store: RunStore, record: Record) -> Tile:
    picture = load_png(store.image_path("original", record.id))
    target, before = store.target_name(record.target), _number(record.p_before, ".2f")
    return Tile(picture, store.class_name(record.prediction), target, f" {before}")


def _counterfactual(store: RunStore, record: Record) -> Tile:
    picture = load_png(store.image_path("counterfactual", record.id))
    verdict, colour = ("flipped", GOOD) if record.flipped else ("not flipped", BAD)
    before, after = (_number(p, ".2f") for p in (record.p_before, record.p_after))
    return Tile(picture, verdict, store.target_name(record.target), f" {before} → {after}", colour)


def _change(store: RunStore, record: Record) -> Tile:
    pictures = (load_png(store.image_path(kind, record.id)) for kind in ("original", "counterfactual"))
    area, mean = _number(record.changed_area, ".1%"), _number(record.l1, ".4f")
    return Tile(heat_map(*pictures), f"{area} repainted", "mean change", f" {mean}", framed=True)


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
