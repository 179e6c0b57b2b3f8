"""The measured read bandwidth: how it chooses its buffer, and that it is a rate of real reads."""

import numpy as np
import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import bandwidth


def system(folder, *caches):
    """Caches (cpu, level, size, cpus that share it) as sysfs tells of them."""
    for k, (cpu, level, size, shared) in enumerate(caches):
        index = folder / f"cpu{cpu}/cache/index{k}"
        index.mkdir(parents=True)
        for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
            (index / name).write_text(f"{text}\n")
    return folder


def test_last_caches_of_all_clusters_are_added_and_each_counts_once(tmp_path):
    """Two clusters of two cores, each with 32 MiB that its cores share; the smaller caches do not count."""
    caches = [(c, 3, "32768K", "0-1" if c < 2 else "2-3") for c in range(4)]
    caches += [(c, 2, "1024K", str(c)) for c in range(4)]
    assert bandwidth.last_cache_bytes(system(tmp_path, *caches)) == 64 << 20


def test_machine_that_tells_no_caches_has_none_to_reckon_with(tmp_path):
    """As in many containers, and on some phones."""
    assert bandwidth.last_cache_bytes(tmp_path) == 0
    assert bandwidth.last_cache_bytes(system(tmp_path, (0, 2, "", "0"))) == 0


@pytest.mark.parametrize(
    ("cache", "free_mib", "wanted_mib"),
    [
        ("2048K", 8192, 256),  # a board: the least
        ("131072K", 8192, 512),  # a server: four times its 128 MiB
        ("131072K", 1200, 300),  # a quarter of what is free, more than twice the cache
        ("2M", 400, 100),
    ],
)
def test_buffer_is_far_larger_than_the_caches_and_leaves_memory_free(tmp_path, cache, free_mib, wanted_mib):
    cpus = system(tmp_path / "cpu", (0, 3, cache, "0"))
    assert bandwidth._size_bytes(free_mib << 20, cpus) == wanted_mib << 20


def test_memory_that_does_not_hold_twice_the_cache_has_no_room_and_the_figures_are_told(tmp_path):
    cpus = system(tmp_path / "cpu", (0, 3, "131072K", "0"))
    with pytest.raises(bandwidth.NoRoomError, match=f"{800 << 20} bytes of memory are free.*{256 << 20}"):
        bandwidth._size_bytes(800 << 20, cpus)


def test_machine_that_does_not_tell_its_caches_gets_the_least(tmp_path):
    assert bandwidth._size_bytes(8 << 30, tmp_path) == 256 << 20


def test_room_is_what_the_control_groups_of_this_process_leave(monkeypatch):
    """60 MB are left in one: a quarter of them is taken, and 15 MB in 5 ms are 3 GB/s."""
    monkeypatch.setattr(bandwidth.memory, "available", lambda: 60_000_000)
    monkeypatch.setattr(bandwidth, "last_cache_bytes", lambda _: 0)
    monkeypatch.setattr(bandwidth, "_round_s", lambda _: 5e-3)
    assert bandwidth.read_bandwidth(1, seconds=0) == (3e9, 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_byte_is_read_once_a_round_and_the_best_round_is_told(monkeypatch, threads):
    """Rounds of 4, 2, 8, 5 and 4 ms: a buffer of 8 MB in 2 ms is 4 GB/s, the median round gives 2 GB/s."""
    read, lasting = [], iter([9e-3, 4e-3, 2e-3, 8e-3, 5e-3, 4e-3])

    def round_s(parts):
        read.append([len(p) for p in parts])
        assert all(p.min() == p.max() == 1 for p in parts), "pages that are really there"
        return next(lasting)

    monkeypatch.setattr(bandwidth, "_round_s", round_s)
    assert bandwidth.read_bandwidth(threads, 8_000_000, 0) == (4e9, pytest.approx(2e9))
    assert len(read) == 1 + 5 and all(len(r) == threads and sum(r) == 1_000_000 for r in read)


def test_rate_is_that_of_a_memory():
    """A real, small one: between a slow board's and what no memory gives yet."""
    rate, width = bandwidth.read_bandwidth(2, 16 << 20, 0)
    assert 1e7 < rate < 1e13 and 0 <= width < rate


def test_parts_are_read_apart_and_at_once():
    parts = np.array_split(np.ones(1000, np.int64), 4)
    assert bandwidth._round_s(parts) > 0


def test_no_threads_are_refused():
    with pytest.raises(UsageError, match="0 threads"):
        bandwidth.read_bandwidth(0)
