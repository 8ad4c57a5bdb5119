"""What is seen of a sweep while it runs: in its own terminal, and from another process."""

import io
import json
import time

import pytest
from rich.console import Console

from ablate.commands import status
from ablate.errors import UserError
from ablate.experiment.identity import digest
from ablate.following import Following
from ablate.live import View
from ablate.results import heart, leases
from ablate.results.store import Store
from ablate.watch import Observer
from tests import stored

FACTS = {"step": 12.0, "of": 40.0, "loss": 1.23456, "tokens_per_second": 812.4, "step_seconds": 2.0}


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "out")
    found.prepare()
    return found


def named(store, count):
    """Write the names of so many runs; return their keys."""
    names = [
        {
            "levels": {"study": "s", "adapter": "lora", "rank": 8, "seed": seed, "sham": "a"},
            "settings": {"seed": seed},
            "train_key": f"{seed:016x}", "score_keys": [], "alias": False,
            "effective_plw": 0.0, "rg": None, "train_rows": 1,
        }
        for seed in range(count)
    ]  # fmt: skip
    path = store.out / "designs" / f"{digest(names)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"study": "s", "asked": [], "common": {}, "names": names}))
    return [name["train_key"] for name in names]


def done(store, key):
    stored.put(store.out, key, costs={"train_seconds": 9.0, "eval_seconds": 4.0})


def terminal(*, tty):
    console = Console(file=io.StringIO(), width=110, force_terminal=tty, color_system=None)
    return console, console.file


def test_a_lease_says_how_far_its_run_is_in_numbers(store):
    with store.claim("a"), store.claim("b"):
        heart.work_on(store.claims, None)
        heart.at("step 12 of 40", FACTS, key="a")
        assert store.claimed("a").facts == FACTS
        assert store.claimed("b").facts == {}
        heart.note(store.claims, "b", {"left": 60.0})
        assert store.claimed("b").facts == {}  # written with the next beat
        heart._held[heart._name(store.claims, "b")].write(beat=True)
        assert store.claimed("b").facts == {"left": 60.0}
        heart.at("scoring", key="a")
        assert store.claimed("a").facts == {}
        heart.at("\U0001f600" * 200, FACTS, key="a")  # the file stays of one size
        assert store.claimed("a").place == "\U0001f600" * leases.PLACE
        assert store.claimed("a").facts == FACTS
        assert next(store.claims.glob("a.*")).stat().st_size == leases.SIZE


def test_a_folder_that_others_fill_is_followed_to_its_end(store):
    a, b, c = named(store, 3)
    done(store, a)
    console, file = terminal(tty=False)
    with Following(store.out, console, every=0.0) as following, store.claim(b):
        heart.work_on(store.claims, None)
        heart.at("step 12 of 40", FACTS, key=b)
        with store.claim(leases.leader_key(leases.here())):
            leader = heart._held[heart._name(store.claims, leases.leader_key(leases.here()))]
            leader.note({"left": 240.0})
            leader.write(beat=True)
            assert following.look()
            assert following.look()  # nothing is new: no line
        store.fail(c, {"kind": "error", "error": "ValueError: no\nmore"})
        assert following.look()
        done(store, b)
        assert not following.look()
    assert file.getvalue().splitlines() == [
        "1/3 cells, 812 tokens/s, about 4 min left",
        f"failed: seed=2 {c}: ValueError: no more",
        "1/3 cells, 1 failed, 812 tokens/s",
        "2/3 cells, 1 failed, 812 tokens/s",
    ]


