"""`ablate decide` from its words to its ledger; the training is replaced by scores from a table."""

import json
import shutil
import statistics
import subprocess
import sys

import pytest

import ablate
from ablate import cli
from ablate.commands import decide as verb
from ablate.commands.decide_ledger import FILE, DecisionLedger
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.results import leases
from ablate.results.store import Store
from tests.imports import ROOT
from tests.stored import put

COMMON = ["rank=2", "train.max_steps=5", "train.lr=1e-3", "evaluate=none",
          "evaluate.tasks=[micro_questions]", "evaluate.limit=100"]  # fmt: skip
BASE, BETTER = "adapter=lora", "adapter=mora"
NOISE = (0.4, -0.3, 0.1, 0.6, -0.5, 0.2, -0.1, 0.3, -0.6, 0.5)


class World:
    """What the runs of both adapters would score, in points, and what was trained so far."""

    def __init__(self, out, gain):
        self.out, self.gain = out, gain
        self.trained, self.failing, self.stop_after = [], set(), None
        self.harder = {}  # benchmark: points less
        self.unscored = set()  # (adapter, seed, benchmark) of which the score fails
        self.scores = {}  # of every run, those of several requests

    def score(self, adapter, seed):
        noise = NOISE[(3 * seed + (adapter == "mora")) % len(NOISE)]
        return 50 + noise + self.gain * (adapter == "mora")

    def train(self, overrides, given):
        """Record what a sweep would, cell by cell."""
        status = 0
        for named in plan_grid(overrides).design.cells:
            if self.stop_after is not None and len(self.trained) >= self.stop_after:
                return 130
            adapter, seed = named.cell.adapter.name, named.cell.seed
            if (adapter, seed) in self.failing:
                status = 1
                continue
            self.record(named, adapter, seed)
            self.trained.append((adapter, seed))
        return status

    def record(self, named, adapter, seed):
        units = [unit for unit in named.identity.units if unit.kind == "task"]
        scores = [
            {"score_key": unit.key, "task": unit.name, "task_type": "mc", "metric": "acc",
             "value": (self.score(adapter, seed) - self.harder.get(unit.name, 0)) / 100,
             "unit": "fraction", "n": 100, "higher_is_better": True}
            for unit in units if (adapter, seed, unit.name) not in self.unscored
        ]  # fmt: skip
        own = self.scores.setdefault(named.key, {})
        own |= {score["score_key"]: score for score in scores}
        lost = [{"score_key": unit.key, "asked": unit.name, "error": "no room"}
                for unit in units if unit.key not in own]  # fmt: skip
        shutil.rmtree(self.out / "cells" / named.key, ignore_errors=True)
        put(self.out, named.key, scores=list(own.values()), unscored=lost,
            score_keys=[*own, *(one["score_key"] for one in lost)])  # fmt: skip


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path / "out", gain=3.0)
    monkeypatch.setattr(verb, "sweep", made.train)
    return made


def asked(world, *words, sides=(BASE, BETTER), margin="1", looks="4,6,8"):
    own = ["--looks", looks, "--margin", margin, *words]
    return ["decide", *sides, *COMMON, f"out={world.out}", *own]


