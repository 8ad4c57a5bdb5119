"""The store: whole or not at all, one worker a cell, and no claim that outlives its process."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from ablate import sweep
from ablate.errors import UserError
from ablate.experiment.status import unscored_text
from ablate.results.record import SCHEMA
from ablate.results.store import DRAFT_GRACE_SECONDS, MAX_KILLS, Store

KEY = "0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "out")
    found.prepare()
    return found


def write(store, key=KEY, **content):
    with store.writing(key) as draft:
        (draft / "record.json").write_text(json.dumps({"score_keys": ["s"]} | content))


def test_a_record_is_there_only_after_the_block(store):
    with store.writing(KEY) as draft:
        content = {"schema": SCHEMA, "scores": [], "score_keys": []}
        (draft / "record.json").write_text(json.dumps(content))
        assert store.record(KEY) is None
    assert store.record(KEY) == content
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
    (bundle,) = sweep.write_bundles({KEY: []}, Path("out"), workers=1)
    monkeypatch.chdir(tmp_path / "there")
    seen = []
    monkeypatch.setattr(sweep, "_attempt", lambda *_: seen.append(Path.cwd()))
    sweep.work(bundle)
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
        assert store.claimed(KEY)["pid"] == os.getpid()
        with Store(store.out).claim(KEY) as second:
            assert not second
    assert store.claimed(KEY) is None
    with store.claim(KEY) as again:
        assert again


def hold(out, ready):
    with Store(out).claim(KEY):
        ready.set()
        time.sleep(60)


def killed_holder(store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(store.out, ready))
    process.start()
    assert ready.wait(30)
    assert store.claimed(KEY)["pid"] == process.pid
    assert not store.reap(KEY)  # it lives
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_killed_holder_frees_its_cell_and_is_recorded(store):
    killed_holder(store)
    assert store.claimed(KEY) is None
    assert store.reap(KEY)
    assert [f["kind"] for f in store.failures(KEY)] == ["killed"]
    assert store.given_up(KEY) is None  # one kill says nothing
    assert not store.reap(KEY)  # told once


def test_a_killed_holder_with_a_record_is_no_failure(store):
    killed_holder(store)
    write(store)
    store.reap(KEY)
    assert store.failures(KEY) == []


def test_kills_are_retried_errors_are_not(store):
    for _ in range(MAX_KILLS - 1):
        store.fail(KEY, {"kind": "killed", "error": "the worker was killed"})
    assert store.given_up(KEY) is None
    store.fail(KEY, {"kind": "killed", "error": "the worker was killed"})
    assert store.given_up(KEY)["kind"] == "killed"
    store.clear_failures(KEY)
    store.fail(KEY, {"kind": "error", "error": "ValueError: no"})
    assert store.given_up(KEY)["error"] == "ValueError: no"
    assert store.record(KEY) is None  # a failure never takes the cell's place


def test_scores_that_failed_are_named_and_tried_again_on_request(store):
    lost = {"asked": "quiz", "score_key": "t", "error": "ValueError: no"}
    with store.writing(KEY) as draft:
        record = {"score_keys": ["s", "t"], "unscored": [lost], "scores": []}
        (draft / "record.json").write_text(json.dumps(record))
    assert unscored_text(store.record(KEY)) == "quiz not scored: ValueError: no"
    assert store.scored(KEY) == {"s", "t"}  # tried
    store.clear_failures(KEY)
    assert store.scored(KEY) == {"s"}
    assert unscored_text(store.record(KEY)) == ""


def test_what_a_killed_writer_left_is_cleared_once_it_is_old(store):
    left = store.cells / f".tmp-{KEY}-abc"
    left.mkdir()
    store.prepare()
    assert left.exists()  # it may be a writer's first instant
    old = time.time() - DRAFT_GRACE_SECONDS - 1
    os.utime(left, (old, old))
    store.prepare()
    assert not left.exists()


def test_a_living_writers_draft_is_not_cleared(store):
    with store.writing(KEY) as draft:
        old = time.time() - DRAFT_GRACE_SECONDS - 1
        os.utime(draft, (old, old))
        store.prepare()
        assert draft.exists()
        (draft / "record.json").write_text('{"score_keys": []}')


def test_amend_replaces_the_record_last(store, monkeypatch):
    write(store)
    replaced = []
    monkeypatch.setattr(os, "replace", lambda a, b: replaced.append(b.name) or os.rename(a, b))
    store.amend(KEY, {"record.json": b'{"score_keys": ["s", "t"]}', "items.parquet": b"x"})
    assert replaced == ["items.parquet", "record.json"]
    assert store.scored(KEY) == {"s", "t"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "out").prepare()
