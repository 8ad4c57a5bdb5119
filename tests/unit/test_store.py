"""The store: whole or not at all, one worker a cell, and no claim that outlives its process."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ablate import sweep, work
from ablate.errors import UserError
from ablate.experiment.status import _state, unscored_text
from ablate.models.gpu import lost_device
from ablate.results import files, leases, process, record
from ablate.results.drafts import DRAFT_SECONDS
from ablate.results.failures import MAX_KILLS
from ablate.results.record import SCHEMA
from ablate.results.store import Store
from tests import stored

KEY = "0123456789abcdef"
CALLS = ("rename", "replace", "link", "fsync", "rmdir", "unlink", "chmod")


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "out")
    found.prepare()
    return found


def write(store, key=KEY, **content):
    with store.writing(key) as draft:
        stored.fill(draft, key, **{"score_keys": ["s"]} | content)


def test_a_record_is_there_only_after_the_block(store):
    with store.writing(KEY) as draft:
        stored.fill(draft, KEY)
        assert store.record(KEY) is None
    assert store.record(KEY) == stored.record(KEY) | {"schema": SCHEMA}
    assert store.recorded() == [KEY]


def test_an_error_while_writing_leaves_nothing(store):
    def half_way():
        with store.writing(KEY) as draft:
            (draft / "record.json").write_text("{}")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        half_way()
    assert list(store.cells.iterdir()) == []


def test_a_worker_that_stands_elsewhere_works_in_the_folder_of_the_command(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Store(Path("out")).prepare()
    (bundle,) = sweep.write_bundles({KEY: []}, Path("out"), workers=sweep.Workers())
    monkeypatch.chdir(tmp_path / "there")
    seen = []
    monkeypatch.setattr(work, "_attempt", lambda *_: seen.append(Path.cwd()))
    work.work(bundle)
    assert seen == [tmp_path / "here"]
    assert (tmp_path / "here" / "out" / "claims").is_dir()
    assert not (tmp_path / "there" / "out").exists()
    assert Path.cwd() == tmp_path / "there"


def test_the_second_writer_of_a_key_loses_quietly(store):
    write(store, who="first")
    write(store, who="second")
    assert store.record(KEY)["who"] == "first"
    assert [p.name for p in store.cells.iterdir()] == [KEY]


def test_a_claim_has_one_holder_and_ends_with_the_block(store):
    with store.claim(KEY) as mine:
        assert mine
        assert store.claimed(KEY).process == process.here()
        with Store(store.out).claim(KEY) as second:
            assert not second
    assert store.claimed(KEY) is None
    with store.claim(KEY) as again:
        assert again


def hold(out, ready, sweep):
    from ablate.results import heart

    store = Store(out)
    with store.claim(KEY, sweep=sweep), store.writing(KEY) as draft:
        (draft / "log.txt").write_text("one\ntwo\n")
        heart.at("step 3 of 8")
        ready.set()
        time.sleep(60)


def killed_holder(store, sweep="mine"):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=hold, args=(store.out, ready, sweep))
    worker.start()
    assert ready.wait(300)
    assert store.claimed(KEY).process.pid == worker.pid
    assert not store.reap(KEY, sweep="mine")  # it lives
    assert (_state(store, KEY, {}).state, "step 3 of 8" in _state(store, KEY, {}).detail) == (
        "running",
        True,
    )
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def test_a_killed_holder_frees_its_cell_and_is_recorded(store):
    killed_holder(store)
    assert store.claimed(KEY) is None
    assert _state(store, KEY, {}).state == "missing"
    assert store.reap(KEY, sweep="mine", how="SIGKILL")
    [failure] = store.failures(KEY)
    assert (failure["kind"], failure["place"]) == ("killed", "step 3 of 8")
    assert failure["log"] == ["one", "two"]
    assert failure["error"] == "the worker was killed at step 3 of 8 (SIGKILL)"
    assert store.given_up(KEY) is None  # one kill says nothing
    assert not store.reap(KEY, sweep="mine")  # told once
    assert not list(store.claims.iterdir())
    assert not list(store.cells.iterdir())  # its draft is gone too


def test_a_holder_that_died_with_its_sweep_is_no_attempt(store):
    killed_holder(store, sweep="another")
    assert store.reap(KEY, sweep="mine")
    assert store.failures(KEY) == []
    assert not list(store.claims.iterdir())


def test_a_killed_holder_with_a_record_is_no_failure(store):
    killed_holder(store)
    write(store)
    store.reap(KEY, sweep="mine")
    assert store.failures(KEY) == []


def killed(place):
    return {"kind": "killed", "error": "the worker was killed", "place": place}


def test_kills_at_one_place_are_counted_errors_are_not_tried_again(store):
    for step in range(4 * MAX_KILLS):
        store.fail(KEY, killed(f"step {step} of 99"))
    assert store.given_up(KEY) is None
    for _ in range(MAX_KILLS - 1):
        store.fail(KEY, killed("scoring"))
    assert store.given_up(KEY) is None
    store.fail(KEY, killed("scoring"))
    assert store.given_up(KEY)["kind"] == "killed"
    store.clear_failures(KEY)
    store.fail(KEY, {"kind": "error", "error": "ValueError: no"})
    assert store.given_up(KEY)["error"] == "ValueError: no"
    assert store.record(KEY) is None  # a failure never takes the cell's place


def test_an_attempt_takes_the_place_of_a_damaged_one_and_of_no_other(store):
    for text in ("first", "second", "third"):
        store.fail(KEY, {"kind": "error", "error": text})
    (store.failed / f"{KEY}-1.json").write_text("{")
    assert store.attempted() == {KEY: 3}
    store.fail(KEY, {"kind": "error", "error": "fourth"})
    assert [f["error"] for f in store.failures(KEY)] == ["first", "fourth", "third"]
    store.clear_failures(KEY)
    assert not list(store.failed.iterdir())


def test_scores_that_failed_are_named_and_tried_again_on_request(store):
    lost = {"asked": "quiz", "score_key": "t", "error": "ValueError: no"}
    write(store, score_keys=["s", "t"], unscored=[lost])
    assert unscored_text(store.record(KEY)) == "quiz not scored: ValueError: no"
    assert store.scored(KEY) == {"s", "t"}  # tried
    store.clear_failures(KEY)
    assert store.scored(KEY) == {"s"}
    assert unscored_text(store.record(KEY)) == ""


def mark_of(pid, start="1", node=None):
    return process.Process("", node or process.node(), pid, start).mark


def test_what_a_dead_writer_left_is_cleared_at_once_and_a_living_ones_is_not(store):
    dead, alive = mark_of(os.getpid(), "1"), process.here().mark  # the number is used again
    left = [store.cells / f".tmp-{dead}-{KEY}-abc", store.cells / f".tmp-{KEY}-abc"]
    kept = store.trained / f".tmp-{alive}-{KEY}-abc"
    for folder in (*left, kept):
        folder.mkdir()
    file = store.failed / f".tmp-{dead}-{KEY}-0.json"
    file.write_text("{")
    store.prepare()
    assert [p.exists() for p in (*left, file, kept)] == [False, False, False, True]


def test_of_another_machines_drafts_only_what_has_no_holder_is_cleared(store):
    there = mark_of(17, node="a" * 12)
    folder, file = store.cells / f".tmp-{there}-{KEY}-abc", store.failed / f".tmp-{there}-x.json"
    folder.mkdir()
    file.write_text("{")
    holder = process.Process("there", "a" * 12, 17, "1")
    about = {"process": holder.plain(), "count": 3, "place": "", "sweep": "", "since": 0.0}
    (store.claims / f"{KEY}.0").write_bytes(leases._content(about))
    store.prepare()
    assert folder.exists()
    assert file.exists()
    (store.claims / f"{KEY}.0").unlink()
    old = time.time() - DRAFT_SECONDS - 10
    os.utime(file, (old, old))
    store.prepare()
    assert not folder.exists()
    assert not file.exists()


def amend(store, steps=None):
    """Add the score t with its items; the process ends after so many `steps`, if they are given."""
    count_calls(steps)
    with store.amending(KEY) as draft:
        files.write(draft / "items.parquet", b"PAR1 with t PAR1")
        files.write(
            draft / "record.json", record.text(store.record(KEY) | {"score_keys": ["s", "t"]})
        )


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_while_a_record_is_amended_leaves_the_old_one_or_the_new(
    tmp_path, monkeypatch, exchange
):
    """Every number of calls after which it can be killed: all files are old or all are new."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for steps in range(200):
        store = Store(tmp_path / f"{steps}")
        store.prepare()
        write(store)
        old = (store.folder(KEY) / "items.parquet").read_bytes()
        child = os.fork()
        if child == 0:
            amend(store, steps)
            os._exit(0)
        through = os.waitpid(child, 0)[1] == 0
        files.put_back(store.cells)
        new = "t" in store.scored(KEY)
        assert store.scored(KEY) == ({"s", "t"} if new else {"s"})
        assert (store.folder(KEY) / "items.parquet").read_bytes() == (
            b"PAR1 with t PAR1" if new else old
        )
        store.prepare()
        assert [p.name for p in store.cells.iterdir()] == [KEY]
        amend(store)  # again: nothing is doubled
        assert store.scored(KEY) == {"s", "t"}
        if through:
            break
    assert through
    assert steps > 4


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "out").prepare()


