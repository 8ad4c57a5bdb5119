"""How long runs are expected to take: from recorded ones, with all that comes beside them."""

import json
import socket
from types import SimpleNamespace

import pytest
from rich.console import Console

from ablate.config.build import plain
from ablate.config.schema import Evaluate
from ablate.errors import UserError
from ablate.experiment.cost import START_SECONDS, wall_seconds
from ablate.experiment.gpu_fit import CERTAIN, Need, check_fits
from ablate.experiment.pace import FLOPS_PER_SECOND, NOTHING, OTHERS, Work, eval_flops, pace
from ablate.progress import Shown
from ablate.results.store import Store
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


def test_time_left_counts_runs_by_what_they_take():
    """A short run that was first, and long ones of which none has ended, are not alike."""
    shown = Shown(Console(quiet=True), {"base": 1.0, "a": 10.0, "b": 10.0})
    shown.plan = SimpleNamespace(runs=dict.fromkeys(("base", "a", "b")))
    shown.first = frozenset()
    assert shown.left([], [], spent=3.0) is None
    # 1 of 21 done and half of a run under way, 6 in 12 seconds: the other 15 take 30
    assert shown.left(["base"], [], spent=12.0) == pytest.approx(30)
    assert shown.left(["base", "a", "b"], [], spent=12.0) == 0
    assert shown.left(["base"], ["a", "b"], spent=12.0) == 0


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
