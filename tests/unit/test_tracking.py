"""Trackers: each cell is a run of its own, with its levels, every step as recorded, its scores."""

import contextlib
import json
import math
import os
import sqlite3
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from ablate import run, tracking
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.experiment.trackers import Trackers, trackers
from ablate.results.record import LEVELS
from ablate.results.store import Store

SHORT = (
    "masking=none", "plw=0.1", "adapter=lora", "rank=2", "train.lr=0.01", "train.batch_size=8",
    "train.max_steps=3", "dataset.max_rows=40", "evaluate.tasks=[]", "evaluate.heldout_rows=8",
    "execution.device=cpu", "report=false", "score_base=false",
)  # fmt: skip
OFTEN = ("train/loss", "train/loss_completion", "train/grad_norm", "train/lr")


@pytest.fixture(scope="module")
def cells():
    return {named.key: named.cell for named in plan_grid([*SHORT, "seed=0,1"]).design.cells}


class Recorder(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "recorder"
    requires_logging_directory = False
    runs: list["Recorder"] = []

    def __init__(self, project, **_):
        super().__init__()
        self.project, self.config, self.logged, self.state = project, None, [], "new"

    @property
    def tracker(self):
        return self

    def start(self):
        assert all(other.state == "finished" for other in Recorder.runs)
        self.state = "open"
        Recorder.runs.append(self)

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_):
        assert self.state == "open"
        self.logged.append((step, values))

    def finish(self):
        self.state = "finished"


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "runs", [])
    asked(monkeypatch, tmp_path, "recorder")
    return Recorder


def asked(monkeypatch, tmp_path, *kinds):
    found = Trackers(kinds, "mine", "short", str(tmp_path / "tracking"))
    monkeypatch.setattr(tracking, "_asked", Trackers())  # restored at the end
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_ALLOW_FILE_STORE",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
        "WANDB_SILENT",
        "WANDB_INIT_TIMEOUT",
    ):  # so too what is set in the environment
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    tracking.ask(json.loads(json.dumps(found.plain())))


def carried_out(cells, tmp_path):
    store = Store(tmp_path / "out")
    store.prepare()
    for key, cell in cells.items():
        run.run_cells([cell], key, store)
    return store


def test_each_cell_is_a_run_with_its_levels_steps_and_scores(cells, recorder, tmp_path):
    store = carried_out(cells, tmp_path)
    assert [one.state for one in recorder.runs] == ["finished"] * 2
    for key, one in zip(cells, recorder.runs, strict=True):
        assert one.project == "mine"
        assert {*LEVELS, "train_key", "train.batch_size"} <= one.config.keys()
        levels = {n: one.config[n] for n in ("train_key", "study", "seed", "masking", "plw")}
        assert levels == {
            "train_key": key, "study": "short", "seed": cells[key].seed, "masking": "none",
            "plw": 0.1,
        }  # fmt: skip
        assert all(isinstance(v, bool | int | float | str) for v in one.config.values())
        history = pd.read_parquet(store.folder(key) / "history.parquet")
        *steps, (last, scores) = one.logged
        assert [step for step, _ in steps] == list(history["step"]) == [1, 2, 3]
        for (_, values), row in zip(steps, history.to_dict("records"), strict=True):
            told = {name.removeprefix("train/"): v for name, v in values.items()}
            speed = told.pop("tokens_per_second", None)
            assert (speed is None) == (row["step"] == 1)  # before there is a step to count from
            assert told.pop("tokens_seen") == history["tokens"][: int(row["step"])].sum()
            assert told == {name: row[name] for name in told}
            assert {f"train/{name}" for name in told} >= set(OFTEN)
            assert all(map(math.isfinite, told.values()))
        recorded = store.record(key)["scores"]
        assert last == 3
        assert sorted(scores.values()) == sorted(s["value"] for s in recorded)


def test_what_was_trained_before_is_told_before_its_scores(cells, recorder, tmp_path, monkeypatch):
    """Beside others, or by an attempt that ended while it scored: its steps come from the disk."""
    (key, cell), *_ = cells.items()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            carried_out({key: cell}, tmp_path)
    store = carried_out({key: cell}, tmp_path)
    first, second = recorder.runs
    assert first.state == second.state == "finished"
    assert [step for step, _ in first.logged] == [1, 2, 3]
    assert [step for step, _ in second.logged] == [1, 2, 3, 3]
    for (_, told), (_, again) in zip(first.logged, second.logged, strict=False):
        told.pop("train/tokens_per_second", None)
        assert again == told
    assert store.record(key)["scores"]


