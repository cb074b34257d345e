"""Run folders with pictures of plain colours."""

from unittest.mock import patch

import numpy as np
import pytest

from ace.run_store import Record, RunStore

NAMES = ["<b>cat</b> & 'dog'", "</script><script>document.title = 'hacked'</script>", "bird"]
RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 180, 30)
REASON = "failed: <img src=x onerror=\"document.title = 'hacked'\">"


def plain(colour, size=(20, 30)):
    return np.full((*size, len(colour)), colour, np.uint8)


def explained(id, *, flipped=True, prediction=0, target=1, **numbers):
    known = {"p_before": 0.02, "p_attack": 0.9, "p_after": 0.8, "l1": 0.1, "l2": 2.0, "linf": 0.6}
    known |= {"changed_area": 0.5, "iterations": 30, "unet_forwards": 5, "unet_backwards": 4, "seconds": 1.5}
    status = "flipped" if flipped else "not_flipped"
    return Record(
        id=id, seed=0, prediction=prediction, target=target, flipped=flipped, status=status, **known | numbers
    )


def pictures(before=RED, after=BLUE, size=(20, 30)):
    """Pictures of an image: red on the whole, blue in the upper half afterwards."""
    counterfactual, mask = plain(before, size), plain((0,), size)
    counterfactual[: size[0] // 2], mask[: size[0] // 2] = after, 255
    images = {"original": plain(before, size), "pre_explanation": plain(after, size)}
    return images | {"counterfactual": counterfactual, "mask": mask}


@pytest.fixture(scope="session")
def make_run():
    """Makes a run folder of records, the explained ones with pictures; other arguments go to `pictures`."""

    def make(folder, records, names=NAMES, **options):
        decision = {"class_names": list(names)}
        store = RunStore.create(folder, {"model": {"steps": 25}}, {"decision": decision, "attack": {"steps": 25}})
        with patch("os.fsync", lambda _: None):
            for record in records:
                store.add(record, pictures(**options) if record.explained else {})
        return store

    return make