def test_a_terminal_shows_what_is_under_way(store):
    a, b, c = named(store, 3)
    done(store, a)
    console, file = terminal(tty=True)
    with Following(store.out, console, every=0.0) as following:
        with store.claim(b), store.claim(c):
            heart.work_on(store.claims, None)
            heart.at("step 12 of 40", FACTS, key=b)
            heart.at("scoring", key=c)
            assert following.look()
        text = file.getvalue()
        row = next(line for line in text.splitlines() if f"seed=1 {b}" in line)
        # 28 steps of 2 s, then 4 s of scoring as the last runs took
        assert row.split()[2:] == ["step", "12", "of", "40", "1.235", "812", "60", "s"]
        assert "scoring" in next(line for line in text.splitlines() if f"seed=2 {c}" in line)
        assert "1/3" in text
    assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_a_narrow_terminal_keeps_what_matters_most(store):
    from ablate.watch import Seen

    a, b, c = named(store, 3)
    long = {a: "adapter=lora plw=0.1 rank=8", b: "adapter=lora plw=0.3 rank=8"}
    for width in (40, 60, 200):
        file = io.StringIO()
        console = Console(file=file, width=width, force_terminal=True, color_system=None)
        with View(console, lambda key: f"{long[key]} {key}") as view:
            with store.claim(a), store.claim(b):
                heart.work_on(store.claims, None)
                heart.at("step 12 of 40", FACTS, key=a)
                heart.at("step 13 of 40", FACTS, key=b)
                seen = Seen([c], [], 19, Observer(store, [a, b, c])().running)
                view.show(seen, ", about 7 min left (from the model's size)", {a: 61.0, b: 60.0})
            lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width + len("\x1b[?25l\x1b[?25h\x1b[1A\x1b[2K\r")
        foot = next(line for line in lines if "1/19" in line)
        assert "about 7 min left" in foot
        assert ("from the model's size)" in foot) == (width > 60)
        rows = sorted(line for line in lines if "plw=0.1" in line or "plw=0.3" in line)
        assert len(rows) == 2
        assert [row.split()[-2:] for row in rows] == [["61", "s"], ["60", "s"]]
        assert [row.split("step ")[1].split()[0] for row in rows] == ["12", "13"]
        assert all("1.235" in row for row in rows)
        assert all(("812" in row) == (width > 40) for row in rows)
        assert (f"{long[a]} {a}" in rows[0]) == (width == 200)


def test_it_says_when_nothing_has_moved(monkeypatch):
    console, file = terminal(tty=False)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    from ablate.watch import Seen

    view = View(console, str, every=30.0)
    seen = Seen([], [], 4, {})
    for moment in (0.0, 10.0, 31.0, 200.0, 310.0):
        now[0] = moment
        view.show(seen, ", about 9 s left")
    now[0] = 345.0
    view.show(Seen(["a"], [], 4, {}), "")
    assert file.getvalue().splitlines() == [
        "0/4 cells, about 9 s left",
        "0/4 cells, about 9 s left, nothing has moved for 5 min",
        "1/4 cells",
    ]


def test_the_verb_ends_with_the_states_and_without_a_traceback(store, monkeypatch, capsys):
    a, b = named(store, 2)
    done(store, a)

    def stopped(seconds):
        assert seconds == 5.0
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", stopped)
    assert status.VERB.main(["--watch=5", str(store.out)]) == 0
    said = capsys.readouterr()
    assert "1/2 cells, no sweep is at work here" in said.out
    assert "1 done" in said.out
    assert said.err == ""
    done(store, b)
    monkeypatch.setattr(status.time, "sleep", None)  # all is done: it does not wait
    for words in (["--watch", str(store.out)], [f"out={store.out}", "--watch"]):
        assert status.VERB.main(words) == 0
        assert "2 done" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--watch=0: must be a number of seconds, 0.2 to 3600"):
        status.VERB.main([str(store.out), "--watch=0"])
    with pytest.raises(UserError, match="takes one folder"):
        status.VERB.main([str(store.out), "--watch", "other"])
    with pytest.raises(UserError, match="no folder of results"):
        status.VERB.main([str(store.out / "none"), "--watch"])


def test_a_look_at_2000_runs_costs_what_is_new(store, monkeypatch):
    """Files of what ended before are not opened again; under half a second of processor time."""
    keys = named(store, 2000)
    for key in keys[:1900]:
        (store.cells / key).mkdir()
        (store.cells / key / "record.json").write_text("{}")
    for key in keys[1900:1950]:
        store.fail(key, {"kind": "error", "error": "no"})
    look = Observer(store, keys)
    assert [len(look().done), len(look().failed)] == [1900, 50]
    for name in ("record", "given_up", "failures"):
        monkeypatch.setattr(store, name, None)
    used = time.process_time()
    seen = look()
    assert time.process_time() - used < 0.5
    assert (len(seen.done), len(seen.failed), seen.total) == (1900, 50, 2000)
