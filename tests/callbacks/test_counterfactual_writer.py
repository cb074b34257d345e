import gc
import threading
import time
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ace.explainer import Explanation
from ace.files import WriteError
from ace.images import load_png
from ace.record import Record, read_log
from ace.run_store import RunStore
from ace.saving import save_explanation
from callbacks import counterfactual_writer
from callbacks.counterfactual_writer import CounterfactualWriter


def picture(level):
    return torch.full((3, 4, 6), level / 255)


def explained(name, flipped):
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, :2, :3] = True
    return Explanation(
        id=name,
        original=picture(10),
        status="flipped" if flipped else "not_flipped",
        prediction=0,
        target=1,
        label=1,
        counterfactual=picture(30),
        pre_explanation=picture(20),
        mask=mask,
        p_before=0.1,
        p_attack=0.8,
        p_after=0.7,
        l1=0.2,
        l2=1.5,
        linf=0.3,
        changed_area=0.25,
        iterations=5,
        unet_forwards=15,
        unet_backwards=10,
        seconds=2.5,
        peak_memory=2**30,
    )


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", {}, {})


def test_an_explanation_becomes_four_pictures_and_a_record(store):
    save_explanation(store, explained("a", True), seed=7)
    expected = {"original": 10, "pre_explanation": 20, "counterfactual": 30}
    for kind, level in expected.items():
        stored = load_png(store.image_path(kind, "a"))
        assert stored.shape == (4, 6, 3)
        assert (stored == level).all()
    mask = load_png(store.image_path("mask", "a"))[..., 0]
    assert np.array_equal(mask, np.pad(np.full((2, 3), 255), ((0, 2), (0, 3))))
    assert store.records() == [
        Record(
            id="a", label=1, prediction=0, target=1, p_before=0.1, p_attack=0.8, p_after=0.7, flipped=True,
            l1=0.2, l2=1.5, linf=0.3, changed_area=0.25, iterations=5, repairs=0, unet_forwards=15, unet_backwards=10,
            seconds=2.5, peak_memory=2**30, seed=7, status="flipped",
        )
    ]  # fmt: skip


def test_a_skipped_image_keeps_its_original_and_its_reason(store):
    save_explanation(store, Explanation("b", picture(10), "skipped: already so", prediction=1), seed=0)
    assert store.image_path("original", "b").exists()
    assert not store.image_path("counterfactual", "b").exists()
    [record] = store.records()
    assert (record.status, record.prediction, record.p_after, record.flipped) == ("skipped: already so", 1, None, False)


@pytest.fixture
def gate(monkeypatch):
    """Holds up whatever is to be written until it is set."""
    gate, add = threading.Event(), RunStore.add

    def add_behind_gate(*arguments):
        assert gate.wait(30)
        add(*arguments)

    monkeypatch.setattr(RunStore, "add", add_behind_gate)
    yield gate
    gate.set()


@pytest.fixture
def writer(store):
    return CounterfactualWriter(store, seed=7)


@pytest.fixture
def module():
    """A module in the middle of a step, whose explainer has finished what is in ``ready``."""
    ready = []
    explainer = SimpleNamespace(
        pool=SimpleNamespace(listeners=[]), take_finished=lambda: [ready.pop(0) for _ in range(len(ready))]
    )
    return SimpleNamespace(explainer=explainer, ready=ready)


@pytest.fixture
def listener(writer, module):
    """What the attack calls after each iteration."""
    writer.on_predict_start(SimpleNamespace(is_global_zero=True), module)
    [listener] = module.explainer.pool.listeners
    return listener


def finish(writer, *names):
    writer.on_predict_batch_end(None, None, [explained(name, True) for name in names], None, 0)


def open_soon(gate):
    threading.Timer(0.2, gate.set).start()


def written(store):
    """Ids in the order in which they were written."""
    return [values["id"] for log in store.logs() for values, _ in read_log(log)]


