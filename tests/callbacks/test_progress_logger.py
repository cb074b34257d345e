from types import SimpleNamespace

import pytest

from ace import run_progress
from ace.record import Record
from ace.run_progress import RunProgress
from ace.run_store import RunStore
from callbacks.progress_logger import ProgressLogger


class MetricLogger:
    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step):
        self.logged.append((metrics, step))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two processes and its logger; every iteration looks at the records."""
    monkeypatch.setattr(run_progress, "PAUSE", 0.0)
    stores = [RunStore.create(tmp_path / "run", {}, {}, rank) for rank in (0, 1)]
    module = SimpleNamespace(explainer=SimpleNamespace(pool=SimpleNamespace(listeners=[])))
    return SimpleNamespace(stores=stores, module=module, callback=ProgressLogger(RunProgress(stores[0], 4)))


def add(store, name, status="flipped"):
    store.add(Record(id=name, seed=0, status=status, flipped=status == "flipped"), {})


def test_loggers_are_told_whenever_more_images_are_done_anywhere(run):
    logger = MetricLogger()
    trainer = SimpleNamespace(is_global_zero=True, loggers=[logger])
    run.callback.on_predict_start(trainer, run.module)
    [listener] = run.module.explainer.pool.listeners
    listener()
    assert logger.logged == []
    add(run.stores[1], "a")
    listener()
    listener()
    add(run.stores[0], "b", "not_flipped")
    add(run.stores[0], "c", "skipped: why")
    run.callback.on_predict_batch_end(trainer, run.module, None, None, 0)
    assert [step for _, step in logger.logged] == [1, 3]
    assert [metrics["progress/flip_rate"] for metrics, _ in logger.logged] == [1, 0.5]
    assert [metrics["progress/images"] for metrics, _ in logger.logged] == [1, 3]


@pytest.mark.parametrize(
    "trainer", [{"is_global_zero": False, "loggers": [None]}, {"is_global_zero": True, "loggers": []}]
)
def test_no_records_are_read_where_nobody_listens(run, trainer):
    add(run.stores[0], "a")
    run.callback.on_predict_batch_end(SimpleNamespace(**trainer), run.module, None, None, 0)
    assert run.callback.progress.done == 0
