"""The HTML pages of runs: one file each that opens from the disk beside the runs' images."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ace.files import write_whole, writing
from ace.plain_values import flatten
from ace.record import FIELDS, Record, outcome_and_reason
from ace.report.change import RAMP
from ace.report.names import run_names
from ace.report.pictures import THUMBNAIL, draw_pictures, image_size, kinds_by_id
from ace.run_store import RunStore

REPRODUCE = "generate.yaml"
"""The configuration of a run as a file that `explain.py generate --config` takes; the report writes it."""

_VERDICTS = 8  # of directions
_METRIC_HEADS = ("metric", "value", "95 % interval", "n", "images", "convention")
_CHANGE_HEADS = ("attribute", "changed", "95 % interval", "appeared", "went", "changed without the query")
_CORRELATION_HEADS = (
    "attribute", "with the decision, in the originals", "95 % interval", "its change with the decision's",
    "its change with the query's", "with the query, in the data",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of the page: its title, the heads of its columns, and rows that begin with their own head."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_report(store: RunStore) -> Path:
    """Write `report.html` into a run folder, with the change maps and thumbnails that it shows and `generate.yaml`.

    The page needs no network and no server: style and script are inside, pictures are linked relative to it.

    Args:
        store: the run; `metrics.json` is shown if there is one, and `audit.json` if it is of all its records.

    Returns:
        Path of the page.

    Raises:
        ValueError: the run holds no records.
        WriteError: the disk is full, or the folder cannot be written.
    """
    records = _records(store)
    draw_pictures(store, [record.id for record in records])
    audit = _audit(store, records)
    return _write_page(
        store.folder / "report.html",
        {store.folder.resolve().name: store},
        [records],
        tables=[
            *_tables_of_run(_metrics(store)),
            *_tables_of_audit(audit),
            Table("Settings", (), list(flatten(store.settings).items())),
        ],
        verdicts=_verdicts(audit),
        reproduce=_reproduce(store),
    )


def _reproduce(store: RunStore) -> dict[str, str] | None:
    """The command that makes the run again, and its configuration, which is written into the folder.

    There is none for a refined run: its pre-explanations are another run's, and `generate` would repair them. Nor for
    a run that was made from Python, of which no configuration is known.
    """
    if "refined_from" in store.settings or not store.names_networks:
        return None
    config = yaml.safe_dump(store.config, sort_keys=False, allow_unicode=True)
    _write(store.folder / REPRODUCE, f"# The configuration of this run, for explain.py generate --config\n{config}")
    again = store.folder.with_name(f"{store.folder.resolve().name}-again")
    arguments = ["--config", str(store.folder / REPRODUCE), "--output_dir", str(again)]
    return {"command": f"python explain.py generate {shlex.join(arguments)}", "config": config}


def write_comparison(stores: Sequence[RunStore]) -> Path:
    """Write `compare.html` into the first run's folder: the images that all the runs have, side by side.

    Args:
        stores: the runs, two or more; each gets its own `report.html`, too.

    Returns:
        Path of the page.

    Raises:
        ValueError: one run alone, a run given twice, one without records, or no image that all runs have.
        WriteError: the disk is full, or a folder cannot be written.
    """
    folders = [store.folder.resolve() for store in stores]
    if len(set(folders)) < max(2, len(folders)):
        raise ValueError(f"a comparison needs different runs, got {', '.join(str(folder) for folder in folders)}")
    runs = [{record.id: record for record in _records(store)} for store in stores]
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    if not shared:
        raise ValueError(f"{', '.join(str(store.folder) for store in stores)} have no image in common")
    for store in stores:
        write_report(store)
    named = dict(zip(run_names(stores), stores, strict=True))
    return _write_page(
        stores[0].folder / "compare.html",
        named,
        [[run[id] for id in shared] for run in runs],
        tables=[_metrics_side_by_side(named), _different_settings(named)],
    )


def _records(store: RunStore) -> list[Record]:
    records = store.records()
    if not records:
        raise ValueError(f"{store.folder} holds no records to report: run `generate` first")
    return records


def _write_page(
    path: Path,
    stores: dict[str, RunStore],
    records: list[list[Record]],
    tables: list[Table],
    verdicts: dict[str, str] | None = None,
    reproduce: dict[str, str] | None = None,
) -> Path:
    """Render the page of runs by name, which have the same images in the same order."""
    runs = [_run(name, store, found, path.parent) for (name, store), found in zip(stores.items(), records, strict=True)]
    images = [image for run in runs for image in run["images"]]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    html = environment.get_template("page.html.jinja").render(
        title=" and ".join(stores),
        runs=runs,
        directions=sorted({image["direction"] for image in images}),
        outcomes=sorted({image["outcome"] for image in images}),
        summaries=[_summary(found) for found in records],
        tables=[table for table in tables if table.rows],
        verdicts=verdicts or {},
        reproduce=reproduce,
        ramp=["#{:02x}{:02x}{:02x}".format(*colour) for colour in RAMP],
    )
    _write(path, html)
    return path


def _run(name: str, store: RunStore, records: list[Record], page: Path) -> dict[str, Any]:
    """What the page's script knows of a run; paths are relative to the page, and ready for a URL."""
    size, kinds = image_size(store), kinds_by_id(store)
    base = quote(Path(os.path.relpath(store.folder.resolve(), page.resolve())).as_posix())
    images = []
    for record in records:
        images.append(
            {field: getattr(record, field) for field in FIELDS}
            | {
                "prediction": store.class_name(record.prediction),
                "target": store.target_name(record.target),
                "direction": store.direction(record),
                "outcome": outcome_and_reason(record.status)[0],
                "kinds": kinds.get(record.id, []),
            }
        )
    return {
        "name": name,
        "base": base,
        "size": size,
        "thumbnails": size is not None and max(size) > THUMBNAIL,
        "images": images,
    }


