"""The time left of a sweep: by hand, by naive simulation, and against sweeps that were carried out.

`sweep_timings.csv` has every run of six sweeps of two workers on one machine of two cores that also
did other work: when it began and ended, its seconds of training and of scoring, and the operations
of both in GFLOP, from which the plan of a folder without records takes its times.
"""

import csv
import itertools
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from ablate import telling
from ablate.experiment.pace import FLOPS_PER_SECOND
from ablate.experiment.time_left import MOST, Expected, HowFar, TimeLeft
from ablate.results import heart
from ablate.telling import Telling

TIMINGS = Path(__file__).with_name("sweep_timings.csv")
THIRD = 1 / 3


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


def sweeps():
    found = defaultdict(list)
    with TIMINGS.open() as lines:
        for row in csv.DictReader(lines):
            numbers = {k: float(v) for k, v in row.items() if k not in ("sweep", "kind")}
            found[row["sweep"]].append(row | numbers)
    return dict(found)


def replayed(runs, now):
    """The time left as a sweep says it at `now`, from what it had seen by then."""
    rate = FLOPS_PER_SECOND / 1e9
    left = TimeLeft(
        {
            n: planned(r["train_gflop"] / rate, r["score_gflop"] / rate, kind=r["kind"])
            for n, r in enumerate(runs)
        },
        workers=2,
    )
    running = {}
    for number, run in sorted(enumerate(runs), key=lambda one: one[1]["ended"]):
        spent = now - run["began"]
        if run["ended"] <= now:
            beside = run["ended"] - run["began"] - run["train"] - run["score"]
            left.took(number, run["train"], run["score"], max(0.0, beside))
        elif spent >= run["train"]:
            running[number] = HowFar(scoring=True, waited=spent - run["train"])
        elif spent >= 0:
            running[number] = HowFar(spent / run["train"], run["train"])
    todo = [number for number, run in enumerate(runs) if run["ended"] > now]
    return left.left(alone(sorted(todo, key=lambda number: runs[number]["began"])), running)


def error(runs, share):
    """How far the estimate is off when so much of the sweep has passed, of what was left."""
    end = max(run["ended"] for run in runs)
    return abs(replayed(runs, share * end) / (end * (1 - share)) - 1)


@pytest.mark.parametrize("name", sweeps())
def test_after_a_tenth_the_time_left_is_right_within_a_third(name):
    assert error(sweeps()[name], 0.1) <= THIRD


def test_the_time_left_is_right_within_a_third_on_the_way():
    found = [error(runs, share) for runs in sweeps().values() for share in (0.1, 0.25, 0.5)]
    assert statistics.median(found) <= 0.15
    assert sum(one <= THIRD for one in found) >= 0.9 * len(found)


def test_a_wait_of_all_workers_changes_the_time_left_by_little():
    """The machine slept for two hours while a run of each worker was under way."""
    runs = sweeps()["token_rules"]
    end = max(run["ended"] for run in runs)
    at, wait = 0.3 * end, 7200.0
    later = [
        run
        | {
            "began": run["began"] + wait * (run["began"] > at),
            "ended": run["ended"] + wait * (run["ended"] > at),
            "train": run["train"] + wait * (run["began"] <= at < run["ended"]),
        }
        for run in runs
    ]
    half = 0.5 * end
    assert replayed(later, half + wait) == pytest.approx(replayed(runs, half), rel=0.2)
