import threading
import time

import pytest
import torch
from torch.distributed import HashStore

from datamodules.work_queue import WorkQueue


class Numbers(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"id": str(index), "image": torch.tensor(index)}


def sizes(queue):
    return [len(batch["id"]) for batch in queue]


def in_parallel(count, size, batch_size, pause=lambda process: 0.0, **options):
    """What each of some processes, here threads, draws from one counter; a process takes its time for each image."""
    store, taken = HashStore(), [[] for _ in range(count)]

    def work(process):
        for batch in WorkQueue(Numbers(size), batch_size, store, "key", count, **options):
            time.sleep(pause(process) * len(batch["id"]))
            taken[process] += batch["id"]

    threads = [threading.Thread(target=work, args=(process,)) for process in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def test_one_process_takes_full_batches_in_order():
    batches = list(WorkQueue(Numbers(7), 3, HashStore(), "key"))
    assert [batch["id"] for batch in batches] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert batches[0]["image"].tolist() == [0, 1, 2]
    assert batches[0]["unreadable"] == []


@pytest.mark.parametrize("size", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_image_is_drawn_once(count, size):
    taken = in_parallel(count, size, batch_size=4)
    assert sorted(int(name) for share in taken for name in share) == list(range(size))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_workers_change_nothing(workers):
    taken = in_parallel(2, 20, batch_size=4, num_workers=workers)
    assert sorted(int(name) for share in taken for name in share) == list(range(20))


def test_a_slow_process_does_less_and_all_end_together():
    ended = {}

    def pause(process):
        ended[process] = time.monotonic()
        return 0.02 if process == 0 else 0.002

    slow, *fast = in_parallel(3, 300, batch_size=8, pause=pause)
    assert len(slow) < min(map(len, fast)) / 3, "fixed shares would be equal"
    assert abs(ended[0] - max(ended[1], ended[2])) < 0.5, "fixed shares would end 1.8 s apart"


def test_draws_get_smaller_towards_the_end_and_are_batches_before():
    drawn = sizes(WorkQueue(Numbers(200), 10, HashStore(), "key", processes=2))
    assert sum(drawn) == 200
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[0] == 10
    assert drawn[-3:] == [1, 1, 1]


def test_queues_with_other_names_do_not_share():
    store = HashStore()
    assert sizes(WorkQueue(Numbers(3), 3, store, "first")) == [3]
    assert sizes(WorkQueue(Numbers(3), 3, store, "second")) == [3]
    assert sizes(WorkQueue(Numbers(3), 3, store, "first")) == [], "everything of it is drawn"
