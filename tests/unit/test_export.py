"""What a sweep leaves for other programs: weights beside the record, and `ablate export`."""

import json
import math
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import ablate.adapters.tuners  # noqa: F401  the one line by which PEFT knows our types
from ablate.cli import main
from ablate.experiment.cell_data import tokenised
from ablate.experiment.notes import notes
from ablate.experiment.request import plan_grid
from ablate.models.load import load
from ablate.paths import conf_dir
from ablate.results.card import interval
from ablate.results.store import Store
from ablate.run import _trained, run_cells

SHORT = (
    "masking=none", "plw=0.1", "rank=2", "train.lr=0.01", "train.batch_size=8", "train.max_steps=3",
    "dataset.max_rows=40", "evaluate.tasks=[]", "evaluate.heldout_rows=8",
    "execution.device=cpu", "report=false",
)  # fmt: skip
IDS = torch.arange(5, 29).reshape(2, 12)
ARMS = ("lora", "mora", "full", "lora init=pissa", "lora_xs", "lora embeddings=trained")


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[str, Path]:
    """The folder of a trained cell of each arm."""
    store, found = Store(tmp_path_factory.mktemp("results")), {}
    store.prepare()
    for arm in ARMS:
        request = plan_grid([*SHORT, *f"adapter={arm}".split()])
        [named] = [n for n in request.design.cells if not n.cell.is_base]
        run_cells([named.cell], named.key, store)
        found[arm] = store.folder(named.key)
    return found


def trained(folder: Path) -> tuple[torch.Tensor, nn.Module]:
    """The logits of the recorded run trained once more, and its untouched base."""
    cell = Store(folder.parents[1]).record(folder.name)
    from ablate.config.build import build
    from ablate.experiment.identity import identify

    asked = build(cell["config"])
    identity = identify(asked)
    model, _ = _trained(asked, identity, tokenised(asked, "train"))
    return logits(model), load(identity.files)


def read(folder: Path, base: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return PeftModel.from_pretrained(base, str(folder))


@pytest.mark.parametrize("arm", ARMS)
def test_weights_beside_a_record_are_read_by_peft_or_transformers(arm, recorded):
    expected, base = trained(recorded[arm])
    assert (logits(base) - expected).abs().max() > 1e-3
    folder = recorded[arm] / "weights"
    whole = arm == "full"
    model = AutoModelForCausalLM.from_pretrained(folder) if whole else read(folder, base)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arm", ["mora", "lora init=pissa", "full"])
def test_an_export_is_a_folder_with_weights_tokenizer_and_card(arm, recorded, tmp_path, capsys):
    expected, base = trained(recorded[arm])
    merged, alone = tmp_path / "merged", tmp_path / "alone"
    key = str(recorded[arm])
    assert main(["export", key[:-4], "--merge", "--to", str(merged)]) == 0
    assert main(["export", key, "--to", str(alone)]) == 0
    model = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    other = AutoModelForCausalLM.from_pretrained(alone) if arm == "full" else read(alone, base)
    torch.testing.assert_close(logits(other), expected, rtol=0, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(merged)) == model.config.vocab_size
    record = json.loads((recorded[arm] / "record.json").read_text())
    for folder, library in ((merged, "transformers"), (alone, "peft")):
        text = (folder / "README.md").read_text()
        assert f"library_name: {'transformers' if arm == 'full' else library}" in text
        assert record["train_key"] in text
        assert f"| learning rate | {record['config']['train']['lr']} |" in text
        for score in record["scores"]:
            assert f"| {score['task']} | {score['metric']} | {score['value']:.4g} |" in text
    assert "written: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "new"], "takes one cell"),
        (["CELL"], "needs a folder to write: --to DIR"),
        (["CELLx", "--to", "new"], "no record here"),
        (["CELL", "--to", "."], "is there already"),
    ],
)
def test_a_wrong_export_is_one_line(words, said, recorded, capsys):
    cell = str(recorded["lora"])
    assert main(["export", *(word.replace("CELL", cell) for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_what_was_not_kept_is_said_and_can_be_trained_again(tmp_path, capsys):
    store = Store(tmp_path / "results")
    store.prepare()
    asked = [*SHORT, "adapter=lora_xs", "execution.keep_weights_mb=0"]
    [named] = [n for n in plan_grid(asked).design.cells if not n.cell.is_base]
    run_cells([named.cell], named.key, store)
    folder = store.folder(named.key)
    to = str(tmp_path / "again")
    assert main(["export", str(folder), "--to", to]) == 2
    error = capsys.readouterr().err
    assert "were not kept" in error
    assert "--retrain" in error
    assert main(["export", str(folder), "--to", to, "--retrain"]) == 0
    expected, base = trained(folder)
    torch.testing.assert_close(logits(read(Path(to), base)), expected, rtol=0, atol=1e-4)


def test_what_will_not_be_kept_is_said_before_with_size_and_setting():
    asked = [*SHORT, "adapter=full,lora", "execution.keep_weights_mb=0.1"]
    cells = plan_grid(asked).design.cells
    lines = [line for line in notes(cells) if "NOT KEPT" in line]
    size = cells[-1].identity.files.parameters * 4 / 2**20
    assert len(lines) == 1
    assert f"1 of 2 runs (full on micro_0 {size:,.1f} MB a run" in lines[0]
    keeping = lines[0].split("execution.keep_weights_mb=")[2].split()[0]
    again = plan_grid([*asked[:-1], f"execution.keep_weights_mb={keeping}"]).design.cells
    assert not any("NOT KEPT" in line for line in notes(again))


def test_notes_name_frozen_embeddings_a_control_and_half_of_released_code():
    def said(*overrides: str) -> str:
        words = [word for word in SHORT if not word.startswith(("rank=", "plw="))]
        return " ".join(notes(plan_grid([*words, *overrides]).design.cells))

    assert "adapter=full: embedding and head stay frozen" in said("adapter=full")
    assert "embeddings=trained" in said("adapter=full")
    assert said("adapter=full", "embeddings=trained") == said("adapter=lora") == ""
    assert "init=both_zero: a control" in said("init=both_zero")
    half = ("masking=im_released",)
    assert "loss.scope=example" in said(*half)
    assert said(*half, "loss.scope=example") == ""
    own = ("model=local", f"model.path={conf_dir().parent / 'ablate/micro/checkpoints/micro_0'}")
    assert "asks about the embedded world" in said(*own, "evaluate.tasks=[micro_lives]")
    assert said(*own) == ""


def test_intervals_of_a_card_are_wilsons_or_normal():
    right = pd.Series([1.0] * 8 + [0.0] * 2)
    low, high = interval({"value": 0.8, "n": 10, "se": 0.13}, right)
    # Wilson (1927): the two p from which 0.8 is z standard errors away
    for p in (low, high):
        assert abs(0.8 - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 10))
    low, high = interval({"value": 2.0, "n": 3, "se": 0.5}, pd.Series([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 0.979982, 2 + 0.979982))
    assert interval({"value": 2.0, "n": 3, "se": None}, pd.Series([], dtype=float)) is None