def test_a_tracker_that_fails_costs_no_cell(cells, recorder, tmp_path, monkeypatch, capsys):
    (key, cell), *_ = cells.items()

    def full(self, values, step=None, **_):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(recorder, "log", full)
    store = carried_out({key: cell}, tmp_path)
    assert store.record(key)["training"]["steps"] == 3
    said = (store.folder(key) / "log.txt").read_text()
    assert said.count("NOT TRACKED by recorder from here on: ConnectionError: nobody is there") == 1
    assert capsys.readouterr().err.count("NOT TRACKED") == 1
    assert recorder.runs[0].state == "finished"


def test_a_tracker_that_is_not_there_costs_one_wait_and_no_other_tracker(
    cells, recorder, tmp_path, monkeypatch, capsys
):
    class Absent(Recorder):
        name = "absent"
        asked = 0

        def start(self):
            Absent.asked += 1
            raise ConnectionError("nobody is there")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "absent", Absent)
    asked(monkeypatch, tmp_path, "absent", "recorder")
    for key, cell in cells.items():
        with tracking.tracked(cell, key) as track:
            track.hear([{"tokens": 1, "loss": 1.0}])
    assert Absent.asked == 1
    said = "NOT TRACKED by absent from here on, nor in other cells for the next 10 minutes: Conn"
    assert capsys.readouterr().err.count(said) == 1
    assert [len(one.logged) for one in recorder.runs] == [1, 1]
    (mark,) = (tmp_path / "tracking").glob(".unreached-*")  # other processes see it
    os.utime(mark, (0, 0))
    with tracking.tracked(cell, key):
        assert Absent.asked == 2


def test_who_waited_for_anothers_attempt_does_not_repeat_it(cells, recorder, tmp_path, monkeypatch):
    """Workers that begin at once open their trackers one after another, behind a lock."""
    (key, cell), *_ = cells.items()
    alone = tracking._alone

    @contextlib.contextmanager
    def late():
        with alone():
            (tmp_path / "tracking" / ".unreached-recorder").touch()  # by the other, meanwhile
            yield

    monkeypatch.setattr(tracking, "_alone", late)
    with tracking.tracked(cell, key):
        assert not recorder.runs


def test_of_two_trackers_the_one_that_works_goes_on(cells, recorder, tmp_path, monkeypatch):
    class Full(Recorder):
        name = "full"

        def log(self, values, step=None, **_):
            raise OSError("no space is left")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "full", Full)
    asked(monkeypatch, tmp_path, "full", "recorder")
    (key, cell), *_ = cells.items()
    monkeypatch.setattr(Full, "start", lambda self: None)
    with tracking.tracked(cell, key) as track:
        track.hear([{"tokens": 1, "loss": 1.0}])
        track.hear([{"tokens": 1, "loss": 1.0}] * 2)
    assert [step for step, _ in recorder.runs[0].logged] == [1, 2]


def test_only_the_first_of_several_processes_tracks(cells, recorder, monkeypatch):
    monkeypatch.setattr(tracking, "is_first", lambda: False)
    (key, cell), *_ = cells.items()
    with tracking.tracked(cell, key) as track:
        track.hear([{"tokens": 1, "loss": 1.0}])
    assert recorder.runs == []


