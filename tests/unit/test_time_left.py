"""The time left of a sweep: by hand, by naive simulation, and against sweeps that were carried out.

`benchmarks/sweep_timings.csv` has every run of sweeps of two workers on machines of two cores that
also did other work: when it began and ended, its seconds of training and of scoring, and the
operations of both in GFLOP, from which the plan of a folder without records takes its times.
"""

import csv
import itertools
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from ablate import telling
from ablate.experiment.time_left import MOST, Expected, HowFar, TimeLeft
from ablate.results import heart
from ablate.telling import Telling
from benchmarks.time_left import (
    ERRORS,
    SHARES,
    THIRD,
    Sweep,
    carried_out,
    error,
    sweeps,
    table,
    time_left,
)

ROOT = Path(__file__).parents[2]
SWEEPS = sweeps()
FIRST = "2 cores before"  # the machine of the six sweeps by which the estimate was made


def planned(train=10.0, score=0.0, rest=0.0, kind="lora"):
    return Expected((kind,), train, score, rest)


def alone(keys):
    return [[key] for key in keys]


# -- by hand -------------------------------------------------------------------------------------


def test_before_a_run_has_ended_the_plan_says_it_and_the_workers_start():
    """5 and 1; then 1, 1, and 4: of two workers the first ends after 5, the second after 7."""
    times = {key: planned(t) for key, t in zip("abcde", (5, 1, 1, 1, 4), strict=True)}
    left = TimeLeft(times, workers=2, start_seconds=20.0)
    assert not left.knows
    assert left.left(alone("abcde"), {}) == 20 + 7
    assert left.left([["a", "b"], ["c", "d", "e"]], {}) == 20 + 6  # bundles are one worker's
    # One has started: it ends a after 2.5, then takes the others before the second is there.
    assert left.left(alone("abcde"), {"a": HowFar(0.5, 5.0)}) == 2.5 + 1 + 1 + 1 + 4
    assert left.left(alone("abcde"), {"a": HowFar(0.5, 5.0)}, waited=19.0) == 1 + 1 + 1 + 4
    assert left.left(alone("abcde"), {}, waited=15.0) == 5 + 7
    assert left.left(alone("abcde"), {"a": HowFar(0.5, 5.0)}, waited=60.0) == 6.5
    assert left.left([], {}) == 0


def test_cheap_runs_that_come_first_are_not_taken_for_the_rest():
    """An untouched base is scored in 2 s instead of 1: all takes twice as long as planned."""
    times = {"base": planned(0.0, 1.0), "a": planned(8.0, 2.0), "b": planned(8.0, 2.0)}
    left = TimeLeft(times)
    left.took("base", 0.0, 2.0)
    assert left.knows
    assert left.left(alone("ab"), {}) == pytest.approx(2 * 20)


def test_kinds_have_their_own_pace_held_towards_that_of_all():
    """One kind takes twice what was planned, the other what was planned."""
    times = {f"{kind}{n}": planned(kind=kind) for kind in "ab" for n in range(4)}
    left = TimeLeft(times)
    left.took("a0", 20.0, 0.0)
    pace = left.left(alone(["a1"]), {})
    assert pace == pytest.approx(20)  # all that is known
    for _ in range(200):
        left.took("a0", 20.0, 0.0)
        left.took("b0", 10.0, 0.0)
    assert left.left(alone(["a1"]), {}) == pytest.approx(20, rel=0.02)
    assert left.left(alone(["b1"]), {}) == pytest.approx(10, rel=0.02)


def test_a_sweep_that_stood_still_is_not_slower():
    """A run of ten that took an hour more, while nobody worked, is taken as slow once, at most."""
    times = {number: planned() for number in range(20)}
    left = TimeLeft(times)
    for number in range(10):
        left.took(number, 3610.0 if number == 4 else 10.0, 0.0)
    assert 100 <= left.left(alone(range(10, 20)), {}) <= 100 * (9 + MOST) / 10 * 1.05


def test_a_machine_that_got_other_work_is_noticed():
    times = {number: planned() for number in range(100)}
    left = TimeLeft(times)
    for number in range(60):
        left.took(number, 10.0 if number < 30 else 20.0, 0.0)
    assert 1.6 < left.left(alone(range(60, 100)), {}) / 400 < 2  # all ran alike: 1.5


def test_runs_side_by_side_train_together_and_are_scored_one_by_one():
    times = {key: planned(10.0, 1.0) for key in "abcdefgh"}
    left = TimeLeft(times)
    running = {key: HowFar(0.25, 40.0, lanes=4) for key in "abcd"}  # the steps of all four
    # 30 s of training for all, then 4 s of scoring; then the second group, as its planned sum
    assert left.left([list("abcd")], running) == pytest.approx(30 + 4)
    assert left.left([list("abcd"), list("efgh")], running) == pytest.approx(34 + 44)
    scored = {"d": HowFar(scoring=True, waited=0.4)}
    left.took("a", 10.0, 1.0)
    assert left.left([["d"], list("efgh")], scored) == pytest.approx(0.6 + 44, rel=0.01)


