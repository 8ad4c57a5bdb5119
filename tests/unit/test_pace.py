"""How long runs are expected to take: from recorded ones, with all that comes beside them."""

import io
import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from ablate.app import expected
from ablate.config.build import plain
from ablate.config.schema import Evaluate
from ablate.errors import UserError
from ablate.experiment.cost import START_SECONDS, wall_seconds
from ablate.experiment.gpu_fit import CERTAIN, Need, check_fits
from ablate.experiment.pace import (
    FLOPS_PER_SECOND,
    NOTHING,
    OTHERS,
    Done,
    Work,
    eval_flops,
    keep,
    pace,
    probed,
)
from ablate.experiment.request import plan_grid
from ablate.experiment.time_left import Expected
from ablate.models import gpu_slots
from ablate.probing import probes
from ablate.progress import Shown
from ablate.results import heart
from ablate.results.store import Store
from ablate.sweep import Workers
from tests import stored, toys
from tests.levels import cell

MILLION = 10**6
SCORED = Evaluate(name="e", tasks=("micro_knowledge",), limit=100)


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "out")
    found.prepare()
    return found


def recorded(store, key, *, ended, train, score, pid=1, adapter="lora", **hardware):
    """A record of a million parameters that trained on 1,000 tokens."""
    about = {"host": socket.gethostname(), "pid": pid, "device": "cpu"} | hardware
    record = stored.record(
        key,
        **{"config": {"adapter": {"kind": adapter}, "evaluate": plain(SCORED)},
        "parameters": {"base": MILLION},
        "data": {"mean_length": 10.0},
        "costs": {"train_seconds": train, "eval_seconds": score, "tokens_seen": 1000},
        "provenance": {"finished": ended, "hardware": about}},
    )  # fmt: skip
    with store.writing(key) as draft:
        (draft / "record.json").write_text(json.dumps(record))


def work(adapter="lora", tokens=1000.0, device="cpu"):
    """The work of such a run."""
    scoring = eval_flops(MILLION, 10.0, SCORED)
    return Work(adapter, MILLION, 6 * MILLION * tokens, scoring, device)


def test_a_run_takes_what_such_runs_took(store):
    """Training and scoring in proportion; the rest is the time between two ends of one process."""
    assert pace(store).basis([work()]) == NOTHING
    recorded(store, "a", ended=100.0, train=20.0, score=5.0)
    recorded(store, "b", ended=128.0, train=20.0, score=5.0)  # 3 seconds beside them
    recorded(store, "c", ended=110.0, train=20.0, score=5.0, pid=2)
    found = pace(store)
    assert found.basis([work()]) == "3 runs recorded here"
    assert found.seconds(work()) == pytest.approx(28)
    assert found.seconds(work(tokens=2000.0)) == pytest.approx(48)
    base = Work("none", MILLION, 0.0, work().eval_flops)
    assert found.seconds(base) == pytest.approx(8)


def test_models_of_another_size_say_nothing_of_the_pace(store):
    recorded(store, "a", ended=1.0, train=20.0, score=5.0)
    large = Work("lora", 1000 * MILLION, 6e12, 0.0, "cpu")
    found = pace(store)
    assert found.basis([large]) == OTHERS
    assert found.seconds(large) == pytest.approx(6e12 / FLOPS_PER_SECOND)


def test_another_adapter_machine_or_device_counts_as_it_should(store):
    recorded(store, "a", ended=1.0, train=20.0, score=5.0)
    recorded(store, "b", ended=1.0, train=60.0, score=5.0, adapter="full", pid=2)
    recorded(store, "c", ended=1.0, train=1.0, score=0.5, host="another", pid=3)
    recorded(store, "d", ended=1.0, train=0.1, score=0.05, device="cuda:0", adapter="dora", pid=4)
    found = pace(store)
    assert found.seconds(work("full")) == pytest.approx(65)
    assert found.seconds(work("lora")) == pytest.approx(25)
    assert found.seconds(work("dora", device="auto")) == pytest.approx(0.15)
    assert found.seconds(work("dora")) > 20  # of those that the CPU did


def test_idle_time_is_no_ones(store):
    """A folder that is used again after an hour, by a process of the same number or not."""
    recorded(store, "a", ended=100.0, train=20.0, score=5.0)
    recorded(store, "b", ended=5000.0, train=20.0, score=5.0)
    assert pace(store).seconds(work()) == pytest.approx(25)


def test_without_a_record_the_size_says_it(store):
    one = work()
    assert pace(store).seconds(one) == pytest.approx(one.flops / FLOPS_PER_SECOND)


