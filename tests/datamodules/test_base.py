from types import SimpleNamespace

import lightning
import pytest
import torch

from datamodules import ImageDataModule


class Squares(torch.utils.data.Dataset):
    def __init__(self, split, size):
        self.ids = [f"{split}-{index}" for index in range(size)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"image": torch.full((1, 2, 2), index / 10), "label": index % 2, "id": self.ids[index]}


class SquaresDataModule(ImageDataModule):
    image_size, channels = 2, 1

    def __init__(self, size=10, **settings):
        super().__init__(**settings)
        self.class_names = ["even", "odd"]
        self.size = size

    def dataset(self, split):
        return Squares(split, self.size)


def ids_of(loader):
    return [image_id for batch in loader for image_id in batch["id"]]


def test_one_number_stands_for_both_sides_of_an_image():
    data = SquaresDataModule()
    assert data.shape == (1, 2, 2)
    data.image_size = (4, 8)
    assert data.shape == (1, 4, 8)


@pytest.mark.parametrize("world_size", [1, 3, 10])
def test_evaluation_sees_every_image_once_and_needs_one_for_each_device(world_size):
    shares = []
    for rank in range(world_size):
        data = SquaresDataModule(batch_size=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_devices=1)
        shares += ids_of(data.val_dataloader())
    assert sorted(shares) == [f"val-{i}" for i in range(10)]
    data.trainer = SimpleNamespace(global_rank=0, world_size=11, num_devices=1)
    with pytest.raises(ValueError, match="val split has 10 images for 11 devices"):
        data.val_dataloader()


def test_the_place_in_the_training_data_is_kept_and_given_back():
    data = SquaresDataModule(batch_size=2)
    assert data.state_dict() == {}
    batches = iter(data.train_dataloader())
    head = [next(batches)["id"] for _ in range(2)]
    later = SquaresDataModule(batch_size=2)
    later.load_state_dict(data.state_dict())
    rest = [batch["id"] for batch in later.train_dataloader()]
    assert head + rest == [batch["id"] for batch in SquaresDataModule(batch_size=2).train_dataloader()]


@pytest.mark.parametrize(("cores", "devices", "workers"), [(1, 1, 0), (2, 1, 1), (16, 2, 7), (64, 2, 8), (2, 4, 0)])
def test_workers_by_default_share_the_cores(cores, devices, workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    data = SquaresDataModule()
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, num_devices=devices)
    assert data.val_dataloader().num_workers == workers
    assert SquaresDataModule(num_workers=3).val_dataloader().num_workers == 3


def test_num_images_counts_from_the_start_of_the_split_whatever_is_finished():
    data = SquaresDataModule(num_images=4, predict_split="val")
    assert ids_of(data.predict_dataloader()) == ["val-0", "val-1", "val-2", "val-3"]
    data.finished_ids = lambda: {"val-1", "val-7"}
    assert ids_of(data.predict_dataloader()) == ["val-0", "val-2", "val-3"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_takes_the_predict_loader_as_it_is(num_workers):
    class Recorder(lightning.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch["id"], self.trainer.predict_loop.batch_progress.is_last_batch

    data = SquaresDataModule(batch_size=4, num_images=6, num_workers=num_workers)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, barebones=True)
    assert trainer.predict(Recorder(), data) == [
        (["test-0", "test-1", "test-2", "test-3"], False),
        (["test-4", "test-5"], True),
    ]
    data.finished_ids = lambda: set(data.predict_ids())
    assert trainer.predict(Recorder(), data) == [], "nothing is left"


def test_all_processes_work_on_the_list_of_the_first(monkeypatch):
    sent = []
    store = torch.distributed.HashStore()
    monkeypatch.setattr("datamodules.base.distributed_c10d._get_default_store", lambda: store)
    queues = []
    for rank, finished in enumerate([{"test-0"}, set()]):  # the second does not see the record yet
        data = SquaresDataModule(batch_size=2)
        data.finished_ids = lambda finished=finished: finished
        strategy = SimpleNamespace(broadcast=lambda value: sent.append(value) or sent[0])
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=1, strategy=strategy)
        queues.append(iter(data.predict_dataloader()))
    seen = [image_id for queue in queues for image_id in next(queue)["id"]]
    seen += [image_id for queue in queues for batch in queue for image_id in batch["id"]]
    assert sorted(seen) == [f"test-{i}" for i in range(1, 10)]


def test_training_shuffles_and_drops_the_incomplete_batch_and_evaluation_does_neither():
    data = SquaresDataModule(batch_size=4)
    loader = data.train_dataloader()
    first = ids_of(loader)
    loader.sampler.set_epoch(1)
    second = ids_of(loader)
    assert len(first) == len(second) == 8
    assert first != second
    assert ids_of(data.val_dataloader()) == [f"val-{i}" for i in range(10)]
    assert ids_of(data.test_dataloader()) == [f"test-{i}" for i in range(10)]


def test_batches_are_float_images_with_labels():
    batch = next(iter(SquaresDataModule(batch_size=3).val_dataloader()))
    assert batch["image"].shape == (3, 1, 2, 2)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"num_workers": -1}, {"num_images": 0}])
def test_settings_out_of_range_are_named(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"{name} is {value}: give"):
        SquaresDataModule(**settings)


def test_too_many_images_or_too_few_are_reported():
    with pytest.raises(ValueError, match=r"num_images is 11, but the test split has 10"):
        SquaresDataModule(num_images=11).predict_dataloader()
    with pytest.raises(ValueError, match=r"10 images, fewer than batch_size=16 for each of 1 devices: lower"):
        SquaresDataModule(batch_size=16).train_dataloader()
    for loader in ("train", "val", "test", "predict"):
        with pytest.raises(ValueError, match="split of SquaresDataModule is empty"):
            getattr(SquaresDataModule(size=0), f"{loader}_dataloader")()