def test_the_callback_writes_the_outcomes_of_all_batches_in_their_order(store, writer):
    skipped, failed = (Explanation(name, picture(10), f"{name}: why") for name in ("skipped", "failed"))
    batches = [[skipped], [explained("c", True), failed], [], [explained("b", False), explained("a", True)]]
    for index, outputs in enumerate(batches):
        writer.on_predict_batch_end(None, None, outputs, None, index)
    writer.on_predict_end(None, None)
    assert written(store) == ["skipped", "c", "failed", "b", "a"]
    assert {record.id: record.flipped for record in store.records() if record.explained} == {
        "a": True,
        "b": False,
        "c": True,
    }
    assert {record.seed for record in store.records()} == {7}


def test_the_run_goes_on_while_its_explanations_are_written(store, writer, listener, gate):
    finish(writer, "a", "b")
    listener()
    assert written(store) == []
    gate.set()
    writer.flush()
    assert written(store) == ["a", "b"]


def test_what_is_finished_is_written_while_its_step_goes_on(store, writer, module, listener):
    for name in "ab":
        module.ready.append(explained(name, True))
        listener()
    finish(writer, "c")
    module.ready.append(explained("d", True))
    writer.on_exception(None, module, SystemExit(143))
    assert written(store) == list("abcd")


def test_what_waits_holds_no_tensors(writer, gate):
    explanation = explained("a", True)
    tensors = [weakref.ref(value) for value in vars(explanation).values() if isinstance(value, torch.Tensor)]
    writer.on_predict_batch_end(None, None, [explanation], None, 0)
    del explanation
    gc.collect()
    assert len(tensors) == 4
    assert not any(tensor() is not None for tensor in tensors)


def test_the_run_waits_when_many_explanations_do(store, writer, gate, monkeypatch):
    monkeypatch.setattr(counterfactual_writer, "PENDING", 2)
    finish(writer, "a", "b")
    assert written(store) == []
    open_soon(gate)
    for count, name in enumerate("cdef", start=3):
        finish(writer, name)
        assert len(written(store)) >= count - 2
    writer.flush()
    assert written(store) == list("abcdef")


@pytest.mark.parametrize(
    "end",
    [
        lambda writer, module: writer.on_predict_end(None, module),
        lambda writer, module: writer.on_exception(None, module, SystemExit(143)),
        lambda writer, module: writer.flush(),
    ],
    ids=["end", "exception", "flush"],
)
@pytest.mark.filterwarnings("error")
def test_however_the_run_ends_all_is_written_before(end, store, writer, module, gate):
    finish(writer, "a", "b", "c")
    open_soon(gate)
    end(writer, module)
    assert written(store) == ["a", "b", "c"]


@pytest.fixture
def failing(store, writer, listener):
    """A writer that cannot write one of three images, which the run does not know yet."""
    store.image_path("mask", "b").mkdir(parents=True)
    finish(writer, "a", "b", "c")
    return writer


REFUSED = r"mask/b\.png cannot be written \(Is a directory\)"


def test_an_iteration_ends_the_run_that_cannot_write_and_the_other_images_are_written(store, failing, module, listener):
    def iterate():
        end = time.monotonic() + 30
        while time.monotonic() < end:
            listener()

    with pytest.raises(WriteError, match=REFUSED) as error:
        iterate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failing.on_exception(None, module, error.value)
    assert written(store) == ["a", "c"]


@pytest.mark.parametrize(
    "hook",
    [
        lambda writer: writer.on_predict_end(None, None),
        lambda writer: finish(writer, *"defg"),
        CounterfactualWriter.flush,
    ],
    ids=["end", "batch", "flush"],
)
def test_the_run_that_cannot_write_ends_with_the_reason(hook, failing, monkeypatch):
    monkeypatch.setattr(counterfactual_writer, "PENDING", 2)
    with pytest.raises(WriteError, match=REFUSED):
        hook(failing)


def test_the_others_of_a_batch_are_written_when_one_cannot_be(store, failing, module, monkeypatch):
    monkeypatch.setattr(counterfactual_writer, "PENDING", 1)
    with pytest.raises(WriteError, match=REFUSED) as error:
        finish(failing, *"defg")
    failing.on_exception(None, module, error.value)
    assert written(store) == list("acdefg")


def test_a_run_that_ends_by_another_error_tells_what_could_not_be_written(store, failing, module):
    with pytest.warns(UserWarning, match=f"1 finished images could not be stored: .*{REFUSED}"):
        failing.on_exception(None, module, RuntimeError())
    assert written(store) == ["a", "c"]