def _metrics(store: RunStore) -> dict[str, Any]:
    path = store.folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _tables_of_run(metrics: dict[str, Any]) -> list[Table]:
    measured = [
        (name, value["value"], _interval(value["interval"]), value["n"], value["subset"], value["convention"])
        for name, value in metrics.get("metrics", {}).items()
    ]
    directions = metrics.get("directions", {})
    heads = list(dict.fromkeys(head for numbers in directions.values() for head in numbers))
    rows = [(name, *(numbers.get(head) for head in heads)) for name, numbers in directions.items()]
    return [
        Table("Metrics", _METRIC_HEADS, measured),
        Table("Directions", ("direction", *heads), rows),
        Table("Status", ("status", "images"), list(metrics.get("status", {}).items())),
    ]


def _audit(store: RunStore, records: list[Record]) -> dict[str, Any]:
    """What `ace.audit` found, unless images have been explained since."""
    path = store.folder / "audit.json"
    audit = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    counts = sum(record.explained for record in records), sum(record.flipped for record in records)
    return audit if (audit.get("images"), audit.get("n")) == counts else {}


def _verdicts(audit: dict[str, Any]) -> dict[str, str]:
    largest = list(audit.get("directions", {}).items())[:_VERDICTS]
    found = {name: direction["verdict"] for name, direction in largest}
    return found | ({"all directions": audit["verdict"]} if audit.get("verdict") else {})


def _tables_of_audit(audit: dict[str, Any]) -> list[Table]:
    changes = [
        (
            f"{name}: {attribute}",
            f"{change['share']:.0%}",
            "{:.0%} to {:.0%}".format(*change["interval"]),
            *(change[head] for head in ("appeared", "went", "without_query")),
        )
        for name, direction in audit.get("directions", {}).items()
        for attribute, change in direction["changes"].items()
    ]
    correlations = [
        (name, row["originals"], _interval(row["interval"]), row["changes"], row["with_query"], row["in_data"])
        for name, row in audit.get("correlations", {}).items()
    ]
    return [
        Table("Attributes that change", _CHANGE_HEADS, changes),
        Table("Correlations of attributes", _CORRELATION_HEADS, correlations),
    ]


def _metrics_side_by_side(stores: dict[str, RunStore]) -> Table:
    runs = [_metrics(store).get("metrics", {}) for store in stores.values()]
    names = dict.fromkeys(name for run in runs for name in run)
    rows = [(name, *(_measured(run.get(name)) for run in runs)) for name in names]
    return Table("Metrics, with 95 % intervals", ("metric", *stores), rows)


def _different_settings(stores: dict[str, RunStore]) -> Table:
    runs = [flatten(store.settings) for store in stores.values()]
    keys = dict.fromkeys(key for run in runs for key in run)
    rows = [(key, *(run.get(key) for run in runs)) for key in keys]
    return Table("Settings that differ", ("setting", *stores), [row for row in rows if row[1:] != row[1:2] * len(runs)])


def _measured(value: dict[str, Any] | None) -> str:
    if value is None:
        return _number(None)
    return _number(value["value"]) + (f" ({_interval(value['interval'])})" if value["interval"] else "")


def _interval(interval: Sequence[float] | None) -> str:
    return _number(None) if interval is None else " to ".join(map(_number, interval))


def _summary(records: Sequence[Record]) -> dict[str, str]:
    attempted = [record for record in records if record.attempted]
    flipped = sum(record.flipped for record in attempted)
    share = f" ({flipped / len(attempted):.1%})" if attempted else ""
    distances = [record.l1 for record in records if record.l1 is not None]
    areas = [record.changed_area for record in records if record.changed_area is not None]
    seconds = [record.seconds for record in records if record.seconds is not None]
    return {
        "Images": str(len(records)),
        "Flipped": f"{flipped} of {len(attempted)} attempted{share}",
        "Mean change (L1)": _number(fmean(distances) if distances else None),
        "Repainted area": f"{fmean(areas):.1%} of pixels" if areas else "—",
        "Time per image": f"{median(seconds):.1f} s (median)" if seconds else "—",
    }


def _number(value: Any) -> str:
    """Floats to four significant digits, a dash for what there is not, anything else as it is."""
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    with writing(path):
        write_whole(text.encode(), path)
