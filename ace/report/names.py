"""What runs are called where several are shown."""

from collections.abc import Sequence

from ace.run_store import RunStore


def run_names(stores: Sequence[RunStore]) -> list[str]:
    """The names of the runs' folders, or their whole paths where two have the same name."""
    names = [store.folder.resolve().name for store in stores]
    return names if len(set(names)) == len(names) else [str(store.folder) for store in stores]
