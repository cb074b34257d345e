"""How much memory is free."""

import psutil
import pytest
import torch

from ace import memory
from ace.memory import free_memory

CPU = torch.device("cpu")


@pytest.fixture
def groups(tmp_path):
    """Makes the files of control groups; gives the folder of all groups and the file that names the process's own."""

    def make(membership, **files):
        (tmp_path / "membership").write_text(membership)
        for path, text in files.items():
            file = tmp_path / "groups" / path.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "groups", tmp_path / "membership"

    return make


def group(folder, limit, used, cached=0):
    return {
        f"{folder}memory_dot_max": f"{limit}\n",
        f"{folder}memory_dot_current": f"{used}\n",
        f"{folder}memory_dot_stat": f"anon {used - cached}\ninactive_file {cached}\n",
    }


def test_every_limit_around_the_process_counts(groups):
    files = group("job__step__", 1000, 300, 50) | group("job__", 900, 850) | group("", "max", 5000)
    assert list(memory._left_by_limits(*groups("0::/job/step\n", **files))) == [750, 50]


def test_in_a_container_the_limit_may_stand_at_the_root(groups):
    files = group("", 1000, 400)
    assert list(memory._left_by_limits(*groups("0::/not/to/be/seen\n", **files))) == [600]


def test_the_first_version_of_control_groups_is_read_too(groups):
    files = {
        "memory__job__memory_dot_limit_in_bytes": "1000\n",
        "memory__job__memory_dot_usage_in_bytes": "400\n",
        "memory__job__memory_dot_stat": "cache 90\ntotal_inactive_file 80\n",
    }
    membership = "9:name=systemd:/\n4:cpu,memory:/job\n3:cpuset:/\n0::/\n"
    assert list(memory._left_by_limits(*groups(membership, **files))) == [680]


def test_more_than_the_limit_leaves_nothing(groups):
    assert list(memory._left_by_limits(*groups("0::/\n", **group("", 100, 120)))) == [0]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert list(memory._left_by_limits(tmp_path, tmp_path / "none")) == []


def test_processes_share_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "_left_by_limits", lambda: [2**60])
    available = psutil.virtual_memory().available
    assert free_memory(CPU) == pytest.approx(available, rel=0.2)
    assert free_memory(CPU, processes=4) == pytest.approx(available / 4, rel=0.2)
    monkeypatch.setattr(memory, "_left_by_limits", lambda: [2**60, 3000])
    assert free_memory(CPU, processes=2) == 1500


def test_a_gpu_is_not_shared_and_what_its_allocator_holds_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert free_memory(torch.device("cuda", 1), processes=8) == 1200
