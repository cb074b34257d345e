"""The order of the training images and their random transforms: functions of seed, epoch and position alone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading import KeyedDataset, KeyedSampler, Mirrored, ResumableLoader

ROOT = Path(__file__).parents[2]


class Noisy(torch.utils.data.Dataset):
    """Each sample is its index and a draw from torch's global stream, as a random transform makes it."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"index": index, "draw": torch.rand(())}


def loader(count=11, batch_size=2, seed=0, rank=0, world_size=1, **options):
    sampler = KeyedSampler(Noisy(count), batch_size, seed, rank, world_size)
    return ResumableLoader(KeyedDataset(Noisy(count)), sampler, batch_size=batch_size, **options)


def epoch(made, number):
    made.sampler.set_epoch(number)
    return [(batch["index"].tolist(), batch["draw"].tolist()) for batch in made]


def test_epochs_and_seeds_differ_and_repeat():
    first = epoch(loader(), 0)
    assert len(first) == len(loader()) == 5
    assert len({index for indices, _ in first for index in indices}) == 10
    assert epoch(loader(), 0) == first
    assert epoch(loader(), 1) != first != epoch(loader(seed=1), 0)


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 1), (2, 5)])
def test_a_loaded_state_gives_the_rest(place):
    number, batches = place
    made = loader()
    made.sampler.set_epoch(number)
    iterator = iter(made)
    for _ in range(batches):
        next(iterator)
    state = made.state_dict()

    later = loader()
    later.load_state_dict(state)
    ended = batches == 5
    later.sampler.set_epoch(number + ended)  # as Lightning does, whatever was loaded
    found = [(batch["index"].tolist(), batch["draw"].tolist()) for batch in later]
    assert found == (epoch(loader(), number + 1) if ended else epoch(loader(), number)[batches:])
    assert epoch(later, number + 2) == epoch(loader(), number + 2), "the next epoch is whole again"
    assert len(later) == 5, "Lightning counts the batches of a whole epoch"


def test_workers_and_what_was_drawn_before_change_nothing():
    alone = epoch(loader(), 1)
    torch.rand(100)
    assert epoch(loader(num_workers=2), 1) == alone


def test_reading_a_sample_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    KeyedDataset(Noisy(4))[2, 77]
    assert torch.equal(torch.rand(3), expected)


@given(count=st.integers(4, 40), world_size=st.integers(1, 4), batch_size=st.integers(1, 3), number=st.integers(0, 3))
def test_processes_share_the_batches_of_one(count, world_size, batch_size, number):
    single = KeyedSampler(Noisy(count), batch_size * world_size)
    shares = [KeyedSampler(Noisy(count), batch_size, 0, rank, world_size) for rank in range(world_size)]
    for sampler in (single, *shares):
        sampler.set_epoch(number)
    whole, parts = list(single), [list(share) for share in shares]
    assert len({len(part) for part in parts}) == 1
    for step in range(single.batches):
        step_images = {place for part in parts for place in part[step * batch_size : (step + 1) * batch_size]}
        assert step_images == set(whole[step * batch_size * world_size : (step + 1) * batch_size * world_size])


SIGNALS = """
import os, subprocess
import psutil, torch
from torch.utils.data import DataLoader
from datamodules.loading import heed_parent_alone

class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return os.getpid()

def begin():
    batches = iter(DataLoader(Pids(), num_workers=1, worker_init_fn=heed_parent_alone))
    return batches, next(batches).item()

batches, worker = begin()
for name in ("-INT", "-TERM", "-TERM"):
    subprocess.run(["kill", name, str(worker)], check=True)
assert {batch.item() for batch in batches} == {worker}

batches, worker = begin()
process = psutil.Process(worker)
process.terminate()
assert process.wait(10) == 0
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who has sent a signal")
def test_a_loading_process_ends_when_its_parent_says_so_and_at_no_other_signal():
    """In a process of its own: a fork of this one inherits what other tests have left."""
    subprocess.run([sys.executable, "-c", SIGNALS], cwd=ROOT, check=True, timeout=120)


def test_chance_comes_from_torch_and_mirrors_half():
    straight = torch.rand(3, 4, 4)
    mirrored = Mirrored([{"image": straight, "id": "a"}])

    def reads():
        torch.manual_seed(3)
        return [mirrored[0]["image"] for _ in range(60)]

    flipped = [torch.equal(image, straight.flip(-1)) for image in reads()]
    assert 15 < sum(flipped) < 45
    assert flipped == [not torch.equal(image, straight) for image in reads()]