def answer(capsys, words):
    """The exit status and the one object on standard output."""
    status = cli.main([*words, "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return status, json.loads(lines[0])


def refused(capsys, words):
    assert cli.main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_a_gain_is_accepted_once_and_asked_again_for_nothing(world, capsys):
    status, found = answer(capsys, asked(world))
    assert (status, found["verdict"], found["decision"]) == (0, "accept", 1)
    n = len(found["seeds"])
    assert sorted(world.trained) == sorted((a, s) for a in ("lora", "mora") for s in range(n))
    assert found["runs_trained"] == 2 * n
    expected = [world.score("mora", s) - world.score("lora", s) for s in range(n)]
    assert found["differences"] == pytest.approx(expected)
    assert found["low"] > 0
    assert found["estimate"] == pytest.approx(sum(expected) / n)
    assert found["rule"]["alpha"] == pytest.approx(0.05 / 100)
    ledger, trained = (world.out / FILE).read_bytes(), list(world.trained)
    again = answer(capsys, asked(world))
    assert again[0] == 0
    assert again[1] == found | {"asked_before": True, "runs_trained": 0}
    assert (world.out / FILE).read_bytes() == ledger
    assert world.trained == trained
    assert cli.main(asked(world)) == 0
    assert capsys.readouterr().out.startswith("accept: the candidate is better than its base")


def test_no_gain_is_rejected_and_too_few_seeds_leave_it_open_what_is_true(world, capsys):
    world.gain = 0.0
    status, found = answer(capsys, asked(world))
    assert (status, found["verdict"]) == (4, "reject")
    assert found["high"] < 1
    status, found = answer(capsys, asked(world, "evaluate.limit=90", looks="3",
                                         margin="0.3"))  # fmt: skip
    assert (status, found["verdict"], found["final"]) == (1, "undecided", True)
    assert found["decision"] == 2


def test_what_an_accepted_decision_had_goes_to_the_next(world, capsys):
    words = asked(world, "--alpha", "0.04", "--decisions", "10")
    assert answer(capsys, words)[1]["rule"]["alpha"] == pytest.approx(0.002)
    world.gain = 0.0
    for limit, alpha in ((90, 0.004), (80, 0.002)):
        found = answer(capsys, asked(world, f"evaluate.limit={limit}"))[1]
        assert found["rule"]["alpha"] == pytest.approx(alpha)
    said = refused(capsys, asked(world, "evaluate.limit=70", "--alpha", "0.05"))
    assert "--alpha=0.05: this campaign began with 0.04, which stays" in said


def test_recorded_runs_are_not_trained_and_are_told(world, capsys):
    world.train([BASE, *COMMON, f"out={world.out}", "seed=0,1,2", "score_base=false"], None)
    world.train([BETTER, *COMMON, f"out={world.out}", "seed=1", "score_base=false"], None)
    before = list(world.trained)
    found = answer(capsys, asked(world))[1]
    assert len(world.trained) == len(set(world.trained))
    assert found["runs_trained"] == len(world.trained) - len(before)
    assert found["recorded_before"] == [1]


def test_fresh_seeds_are_those_that_nobody_has_seen(world, capsys):
    world.train([BETTER, *COMMON, f"out={world.out}", "seed=4", "score_base=false"], None)
    found = answer(capsys, asked(world, "--fresh"))[1]
    assert found["seeds"][0] == 5
    assert found["recorded_before"] == []
    assert answer(capsys, asked(world))[1]["asked_before"]  # the same question, already answered


def test_another_rule_for_the_same_question_is_refused_or_spends_again(world, capsys):
    first = answer(capsys, asked(world))[1]
    said = refused(capsys, asked(world, margin="2"))
    assert "--margin=2: decision 1 has answered (accept) this with 1; give that again, or" in said
    again = answer(capsys, asked(world, "--anew", margin="2"))[1]
    assert (again["decision"], again["asked_before"]) == (2, False)
    assert not set(again["seeds"]) & set(first["seeds"])
    assert answer(capsys, asked(world, margin="2"))[1]["asked_before"]


def test_the_same_run_under_two_names_is_said_at_once(world, capsys):
    sides = ("masking=instruction", "masking=none plw=0")
    status, found = answer(capsys, asked(world, sides=sides))
    assert (status, found["verdict"], found["same_run"]) == (4, "reject", True)
    assert "are the same run" in found["why"]
    assert world.trained == []
    assert not (world.out / FILE).exists()


@pytest.mark.parametrize("after", [1, 6, 9])
def test_a_command_that_was_stopped_goes_on(world, capsys, tmp_path, after):
    world.stop_after = after
    assert cli.main(asked(world, "--json")) == 130
    assert capsys.readouterr().out == ""
    world.stop_after = None
    found = answer(capsys, asked(world))[1]
    assert len(world.trained) == len(set(world.trained))
    assert (found["decision"], found["campaign"]["opened"]) == (1, 1)
    whole = World(tmp_path / "other", gain=3.0)
    verb.sweep = whole.train
    straight = answer(capsys, asked(whole))[1]
    for name in ("verdict", "seeds", "differences", "low", "high", "rule"):
        assert found[name] == straight[name]


def test_failed_runs_do_not_count_and_are_bounded(world, capsys):
    world.failing = {("mora", 1), ("lora", 2)}
    found = answer(capsys, asked(world))[1]
    assert found["failed_seeds"] == [1, 2]
    assert not {1, 2} & set(found["seeds"])
    assert found["verdict"] == "accept"
    world.failing = {("mora", s) for s in range(40)}
    words = asked(world, "evaluate.limit=90")
    status, found = answer(capsys, words)
    assert (status, found["verdict"], found["final"]) == (1, "undecided", False)
    assert "4 seeds failed, more than 3; `ablate status" in found["why"]
    world.failing = set()
    assert answer(capsys, [*words, "--retry-failed"])[0] == 0


def test_a_run_of_which_one_benchmark_failed_is_not_compared_over_the_others(world, capsys):
    """A mean over what is left would be the difference of two benchmarks, 20 points here."""
    world.unscored, world.harder = {("mora", 1, "micro_pronouns")}, {"micro_pronouns": 40}
    both = "evaluate.tasks=[micro_questions,micro_pronouns]"
    found = answer(capsys, asked(world, both))[1]
    assert found["failed_seeds"] == [1]
    assert found["differences"] == pytest.approx(
        [world.score("mora", s) - world.score("lora", s) for s in found["seeds"]]
    )
    assert ("mora", 1) in world.trained


def test_a_score_that_failed_is_tried_again_where_that_is_asked(world, capsys):
    world.unscored = {("mora", s, "micro_questions") for s in range(4)}
    status, found = answer(capsys, asked(world))
    assert (status, found["final"]) == (1, False)
    world.unscored = set()
    status, found = answer(capsys, asked(world, "--retry-failed"))
    assert (status, found["verdict"], found["failed_seeds"]) == (0, "accept", [])


def test_what_a_look_has_seen_stays_though_its_records_are_gone(world, capsys):
    world.stop_after = 9  # behind the first look
    assert cli.main(asked(world, "--json")) == 130
    capsys.readouterr()
    first = DecisionLedger(Store(world.out)).read().entries[1].differences
    assert len(first) == 4
    for key in Store(world.out).recorded()[:3]:
        shutil.rmtree(world.out / "cells" / key)
    world.stop_after = None
    before = len(world.trained)
    found = answer(capsys, asked(world))[1]
    assert found["differences"][:4] == first
    assert {seed for _, seed in world.trained[before:]} <= set(found["seeds"][4:])


def test_a_process_that_stood_still_takes_the_answer_of_the_one_that_went_on(world, capsys):
    """Another process closed the decision meanwhile, under a lease with a higher number."""

    ledger, claims, key = DecisionLedger(Store(world.out)), world.out / "claims", "decision-1"
    look = {"seeds": [0, 1, 2, 3], "failed": [], "differences": [9.0] * 4, "resolution": 1.0}

    def overtaken(overrides, given):
        status = world.train(overrides, given)
        if len(world.trained) == 8:  # both sides of the first look
            other = leases.take(claims, key, over=leases.holder(claims, key))
            with ledger.changing():
                ledger.add({"event": "look", "decision": 1} | look)
                ledger.add({"event": "close", "decision": 1, "verdict": "accept"})
            other.release()
        return status

    verb.sweep = overtaken
    found = answer(capsys, asked(world))[1]
    assert (found["verdict"], found["differences"], found["asked_before"]) == (
        "accept",
        [9.0] * 4,
        True,
    )
    events = [json.loads(line)["event"] for line in (world.out / FILE).read_text().splitlines()]
    assert events == ["campaign", "open", "look", "close"]


def test_a_campaign_ends_with_its_budget_and_goes_on_with_a_larger_one(world, capsys):
    status, found = answer(capsys, asked(world, "--campaign-seeds", "4"))
    assert (status, found["final"], found["campaign"]["seeds"]) == (1, False, 4)
    assert "has used 4 of 4 seeds" in found["why"]
    assert answer(capsys, asked(world, "--campaign-seeds", "30"))[0] == 0


def test_a_dry_run_writes_and_trains_nothing(world, capsys):
    words = asked(world, "--dry-run")
    status, found = answer(capsys, words)
    assert status == 0
    assert not world.out.exists()
    assert (found["first_look"], found["most"], found["noise"]) == (8, 16, None)
    assert 2 < found["found_at"] < 3
    n = len(answer(capsys, asked(world))[1]["seeds"])
    found = answer(capsys, [*words, "evaluate.limit=90"])[1]
    assert found["decision"] == 2
    assert found["noise"]["source"] == "1 decisions of this campaign"
    sd = statistics.stdev(world.score("mora", s) - world.score("lora", s) for s in range(n))
    assert found["noise"]["sd"] == pytest.approx(sd)
    assert found["noise"]["seeds_of_none"] < found["noise"]["seeds"]
    longer = found["noise"]["enough"]
    assert found["noise"]["power"] < 0.8 <= longer["power"]
    assert longer["max_seeds"] % 2 == 0  # looks go on in their steps
    assert longer["max_seeds"] > max(longer["seeds"], 8)
    assert answer(capsys, words)[1]["answer"]["verdict"] == "accept"
    assert cli.main([*words, "evaluate.limit=80"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "that standard deviation is about" in said
    assert f"for 80%: --looks that go on to {longer['max_seeds']}," in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["decide"], "takes BASE and CANDIDATE, each one word of overrides in quotes"),
        (["decide", BASE, BETTER], "--margin: is needed: the smallest effect worth having"),
        (["decide", BASE, BETTER, "--margin", "0"], "--margin=0: must be a number above 0"),
        (["decide", BASE, BETTER, "seed=1", "--margin", "1"], "seed=1: leave it out: the rule"),
        (["decide", "adapter=lora,full", BETTER, "--margin", "1"], "one level is compared with"),
        (["decide", "evaluate=micro", BETTER, "--margin", "1"], "is the same for both sides"),
        (["decide", "adapter='lora", BETTER, "--margin", "1"], "BASE=adapter='lora: no closing"),
        (["decide", BASE, BETTER, "--margin", "1", "--looks", "3,2"], "--looks=3,2: must be"),
        (["decide", BASE, BETTER, "--margin", "1", "--max-seeds", "1"], "--max-seeds=1: must be"),
        (["decide", BASE, BETTER, "--margin", "1", "--miss", "0.5"], "must lie between 0 and 0.5"),
        (["decide", BASE, BETTER, *COMMON, "--margin", "1", "--score", "micro_question"],
         "Did you mean 'micro_questions'?"),
        (["decide", BASE, BETTER, "rank=2", "evaluate=none", "--margin", "1"],
         "--score=benchmarks: nothing of it is scored with evaluate=none"),
        (["decide", "adapter=lroa", BETTER, "--margin", "1"], "Did you mean 'lora'?"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_and_nothing_is_written(words, said, capsys, tmp_path):
    assert said in refused(capsys, [*words, f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_held_out_losses_compare_on_the_same_rows_alone(world, capsys):
    sides = ("dataset=micro", "dataset=micro_short")
    said = refused(capsys, asked(world, "--score", "test", sides=sides))
    assert "have other held-out rows or another tokenizer" in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [*lines, b"{"], "line 7 is damaged"),
        (lambda lines: [*lines, b'{"event": "look", "decision": 9}'], "line 7 is damaged"),
        (lambda lines: [*lines, b'"x"'], "line 7 is damaged"),
        (lambda lines: [*lines[:2], lines[2][:40]], "line 3 is damaged"),
        (lambda lines: lines[1:], "line 1 is damaged"),
        (lambda lines: [lines[0], *lines[2:]], "line 2 is damaged"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3 is damaged"),
        (lambda lines: [lines[0].replace(b"0.05", b"0.06"), *lines[1:]], "line 1 is damaged"),
        (lambda lines: [], "is empty"),
    ],
)
def test_a_damaged_ledger_is_refused_not_forgotten(world, capsys, damage, said):
    answer(capsys, asked(world))
    lines = (world.out / FILE).read_bytes().splitlines()
    assert len(lines) == 6
    (world.out / FILE).write_bytes(b"".join(line + b"\n" for line in damage(lines)))
    for words in (asked(world, "evaluate.limit=90"), asked(world), asked(world, "--dry-run")):
        told = refused(capsys, words)
        assert f"{said}; put a copy of the file in its place" in told


def test_a_ledger_that_is_no_file_is_refused(world, capsys):
    world.out.mkdir()
    (world.out / FILE).symlink_to("away")  # a disk that is not there
    assert "is no file; put a copy" in refused(capsys, asked(world))
    assert world.trained == []


def test_a_ledger_of_version_1_goes_on(world, capsys):
    """Its lines have no seal; those that are added have one."""
    first = answer(capsys, asked(world))[1]
    lines = [json.loads(line) for line in (world.out / FILE).read_text().splitlines()]
    for line in lines:
        del line["seal"]
    lines[0]["version"] = 1
    (world.out / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert answer(capsys, asked(world))[1] == first | {"asked_before": True, "runs_trained": 0}
    assert answer(capsys, asked(world, "evaluate.limit=90"))[1]["decision"] == 2
    lines = (world.out / FILE).read_bytes().splitlines()
    (world.out / FILE).write_bytes(b"\n".join([*lines[:7], *lines[8:]]))
    assert "line 8 is damaged" in refused(capsys, asked(world))


def test_a_rule_that_was_changed_by_hand_is_refused(world, capsys):
    world.stop_after = 5
    cli.main(asked(world))
    text = (world.out / FILE).read_text()
    (world.out / FILE).write_text(text.replace('"alpha": 0.0005', '"alpha": 0.4'))
    capsys.readouterr()
    assert "line 2 is damaged; put a copy" in refused(capsys, asked(world))


def test_several_processes_add_to_one_ledger(tmp_path):
    """Each adds ten campaigns' lines; none is lost, and each saw all that were there before."""
    code = f"""
import sys
from pathlib import Path
from ablate.commands.decide_ledger import DecisionLedger
from ablate.results.store import Store
store = Store(Path({str(tmp_path)!r}))
store.prepare()
ledger = DecisionLedger(store)
with ledger.changing() as campaign:
    if campaign.settings is None:
        ledger.add({{"event": "campaign", "version": 2, "alpha": 0.05, "decisions": 50}})
for _ in range(10):
    with ledger.changing() as campaign:
        number = max(campaign.entries, default=0) + 1
        ledger.add({{"event": "open", "decision": number, "question": sys.argv[1], "settings": {{}},
            "rule": {{}}, "sha256": "", "fresh_from": None, "passed_on": [], "about": {{}}}})
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in ("a", "b")
    ]
    assert [process.wait() for process in running] == [0, 0]
    entries = DecisionLedger(Store(tmp_path)).read().entries
    assert sorted(entries) == list(range(1, 21))
    assert {e.question for e in entries.values()} == {"a", "b"}


def test_programs_ask_by_a_function(world):
    found = ablate.decide(BASE, BETTER, *COMMON, f"out={world.out}", margin=1.0, looks=(4, 6, 8))
    assert found["verdict"] == "accept"
    assert found["rule"]["looks"] == [4, 6, 8]
    with pytest.raises(UserError, match=r"max_seed: no such setting.* Did you mean 'max_seeds'"):
        ablate.decide(BASE, BETTER, *COMMON, f"out={world.out}", margin=1.0, max_seed=12)