def test_workers_take_runs_in_order_each_when_it_is_free():
    assert wall_seconds([5, 1, 1, 1, 4], 2) == START_SECONDS + 7  # 5 and 1; then 1, 1, and 4
    assert wall_seconds([], 2) == 0
    assert wall_seconds([3.0], 8) == START_SECONDS + 3
    assert wall_seconds([3.0], 8, 20.0) == 20 + 3


def test_how_long_a_worker_takes_to_start_is_read_from_the_records(store):
    assert pace(store).start_seconds is None
    for number, start in enumerate((None, 20.0, 30.0, 25.0, -3.0, 1e6)):
        for run in "ab":  # what a process says, it says of every run
            recorded(
                store, f"{number}{run}", ended=100.0, train=1.0, score=1.0, pid=number,
                start_seconds=start,
            )  # fmt: skip
    assert pace(store).start_seconds == 25.0


def test_the_time_left_is_told_from_the_plan_then_from_what_runs_took(store):
    """Planned are 10 s of training and 2 of scoring; the first takes twice as long."""
    keys = list("abcd")
    file = io.StringIO()
    planned = dict.fromkeys(keys, Expected(("lora",), 10.0, 2.0, 0.0))
    shown = Shown(Console(file=file), planned, start_seconds=30.0, basis="the plan")
    cell = SimpleNamespace(is_base=False)
    names = [SimpleNamespace(cell=cell, levels={"seed": key}) for key in keys]
    shown.over(store, SimpleNamespace(runs={n.levels["seed"]: [n] for n in names}))
    shown.view.every = 0.0
    shown.bundles = {Path("1"): ["a", "b"], Path("2"): ["c", "d"]}
    shown._look()
    recorded(store, "a", ended=time.time(), train=20.0, score=4.0)
    shown._look()
    with store.claim("b"):
        heart.work_on(store.claims, "b")
        about = {"step": 5.0, "of": 10.0, "step_seconds": 2.0, "tokens_per_second": 99.6}
        heart.at("step 5 of 10", about)
        shown._estimated = float("-inf")
        shown._look()
        assert shown._left["b"] == pytest.approx(10 + 4, abs=0.5)
    assert file.getvalue().splitlines() == [
        "0/4 cells, about 78 s left (from the plan)",  # 30 and 4 x 12
        "1/4 cells, about 72 s left",
        "1/4 cells, 100 tokens/s, about 62 s left",  # 5 steps of 2 s, 4 s of scoring, two runs
    ]


def test_what_failed_is_told_at_once_and_once(store, capsys):
    """On the screen of the sweep: which run, the last line of its error, and where the rest is."""
    shown = Shown(Console(width=80))
    shown.over(store, SimpleNamespace(runs=dict.fromkeys(("a", "b"))))
    shown.name = lambda key: f"seed={key}"
    killed = {"kind": "killed", "error": "the worker was killed at step 3 of 9 (SIGKILL)"}
    store.fail("a", killed)
    told = [list(shown._ended_badly(["a", "b"]))]
    store.fail("a", killed)
    store.fail("b", {"kind": "error", "error": "ValueError: no\nmore"})
    told += [list(shown._ended_badly(["a", "b"])) for _ in range(2)]
    first, (of_a, of_b), again = told
    assert first == again == []
    assert "seed=a: the worker was killed at step 3 of 9 (SIGKILL); tried again; trace" in of_a
    assert of_b == (
        f"failed: seed=b: ValueError: no more; traceback and log in {store.failed}/b-0.json"
    )
    assert json.loads((store.failed / "b-0.json").read_text())["error"].startswith("ValueError")
    store.fail("a", killed)
    (last,) = shown._ended_badly(["a", "b"])
    shown.tell(last)
    assert "(SIGKILL); it counts as failed;" in " ".join(capsys.readouterr().out.split())


def test_a_sweep_refuses_what_its_gpu_cannot_hold():
    size = 24e9
    gpu = cell("full", execution=toys.execution(device="auto"))
    named = SimpleNamespace(cell=gpu)
    cures = (("execution.gradient_checkpointing=true", 20e9),)
    near = Need({"weights": CERTAIN * size - 1}, False, 1, cures)
    check_fits([(named, near)], size)  # an estimate: it may try
    far = Need({"weights": 40e9}, False, 1, cures)
    with pytest.raises(UserError, match=r"adapter=full: .*40 GB.*_checkpointing=true \(20 GB\)$"):
        check_fits([(named, far)], size)
    check_fits([(SimpleNamespace(cell=cell("full")), far)], size)  # on the CPU