def count_calls(steps):
    """Make this process end, as if it were killed, at so many calls of the system; None: never."""
    left = [steps]

    def counted(call):
        def step(*args, **kwargs):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return call(*args, **kwargs)

        return step

    for name in CALLS if steps is not None else ():
        setattr(os, name, counted(getattr(os, name)))


def attempt(store, trained, steps=None):
    """One attempt at a cell: it trains unless that is done, scores and records.

    With `steps` the process ends, as if it were killed, at that many calls of the system.
    """
    count_calls(steps)
    with store.writing(KEY) as draft:
        if not (draft / "record.json").exists():
            trained.write_text(trained.read_text() + "x")
            (draft / "weights").mkdir()
            (draft / "weights" / "adapter").write_bytes(b"w" * 100)
            stored.fill(draft, KEY)
            store.keep_trained(KEY, draft)
            trained.with_name("safe").touch()
        (draft / "record.json").unlink()
        (draft / "record.json").write_text(json.dumps(stored.record(KEY, score_keys=["s"])))


def test_a_kill_between_any_two_steps_loses_nothing_that_was_kept(tmp_path):
    """Every number of system calls after which an attempt can be killed, until it gets through."""
    for steps in range(200):
        store, trained = Store(tmp_path / f"{steps}"), tmp_path / f"{steps}" / "trained.txt"
        store.prepare()
        trained.write_text("")
        child = os.fork()
        if child == 0:
            attempt(store, trained, steps)
            os._exit(0)
        through = os.waitpid(child, 0)[1] == 0
        safe = trained.with_name("safe").exists()
        assert not safe or store.is_trained(KEY) or store.record(KEY)
        if not store.record(KEY):
            attempt(store, trained)
        assert trained.read_text() in (("x",) if safe else ("x", "xx"))  # trained once, or twice
        assert store.scored(KEY) == {"s"}
        assert (store.folder(KEY) / "weights" / "adapter").read_bytes() == b"w" * 100
        store.prepare()
        assert [p.name for p in store.cells.iterdir()] == [KEY]
        assert list(store.trained.iterdir()) == []
        if through:
            break
    assert through
    assert steps > 10


