"""What runs are called where several are shown."""

from collections.abc import Sequence
from itertools import takewhile

from ace.run_store import RunStore


def run_names(stores: Sequence[RunStore]) -> list[str]:
    """The names of the runs' folders; where two have the same, the parts of the paths that are not the same in all."""
    paths = [store.folder.resolve().parts for store in stores]
    names = [parts[-1] for parts in paths]
    if len(set(names)) < len(names):
        first, last = _shared(paths), _shared([parts[::-1] for parts in paths])
        names = ["/".join(parts[first : len(parts) - last]) or parts[-1] for parts in paths]
    return names if len(set(names)) == len(names) else [str(store.folder) for store in stores]


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """How many parts all paths begin with."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