class Machine:
    """Runs that take 3 seconds, 0.5 a step and 0.01 an item; the first of a size 9 more."""

    def __init__(self, fails=""):
        self.now, self.fails, self.seen = 0.0, fails, []

    def clock(self):
        return self.now

    def carry(self, cells, key, store):
        (one,) = cells
        steps, limit = one.train.max_steps or 0, one.evaluate.limit
        if one.adapter.kind == self.fails:
            raise RuntimeError("out of\nmemory")
        train, score = 0.5 * steps + 1, 0.01 * limit * len(one.evaluate.tasks) + 1
        self.now += 1 + train + score + 9 * ((steps, limit) not in self.seen)
        self.seen.append((steps, limit))
        record = stored.record(
            key,
            config={"adapter": {"kind": one.adapter.kind}, "evaluate": plain(one.evaluate)},
            parameters={"base": self.parameters},
            data={"mean_length": 10.0},
            costs={"train_seconds": train, "eval_seconds": score, "tokens_seen": 100 * steps},
            provenance={"hardware": {"device": "cpu"}},
        )
        with store.writing(key) as draft:
            (draft / "record.json").write_text(json.dumps(record))


@pytest.fixture
def asked(tmp_path):
    words = ["adapter=lora,full", "rank=4", "seed=0,1", "evaluate=micro", "train=micro"]
    return [named for named in plan_grid([*words, f"out={tmp_path}/none"]).design.cells]


@pytest.mark.usefixtures("own_cache")
def test_two_probes_tell_the_pace_from_what_comes_beside(asked, store):
    machine = Machine(fails="full")
    machine.parameters = asked[0].identity.files.parameters
    found, failed = probes(asked, carry=machine.carry, clock=machine.clock)
    assert {one.adapter for one in found} == {"lora", "none"}
    assert [(c.adapter.kind, why) for c, why in failed] == [("full", "out of memory")]
    lora = next(one for one in found if one.adapter == "lora")
    # 100 tokens a step in 0.5 s; an item in 0.01 s; 3 seconds beside them in every run
    assert lora.train_rate == pytest.approx(6 * machine.parameters * 100 / 0.5)
    each = eval_flops(
        machine.parameters, 10.0, Evaluate(name="e", tasks=("micro_knowledge",), limit=1)
    )
    assert lora.eval_rate == pytest.approx(each / 0.01)
    assert lora.rest == pytest.approx(3)
    assert {steps for steps, _ in machine.seen} <= {0, 1, 3}  # the real ones are hundreds


@pytest.mark.usefixtures("own_cache")
def test_probes_count_until_such_a_run_is_recorded(store):
    keep([Done("lora", MILLION, False, 6e8, 1e9, 3.0), Done("full", MILLION, False, 3e8, 1e9, 4.0)])
    keep([Done("lora", MILLION, False, 6e9, 1e9, 3.0)])  # in the place of the first
    assert len(probed()) == 2
    found = pace(store)
    assert found.basis([work()]) == "2 probes on this machine"
    assert not found.recorded(work())
    scoring = work().eval_flops / 1e9
    assert found.seconds(work()) == pytest.approx(1 + scoring + 3)
    assert found.seconds(work("full")) == pytest.approx(20 + scoring + 4)
    recorded(store, "a", ended=100.0, train=20.0, score=5.0)
    found = pace(store)
    assert found.basis([work()]) == "1 runs recorded here and 2 probes on this machine"
    assert found.recorded(work())
    assert found.seconds(work()) == pytest.approx(28)  # 3 beside, of the probe
    assert found.seconds(work("full")) == pytest.approx(20 + scoring + 4)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("text", ["", "[]", '{"HOST": [{"other": 1}]}'])
def test_a_file_of_probes_that_is_no_such_is_none(text, tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    text = text.replace("HOST", socket.gethostname())
    (tmp_path / "cache" / "probes.json").write_text(text)
    assert probed() == ()


def test_a_sweep_ends_with_what_was_expected_of_it(monkeypatch):
    estimate = SimpleNamespace(
        by_run=[20.0, 20.0, 30.0], seconds=70.0, basis="3 probes", start_seconds=8.0
    )
    outcome = SimpleNamespace(processor_seconds=90.0)
    monkeypatch.setattr(gpu_slots, "gpus", list)
    told = expected(estimate, outcome, Workers(2, per_gpu=1))  # on a GPU if there is one
    assert told == ("58 s from 3 probes; processor time on this machine 90 s, expected 86 s")
    monkeypatch.setattr(gpu_slots, "gpus", lambda: ["0"])
    assert expected(estimate, outcome, Workers(2, per_gpu=1)) == "58 s from 3 probes"