def test_nothing_is_tracked_unless_it_is_asked_for(cells, recorder):
    tracking.ask(Trackers().plain())
    (key, cell), *_ = cells.items()
    with tracking.tracked(cell, key) as track:
        track.hear([{"tokens": 1, "loss": 1.0}])
        track.scores([])
    assert recorder.runs == []


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    settings = {"tracker": "wandb", "tracker_project": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        trackers(settings, study="none", out=tmp_path)
    assert str(error.value) == (
        "tracker=wandb: the package wandb is not installed; pip install 'ablate[trackers]', "
        "or that package alone"
    )
    assert trackers(settings | {"tracker": "none"}, study="none", out=tmp_path).kinds == ()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorboardX")
    both = settings | {"tracker": ("tensorboard", "tensorboard"), "tracker_project": "p"}
    found = trackers(both, study="s", out=tmp_path / "out")
    assert found == Trackers(("tensorboard",), "p", "s", str(tmp_path / "out" / "tracking"))


def test_trackers_are_no_part_of_a_run(cells):
    asked_too = plan_grid([*SHORT, "seed=0,1", "tracker=[wandb,mlflow]", "tracker_project=p"])
    assert list(asked_too.design.runs) == list(cells)


# -- the trackers themselves, where they are installed -----------------------------------------

HISTORY = [
    {"step": n, "tokens": 100, "loss": 1 / n, "loss_completion": 2 / n, "loss_text": None,
     "grad_norm": 0.5, "lr": 0.01, "completion_grad_share": math.nan}
    for n in (1, 2, 3)
]  # fmt: skip
SCORES = [SimpleNamespace(task="micro lives", metric="acc,none", value=0.25)]


def told(cells):
    for key, cell in cells.items():
        with tracking.tracked(cell, key) as track:
            track.hear(HISTORY[:1])
            track.hear(HISTORY, 80.0)
            track.scores(SCORES)


def test_tensorboard(cells, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked(monkeypatch, tmp_path, "tensorboard")
    told(cells)
    folders = sorted((tmp_path / "tracking" / "tensorboard").iterdir())
    assert sorted(folder.name[-8:] for folder in folders) == sorted(key[:8] for key in cells)
    for folder in folders:
        found = EventAccumulator(str(folder / "mine")).Reload()
        losses = [(e.step, pytest.approx(e.value)) for e in found.Scalars("train/loss")]
        assert losses == [(n, 1 / n) for n in (1, 2, 3)]
        (score,) = found.Scalars("score/micro_lives/acc_none")
        assert (score.step, score.value) == (3, 0.25)
        (speed,) = found.Scalars("train/tokens_per_second")
        assert (speed.step, speed.value) == (3, 80)
        (settings,) = (folder / "mine").glob("*/hparams.yml")
        assert "masking: none" in settings.read_text()


def test_mlflow(cells, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    asked(monkeypatch, tmp_path, "mlflow")
    told(cells)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'mine'")
    found = client.search_runs([experiment.experiment_id], filter_string="params.seed = '1'")
    (one,) = found
    assert one.data.params["train_key"] in cells
    assert one.data.tags["study"] == "short"
    assert one.data.metrics["score/micro_lives/acc_none"] == 0.25
    losses = client.get_metric_history(one.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [(n, 1 / n) for n in (1, 2, 3)]
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_cell_that_fails_is_a_failed_run_of_mlflow(cells, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    asked(monkeypatch, tmp_path, "mlflow")
    (key, cell), *_ = cells.items()
    with pytest.raises(KeyboardInterrupt), tracking.tracked(cell, key):
        raise KeyboardInterrupt
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'mine'")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FAILED"


def test_wandb_offline(cells, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    asked(monkeypatch, tmp_path, "wandb")
    told(cells)
    folders = list((tmp_path / "tracking" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    written = [next(folder.glob("*.wandb")).read_bytes() for folder in folders]
    for key in cells:
        (own,) = [content for content in written if key.encode() in content]
        assert b"train/loss_completion" in own
        assert b"score/micro_lives/acc_none" in own


def test_what_trackio_announces_is_not_printed_and_what_it_warns_of_is(
    cells, tmp_path, monkeypatch, capfd
):
    """In the words of trackio 0.43, which accelerate opens and which is not installed here."""
    said, ended = "* Created new run: a\n* Run finished. Uploading logs to Trackio", []

    class Trackio(Recorder):
        name = "trackio"

        def start(self):
            print("* Trackio project initialized: mine")
            print("* View dashboard by running in your terminal:")
            print('\x1b[1m\x1b[38;5;208mtrackio show --project "mine"\x1b[0m')
            print("* Trackio warning: the disk is nearly full")
            print(said, end="")
            self.state = "open"

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", Trackio)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    module = SimpleNamespace(finish=lambda: ended.append(print(said)))
    monkeypatch.setitem(sys.modules, "trackio", module)
    asked(monkeypatch, tmp_path, "trackio")
    told(cells)
    assert len(ended) == len(cells)
    assert capfd.readouterr().out == "* Trackio warning: the disk is nearly full\n" * len(cells)
    print("heard again")
    assert capfd.readouterr().out == "heard again\n"


def test_trackio(cells, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # is read as it is imported
    pytest.importorskip("trackio")
    asked(monkeypatch, tmp_path, "trackio")
    told(cells)
    assert capfd.readouterr().out == ""
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "mine.db")) as found:
        rows = found.execute("select run_name, count(*) from metrics group by run_name").fetchall()
    assert [count for _, count in rows] == [len(HISTORY) + 1] * len(cells)
