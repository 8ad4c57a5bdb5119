"""`ablate verify`: what reproduces does so bit for bit; what does not is measured and located."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ablate import run
from ablate import verify as verified
from ablate.cli import main
from ablate.experiment.request import plan_grid
from ablate.results import provenance
from ablate.results.named import named as folder_of
from ablate.results.store import Store
from ablate.training.hooks import Hooks, combine

STEPS = 6
SHORT = (
    "masking=none", "plw=0.1", "rank=2", "train.lr=0.01", "train.batch_size=8",
    f"train.max_steps={STEPS}", "dataset.max_rows=40", "evaluate.tasks=[micro_questions]",
    "evaluate.limit=4", "evaluate.heldout_rows=8", "execution.device=cpu", "report=false",
    "adapter=lora",
)  # fmt: skip
LEARNT = 1e-3  # added to the weights after the third step


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of results of a trained cell and its base, and the keys of both."""
    out = tmp_path_factory.mktemp("results")
    store = Store(out)
    store.prepare()
    keys = {}
    for named in plan_grid(SHORT).design.cells:
        run.run_cells([named.cell], named.key, store)
        keys["base" if named.cell.is_base else "trained"] = named.key
    return out, keys


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_recorded_cell_reproduces_bit_for_bit(recorded, capsys):
    out, keys = recorded
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["verify", keys["trained"][:6], str(out)]) == 0
    told = lines(capsys)
    assert told[-1] == "reproduces, bit for bit"
    names = [line.split()[0] for line in told[1:-1]]
    assert names == ["history", "weights", "scores", "items"]
    assert all(line.endswith("equal") for line in told[1:-1])
    assert f"{STEPS} steps" in told[1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_untouched_base_is_verified_by_its_scores(recorded, capsys):
    out, keys = recorded
    assert main(["verify", str(out / "cells" / keys["base"])]) == 0
    assert [line.split()[0] for line in lines(capsys)[1:-1]] == ["scores", "items"]


def disturbed(monkeypatch):
    """Let training change the weights once, after its third step."""
    made = run.hooks.hooks

    @torch.no_grad()
    def after_step(context):
        if context.step == 2:
            for parameter in context.model.parameters():
                parameter.add_(LEARNT) if parameter.requires_grad else None

    def hooks(*given, **known):
        return combine(made(*given, **known), Hooks(after_step=after_step))

    monkeypatch.setattr(run.hooks, "hooks", hooks)


def test_what_does_not_reproduce_is_located_and_measured(recorded, capsys, monkeypatch):
    out, keys = recorded
    disturbed(monkeypatch)
    assert main(["verify", keys["trained"], f"out={out}"]) == 1
    told = {line.split()[0]: line for line in lines(capsys)}
    assert "from step 4 on in loss" in told["history"]
    off = float(told["weights"].partition("at most ")[2].split()[0])
    assert 0.1 * LEARNT < off < 10 * LEARNT
    assert "differ: " in told["scores"]
    assert "though no difference of the environment is known" in told["does"]


def test_another_environment_is_named(recorded, capsys, monkeypatch):
    out, keys = recorded
    versions = provenance.packages() | {"torch": "1.0"}
    monkeypatch.setattr(provenance, "packages", lambda: versions)
    assert main(["verify", keys["trained"], str(out)]) == 0  # named, though the bits are the same
    told = [line for line in lines(capsys) if "another environment" in line]
    assert len(told) == 1
    assert told[0].endswith("now 1.0")


def test_differences_of_threads_processor_and_lanes_are_told():
    then = {"hardware": {"threads": 1, "host": "a", "pid": 1}, "lanes": 4}
    now = {"hardware": {"threads": 2, "host": "b", "pid": 2, "processor": "P"}, "lanes": 1}
    assert list(verified.differing(then, now)) == [
        "threads 1, now 2", "processor not recorded, now P",
        "trained beside 3 other cells, now alone",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes one cell"),
        (["a", "b", "c"], "takes one cell"),
        (["no_such_key", "OUT"], "no record here"),
        (["", "OUT"], "no record here"),
    ],
)
def test_a_wrong_request_is_one_line(words, said, recorded, capsys):
    assert main(["verify", *(str(recorded[0]) if w == "OUT" else w for w in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", [("verify",), ("export", "--to", "new")])
def test_an_unknown_key_is_refused_before_torch_is_imported(verb, recorded, capsys, monkeypatch):
    """With the nearest key and those that are there; the modules that need torch are never read."""
    out, keys = recorded
    for module in ("ablate.verify", "ablate.export"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it is an error
    key = keys["trained"]
    near = f"{key[:7]}{'0' if key[7] != '0' else '1'}{key[8:]}"
    name, *options = verb
    for words in ([near, str(out)], [str(out / "cells" / near)], [near, f"out={out}"]):
        assert main([name, *words, *options]) == 2
        error = capsys.readouterr().err
        assert f"Did you mean {key!r}?" in error
        assert all(one in error for one in keys.values())


def test_both_verbs_take_a_cell_in_the_same_forms(recorded, tmp_path, monkeypatch):
    out, keys = recorded
    key, default = keys["trained"], "results/default"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / default).symlink_to(out)
    for words in (
        [str(out / "cells" / key)], [str(out / "cells" / key[:5])], [key, str(out)],
        [key[:5], f"out={out}"], [key], [key[:5]], [f"{default}/cells/{key}/"],
    ):  # fmt: skip
        assert folder_of("verify", words, default=default).resolve() == out / "cells" / key
    monkeypatch.chdir(out / "cells")  # a folder's name alone, where it is
    assert folder_of("export", [key], default=default) == Path(key)


def test_a_damaged_record_is_told(recorded, tmp_path, capsys):
    out, keys = recorded
    copied = tmp_path / "copied"
    shutil.copytree(out, copied)
    (copied / "cells" / keys["trained"] / "history.parquet").unlink()
    assert main(["verify", keys["trained"], str(copied)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_cell_that_would_be_another_run_is_refused(recorded, capsys, monkeypatch):
    out, keys = recorded
    found = verified.identify

    def changed(cell):
        return dataclasses.replace(found(cell), train_key="other")

    monkeypatch.setattr(verified, "identify", changed)
    assert main(["verify", keys["trained"], str(out)]) == 2
    assert "have changed since" in capsys.readouterr().err
