"""`ablate init`: what it writes is a study that plans and trains as it is, and nothing is lost."""

import json

import pytest
import yaml

from ablate.cli import main
from ablate.commands.init import NAMES
from ablate.config.schema import Cell
from ablate.experiment.request import plan_grid
from tests.imports import ROOT

BASE = ROOT / "ablate" / "micro" / "checkpoints" / "micro_0"
# What each template asks for: distinct runs of each scale, the untouched base apart.
RUNS = {
    "weights": {"micro": 2 * 3 * 3, "smoke": 2 * 2, "full": 3 * 4},
    "adapters": {"micro": 3 * 2 * 3 + 3, "smoke": 3, "full": 3 * 3 * 3},
}


def cells(folder, study, *words) -> list[Cell]:
    request = plan_grid([f"study={study}", *words], config_dirs=[folder])
    return [named.cell for named in request.design.cells if not named.cell.is_base]


@pytest.mark.parametrize("scale", ["smoke", "micro"])
@pytest.mark.parametrize("name", NAMES)
def test_a_study_of_each_template_plans_as_it_is(name, scale, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--template", name]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["written: my_conf/study/mine.yaml",
                    "next: ablate plan --config-dir my_conf study=mine"]  # fmt: skip
    assert main([*said[1].split()[2:], f"scale={scale}"]) == 0
    planned = capsys.readouterr().out
    assert "illegal" not in planned
    assert f"{RUNS[name][scale]} " in planned
    assert len(cells("my_conf", "mine", f"scale={scale}")) == RUNS[name][scale]


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_template_is_filled_and_its_large_scale_composes(name, tmp_path, capsys):
    assert main(["init", "mine", "--template", name, "--to", str(tmp_path)]) == 0
    text = (tmp_path / "study" / "mine.yaml").read_text()
    assert "@" not in text
    assert max(map(len, text.splitlines())) <= 100 + len(str(tmp_path))
    scales = yaml.safe_load(text)["scales"]
    assert list(scales) == list(RUNS[name])
    from ablate.config.compose import expand
    from ablate.config.composer import config_loader

    grid = expand(["study=mine", "scale=full"], loader=config_loader([tmp_path]))
    assert len(grid.points) == RUNS[name]["full"]


@pytest.mark.parametrize(
    ("row", "template"),
    [
        ({"instruction": "Say it.", "output": "It."}, "alpaca"),
        ({"messages": [{"role": "user", "content": "Say it."},
                       {"role": "assistant", "content": "It."}]}, "chat"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [False, True])
def test_own_rows_and_an_own_model_are_levels_of_the_study(
    row, template, listed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    one = json.dumps(row)
    rows = [one.replace("It.", f"It, for the {number}th time.") for number in range(60)]
    text = f"[{', '.join(rows)}]" if listed else "\n".join(rows)
    (tmp_path / "rows.json").write_text(text)
    words = ["init", "mine", "--data", "rows.json", "--model", str(BASE)]
    assert main(words) == 0
    monkeypatch.chdir(ROOT)  # the paths that were written are found from anywhere
    found = cells(tmp_path / "my_conf", "mine", "scale=smoke")
    assert {cell.dataset.template for cell in found} == {template}
    assert {(cell.dataset.name, cell.model.name) for cell in found} == {("mine_rows", "mine_base")}
    assert {cell.model.path for cell in found} == {str(BASE)}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the study to write"),
        (["a", "b"], "name the study to write"),
        (["quick"], "quick: is the name of a shipped study"),
        (["no-dash"], "must be a name of letters, digits and underscores"),
        (["../up"], "must be a name of letters"),
        (["mine", "--template", "weight"], "Did you mean 'weights'?"),
        (["mine", "--data", "none.jsonl"], "--data=none.jsonl: no such file or folder"),
        (["mine", "--model", "."], "--model=.: no such folder with a config.json"),
        (["mine", "--to", "file/conf"], "--to=file/conf: cannot be written"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["init", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_there_is_not_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    level = tmp_path / "my_conf" / "dataset" / "mine_rows.yaml"
    level.parent.mkdir(parents=True)
    level.write_text("mine already")
    assert main(["init", "mine", "--data", "rows.jsonl"]) == 2
    assert "my_conf/dataset/mine_rows.yaml: is there already" in capsys.readouterr().err
    assert level.read_text() == "mine already"
    assert not (tmp_path / "my_conf" / "study").exists()  # all or none


@pytest.mark.slow
def test_the_smallest_scale_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    words = ["sweep", "--config-dir", "my_conf", "study=mine", "scale=smoke", "adapter=lora"]
    assert main([*words, "out=out", "report=false", "score_base=false"]) == 0
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2
    capsys.readouterr()


def test_a_study_whose_folder_is_not_named_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    capsys.readouterr()
    assert main(["plan", "study=mine"]) == 2
    said = capsys.readouterr().err
    assert said == "ablate: study=mine: no such level here; --config-dir=my_conf has it\n"