def test_what_is_not_planned_takes_what_others_take():
    left = TimeLeft({"a": planned(10.0), "b": planned(30.0)})
    assert left.left([["new"]], {}) == pytest.approx(20)
    left.took("gone", 1e9, 0.0)  # of another grid
    assert not left.knows


# -- a cell --------------------------------------------------------------------------------------


def test_a_cell_says_its_speed_and_what_is_left(monkeypatch):
    """Steps of 2 s and 100 tokens, but for the first, which takes a minute."""
    clock, said = itertools.accumulate([0.0, 60.0, *[2.0] * 50]), []
    now = [0.0]
    monkeypatch.setattr(telling.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(heart, "at", lambda place, facts, key=None: said.append((place, facts)))
    heard = []
    one, history = Telling(hear=lambda steps, speed: heard.append((len(steps), speed))), []
    next(clock)
    for step in range(1, 6):
        now[0] = next(clock)
        history.append({"step": step, "tokens": 100, "loss": 1.0 / step})
        one.tell(history)
        one.tick(step, 50)
    place, facts = said[-1]
    assert place == "step 5 of 50"
    assert facts == {
        "step": 5, "of": 50, "loss": 0.2, "tokens_per_second": 50.0, "step_seconds": 2.0
    }  # fmt: skip
    assert said[0][1]["step_seconds"] is None
    assert heard == [(1, None), *((n, 50.0) for n in range(2, 6))]
    # after a tenth of the steps: 45 steps of 2 s
    under_way = {"a": HowFar(5 / 50, 2.0 * 50)}
    assert TimeLeft({}).left([["a"]], under_way) == pytest.approx(90)


# -- sweeps that were carried out ------------------------------------------------------------------


def record(pid, finished, train, score=0.0):
    """A record as far as the playing back reads it."""
    return {
        "config": {"adapter": {"kind": "lora"}, "evaluate": {}},
        "parameters": {"base": 1000},
        "data": {"mean_length": 10.0},
        "costs": {"train_seconds": train, "eval_seconds": score, "tokens_seen": 5e6},
        "provenance": {"finished": finished, "hardware": {"host": "one", "pid": pid}},
    }


def test_a_folder_is_split_where_no_process_was_at_work():
    """Two workers from 100 on; one of them goes on alone, and three are begun after its end."""
    first = [record(1, 110, 8), record(1, 120, 9), record(2, 112, 11), record(2, 140, 27)]
    first += [record(2, 172, 31)]
    waits = [record(2, 940, 10)]  # the same process after a wait of all
    second = [record(3, 1010, 9), record(4, 1011, 10), record(5, 1012, 11)]
    apart = carried_out([*second, *first, *waits])
    assert [len(runs) for runs in apart] == [6, 3]
    spans = [(run.worker, run.began, run.ended) for run in apart[0]]
    # A first run is taken to have had what the process' others had beside them, in the median.
    assert spans[:4] == [(0, 0, 12), (1, 1, 10), (1, 10, 20), (0, 12, 40)]
    assert spans[4:] == [(0, 40, 72), (0, 72, 840)]
    assert {run.train_gflop for run in apart[0]} == {6 * 1000 * 5e6 / 1e9}
    assert [Sweep("", "", tuple(runs)).workers for runs in apart] == [2, 3]


@pytest.mark.parametrize("name", [name for name, one in SWEEPS.items() if one.machine == FIRST])
def test_after_a_tenth_the_time_left_is_right_within_a_third(name):
    assert abs(error(SWEEPS[name], 0.1)) <= THIRD


@pytest.mark.parametrize("share", SHARES)
def test_the_time_left_is_right_within_a_third_on_the_way(share):
    found = [abs(error(one, share)) for one in SWEEPS.values()]
    assert statistics.median(found) <= 0.2
    assert sum(one <= THIRD for one in found) >= 0.75 * len(found)


def test_the_errors_and_the_page_are_those_of_the_timings():
    with ERRORS.open() as lines:
        rows = list(csv.DictReader(lines))
    told = {(row["sweep"], float(row["share"])): float(row["error"]) for row in rows}
    again = {(name, share): error(one, share) for name, one in SWEEPS.items() for share in SHARES}
    assert told == pytest.approx(again, abs=5e-4)
    assert table() in (ROOT / "docs" / "running.md").read_text()


def test_a_wait_of_all_workers_changes_the_time_left_by_little():
    """The machine slept for two hours while a run of each worker was under way."""
    one = SWEEPS["token_rules"]
    at, wait = 0.3 * one.seconds, 7200.0
    later = [
        replace(
            run,
            began=run.began + wait * (run.began > at),
            ended=run.ended + wait * (run.ended > at),
            train=run.train + wait * (run.began <= at < run.ended),
        )
        for run in one.runs
    ]
    half = 0.5 * one.seconds
    alone = time_left(one.runs, 2, half)
    assert time_left(later, 2, half + wait) == pytest.approx(alone, rel=0.2)
