"""A folder of results that is hurt: told, no traceback, and whole again after the same sweep.

Cells are not trained here: a run's record is what `recorded` writes, which is the same every time.
`tests/slow/test_damage.py` does the same with real training.
"""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from ablate import app, run
from ablate.cli import VERBS
from ablate.commands import plan_view
from ablate.commands import status as status_verb
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.experiment.status import damaged_lines, states
from ablate.experiment.summary import summarise
from ablate.results import files, repairs
from ablate.results.store import Store
from ablate.terminal import CONSOLE
from tests import stored
from tests.damage import WAYS, WHOLE

OVERRIDES = [
    "masking=instruction,none", "plw=0.1", "adapter=lora", "rank=2", "train.lr=1e-3",
    "train.max_steps=2", "evaluate=none", "evaluate.tasks=[micro_questions]", "evaluate.limit=10",
]  # fmt: skip
FILES = (
    "record.json", "config.yaml", "items.parquet", "history.parquet", "weights/w.safetensors",
)  # fmt: skip
OTHERS = ("designs/{design}.json", "results.parquet", "study.json", "report/index.html")


def recorded(cells, key, store, **_):
    """Write the record of a run that nothing was trained for; count that it was asked for."""
    recorded.asked.append(key)
    units = run.identify(cells[0]).units
    score = {
        "score_key": units[0].key, "task": units[0].name, "metric": "acc", "unit": "fraction",
        "value": int(key, 16) / 16**16, "n": 10, "task_type": "mc", "side": "both", "skill": "",
        "se": 0.1, "higher_is_better": True, "chance": 0.25,
    }  # fmt: skip
    with store.writing(key) as draft:
        stored.fill(draft, key, scores=[score], score_keys=[unit.key for unit in units])
        (draft / "weights").mkdir()
        (draft / "weights" / "w.safetensors").write_bytes(key.encode() * 9)
        (draft / "log.txt").write_text("trained\n")


def report(results, out, **_):
    """Write a page that says what table it is of."""
    out.mkdir(exist_ok=True)
    (out / "index.html").write_text(f"<html>{len(pd.read_parquet(results))} rows</html>")
    return out / "index.html"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The plan of a small grid, and a folder of its results that is whole."""
    out = tmp_path_factory.mktemp("damage") / "out"
    request = plan_grid([*OVERRIDES, f"out={out}"])
    with pytest.MonkeyPatch.context() as patch:
        sweep(request, patch)
    assert len(recorded.asked) == 3  # two cells and the base
    return request


def sweep(request, patch):
    recorded.asked = []
    patch.setattr(app, "plan_grid", lambda *_, **__: request)
    patch.setattr("ablate.run.run_cells", recorded)
    patch.setattr("analysis.report.build.build", report)
    app.sweep_grid([], app._launch_here)


def at(request, out):
    return replace(request, out=out)


@pytest.fixture
def hurt(whole, tmp_path):
    """A copy of the folder, which may be hurt, and the key of one of its cells."""
    out = tmp_path / "out"
    shutil.copytree(whole.out, out, symlinks=True)
    return out, sorted(whole.design.runs)[1]


def told(request):
    """What the verbs that only read say of a folder; they may not move anything."""
    before = sorted(request.out.rglob("*"))
    with CONSOLE.capture() as said:
        try:
            status_verb.render(states(request.out), CONSOLE)
        except UserError as error:
            CONSOLE.print(str(error))
        for line in damaged_lines(request.out):
            CONSOLE.print(line)
        plan_view.render(summarise(request), CONSOLE)
    assert sorted(request.out.rglob("*")) == before
    return said.get()


def check(request, whole, patch, *, again):
    """The same sweep ends with all records and the table of the whole folder; return its words."""
    with CONSOLE.capture() as said:
        sweep(request, patch)
    assert recorded.asked == again
    ours, theirs = Store(request.out), Store(whole.out)
    for key in whole.design.runs:
        assert ours.fault(key, every_byte=True) == ""
        assert ours.record(key) == theirs.record(key)
    assert (request.out / "results.parquet").read_bytes() == (
        whole.out / "results.parquet"
    ).read_bytes()
    assert {state.state for state in states(request.out)} == {"done"}
    page = request.out / "report" / "index.html"
    assert page.read_text() == (whole.out / "report" / "index.html").read_text()
    assert json.loads((request.out / "study.json").read_text())
    sweep(request, patch)
    assert recorded.asked == []  # all is there
    return said.get()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_of_a_record_is_hurt(whole, hurt, monkeypatch, file, way):
    out, key = hurt
    WAYS[way](out / "cells" / key / file)
    request = at(whole, out)
    said = told(request)
    assert f"{key}" in said
    assert "1 damaged" in said
    assert "2 done, 0 failed, 1 to do" in " ".join(said.split())
    assert said.count(f"cells/{key} is damaged") == 1
    said = check(request, whole, monkeypatch, again=[key])
    assert said.count(f"damaged: cells/{key} was moved to damaged/{key}") == 1
    assert (out / "damaged" / key).exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", OTHERS)
def test_a_file_beside_the_records_is_hurt(whole, hurt, monkeypatch, file, way):
    out, _ = hurt
    (design,) = (out / "designs").glob("*.json")
    WAYS[way](out / file.format(design=design.stem))
    told(at(whole, out))
    check(at(whole, out), whole, monkeypatch, again=[])


@pytest.mark.parametrize("state", WHOLE)
def test_the_folder_is_hurt(whole, hurt, monkeypatch, state):
    out, key = hurt
    damage, again = WHOLE[state]
    damage(out, key)
    told(at(whole, out))
    check(at(whole, out), whole, monkeypatch, again=[key] * again)


def test_a_folder_that_may_not_be_written_is_reported_elsewhere(hurt, tmp_path, monkeypatch):
    """No file of it may be written; its table is behind its records."""
    out, key = hurt
    shutil.rmtree(out / "cells" / key)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    may_write = files.write

    def write(path, content):
        if path.is_relative_to(out):
            raise OSError(30, "Read-only file system")
        may_write(path, content)

    monkeypatch.setattr("ablate.results.store.write", write)
    monkeypatch.setattr("analysis.report.build.build", report)
    with pytest.raises(UserError, match=r"Read-only file system.*--out DIR"):
        VERBS["report"].main([str(out)])
    assert VERBS["report"].main([str(out), "--out", str(tmp_path / "to")]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert (
        pd.read_parquet(tmp_path / "to" / "results.parquet")["status"].tolist().count("done") == 2
    )


def test_a_result_that_cannot_have_its_place_is_kept_and_taken_by_the_next_sweep(
    whole, hurt, monkeypatch
):
    out, key = hurt
    store, moved = Store(out), files.set_aside
    shutil.rmtree(store.folder(key))
    store.folder(key).mkdir()
    (store.folder(key) / "stray").write_text("x")

    def stuck(path, folder, name=""):
        if path == store.folder(key):
            raise OSError(16, "Device or resource busy")
        return moved(path, folder, name)

    with monkeypatch.context() as patch:
        patch.setattr("ablate.results.store.set_aside", stuck)
        with pytest.raises(UserError, match=r"Device or resource busy.*kept in"):
            recorded([whole.design.runs[key][0].cell], key, store)
    assert [path.name for path in repairs.kept_results(store)] == [key]
    said = check(at(whole, out), whole, monkeypatch, again=[])  # it is not made again
    assert f"kept/{key} was given its place in cells/" in said
    assert not repairs.kept_results(store)


def test_there_are_sixty_states():
    assert len(WAYS) * (len(FILES) + len(OTHERS)) + len(WHOLE) >= 60
