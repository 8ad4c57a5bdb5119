"""Leases: one holder whatever the file system and the clocks, and a stopped holder gives way."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ablate.errors import LeaseLost
from ablate.results import heart, leases, process
from ablate.results.store import Store
from tests import stored

KEY = "0123456789abcdef"
ELSEWHERE = process.Process("there", "b" * 12, 4711, "99")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "claims"


@pytest.fixture
def clock(monkeypatch):
    """The observer's own clock; each look moves it on by a second."""

    class Clock:
        now = 0.0

        def look(self, folder):
            self.now += 1.0
            found = leases.holder(folder, KEY)
            return leases.is_dead(folder, found)

    found = Clock()
    monkeypatch.setattr(leases.time, "monotonic", lambda: found.now)
    return found


def elsewhere(folder, count=0, number=0, **more):
    """Write the lease of a worker on another machine."""
    folder.mkdir(exist_ok=True)
    about = {"process": ELSEWHERE.plain(), "count": count, "place": "", "sweep": "", "since": 0.0}
    (folder / f"{KEY}.{number}").write_bytes(leases._content(about | more))


def test_of_many_that_try_at_once_one_succeeds(folder):
    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            found = list(pool.map(lambda _: leases.take(folder, KEY), range(16)))
            [lease] = [one for one in found if one]
            assert leases.holder(folder, KEY).process == process.here()
            lease.release()
            assert os.listdir(folder) == []


def test_of_many_that_take_a_dead_ones_place_one_succeeds(folder):
    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            elsewhere(folder)
            dead = leases.holder(folder, KEY)
            found = list(pool.map(lambda _, d=dead: leases.take(folder, KEY, over=d), range(16)))
            [lease] = [one for one in found if one]
            assert os.listdir(folder) == [f"{KEY}.1"]
            lease.release()


def test_an_observer_with_an_old_view_removes_nobodys_lease(folder):
    elsewhere(folder)
    dead = leases.holder(folder, KEY)
    lease = leases.take(folder, KEY, over=dead)
    assert leases.take(folder, KEY, over=dead) is None  # it still believes in the first one
    assert lease.held()
    assert leases.take(folder, KEY) is None


def test_without_links_a_lease_is_made_by_exclusive_creation(folder, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    lease = leases.take(folder, KEY)
    assert leases.take(folder, KEY) is None
    assert lease.held()
    assert leases.holder(folder, KEY).process == process.here()


def test_a_server_that_answers_twice_does_not_lose_the_lease(folder, monkeypatch):
    link = os.link

    def told_that_it_failed(source, target):
        link(source, target)
        raise FileExistsError(17, "File exists")  # the second answer of a repeated request

    monkeypatch.setattr(os, "link", told_that_it_failed)
    assert leases.take(folder, KEY) is not None


def test_a_counter_that_rises_is_alive_whatever_the_clocks_say(folder, clock):
    for count in range(200):
        elsewhere(folder, count=count, since=-3600.0 * 24)
        os.utime(folder / f"{KEY}.0", (0, 0))
        assert not clock.look(folder)


def test_a_counter_that_stands_still_is_dead_after_the_time_watched(folder, clock):
    elsewhere(folder, count=5, since=1e12)  # its clock is far ahead
    looks = next(n for n in range(1000) if clock.look(folder))
    assert leases.stale_seconds() <= looks <= leases.stale_seconds() + 2
    elsewhere(folder, count=6)
    assert not clock.look(folder)  # it has come back


def test_time_in_which_nobody_watched_does_not_count(folder, clock):
    """As when observer and holder were stopped together and both come back."""
    elsewhere(folder, count=5)
    clock.look(folder)
    clock.now += 1e6
    assert not clock.look(folder)


def test_a_half_written_lease_is_somebodys_until_it_stood_still(folder, clock):
    folder.mkdir()
    (folder / f"{KEY}.0").write_bytes(b'{"process": {')
    assert not clock.look(folder)
    assert leases.take(folder, KEY) is None
    assert any(clock.look(folder) for _ in range(200))


def test_a_process_that_ended_is_dead_at_once_though_its_number_is_used_again(folder, clock):
    mine = process.here()
    elsewhere(folder, process={**mine.plain(), "start": "1"})
    assert clock.look(folder)
    elsewhere(folder, process=mine.plain())
    assert not clock.look(folder)


def test_a_process_with_only_its_exit_left_has_ended():
    child = os.fork()
    if child == 0:
        os._exit(0)
    found = process.Process("", process.node(), child, process.of_pid(os.getpid()).start)
    deadline = time.monotonic() + 10
    while process.of_pid(child).start and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found.has_ended
    os.waitpid(child, 0)


def beating(out, ready, told):
    """A worker that is stopped between training and writing."""
    store = Store(out)
    with store.claim(KEY) as mine:
        assert mine
        ready.set()
        try:
            with store.writing(KEY) as draft:
                stored.fill(draft, KEY, who="stopped")
                while True:
                    heart.at("step 1 of 9")
                    time.sleep(0.02)
        except LeaseLost:
            told.set()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("ABLATE_LEASE_SECONDS", "2")


def start(store):
    context = multiprocessing.get_context("spawn")
    ready, told = context.Event(), context.Event()
    worker = context.Process(target=beating, args=(store.out, ready, told))
    worker.start()
    assert ready.wait(300)
    return worker, told


def waited(what):
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    return what()


def test_a_stopped_worker_that_comes_back_gives_way_without_writing(tmp_path, quick):
    store = Store(tmp_path)
    store.prepare()
    worker, told = start(store)
    for _ in range(30):  # it beats, so it is not taken for dead
        assert store.claimed(KEY)
        time.sleep(0.1)
    os.kill(worker.pid, signal.SIGSTOP)
    assert waited(lambda: store.claimed(KEY) is None)
    assert store.reap(KEY)
    with store.claim(KEY) as mine:
        assert mine
        os.kill(worker.pid, signal.SIGCONT)
        assert told.wait(300)
        worker.join(300)
        assert store.record(KEY) is None
        assert store.failures(KEY) == []
        assert store.claimed(KEY).process == process.here()  # it took nothing with it
        with store.writing(KEY) as draft:
            stored.fill(draft, KEY, who="second")
    assert store.record(KEY)["who"] == "second"
    assert [p.name for p in store.cells.iterdir()] == [KEY]
    assert list(store.claims.iterdir()) == []


def keep(store):
    with store.draft(KEY) as draft:
        stored.fill(draft, KEY)
        store.keep_trained(KEY, draft)


def test_nothing_is_written_under_a_lease_that_is_gone(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    with store.claim(KEY):
        elsewhere(store.claims, number=1)
        with pytest.raises(LeaseLost):
            store.fail(KEY, {"kind": "error", "error": "no"})
        with pytest.raises(LeaseLost), store.writing(KEY) as draft:
            stored.fill(draft, KEY)
        with pytest.raises(LeaseLost):
            keep(store)
    assert os.listdir(store.claims) == [f"{KEY}.1"]
    assert list(store.cells.iterdir()) == list(store.trained.iterdir()) == []