def test_a_trained_run_is_found_by_the_next_attempt_alone(store):
    def ends_while_it_is_scored():
        with store.writing(KEY) as draft:
            stored.fill(draft, KEY)
            store.keep_trained(KEY, draft)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        ends_while_it_is_scored()
    assert store.record(KEY) is None
    assert store.recorded() == []
    assert (_state(store, KEY, {}).state, _state(store, KEY, {}).detail) == (
        "missing",
        "trained, not scored",
    )
    with store.writing(KEY) as draft:
        assert (draft / "record.json").exists()
    assert not store.is_trained(KEY)


def test_what_is_wrong_with_a_request_is_said_as_it_is(store, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise UserError("train.max_steps=3: too few")

    monkeypatch.setattr(work, "build", lambda tree: tree)
    work._attempt(refused, store, KEY, [{}])
    assert [f["error"] for f in store.failures(KEY)] == ["train.max_steps=3: too few"]


STICKY = "CUDA error: an illegal memory access was encountered"


def test_a_lost_gpu_ends_the_worker_and_is_tried_again(store, monkeypatch):
    (bundle,) = sweep.write_bundles({KEY: []}, store.out, workers=sweep.Workers())
    called = []

    def lost(cells, key, store, **_):
        called.append(key)
        raise RuntimeError("in the layer") from RuntimeError(STICKY)

    monkeypatch.setattr("ablate.run.run_cells", lost)
    content = json.loads(bundle.read_text())
    content["runs"] = {KEY: [None], "another": [None]}
    bundle.write_text(json.dumps(content))
    monkeypatch.setattr(work, "build", lambda tree: tree)
    with pytest.raises(SystemExit):  # the process of the sweep itself; a worker leaves by _exit
        work.work(bundle)
    assert called == [KEY]
    assert [f["kind"] for f in store.failures(KEY)] == ["device"]
    assert store.given_up(KEY) is None
    assert store.claimed(KEY) is None
    content["sweep"]["start"] = "another"
    bundle.write_text(json.dumps(content))
    left = []
    monkeypatch.setattr(os, "_exit", lambda code: left.append(code) or sys.exit(code))
    monkeypatch.setattr(work.interrupts, "follow", lambda *_: None)
    with pytest.raises(SystemExit):
        work.work(bundle)
    assert left == [1]


def test_a_gpu_is_lost_by_some_errors_alone():
    assert lost_device(RuntimeError("CUDA error: device-side assert triggered"))
    assert not lost_device(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not lost_device(ValueError("an illegal memory access"))
