"""Plans from published sizes: every ready model with every study, without a network."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablate.adapters.method import lora_count
from ablate.cli import main
from ablate.errors import UserError
from ablate.experiment.cost import cost
from ablate.experiment.gpu_fit import need
from ablate.experiment.gpu_pace import RATE, USUAL_OPTIMIZER
from ablate.experiment.known import CHARACTERS, Assumed, around
from ablate.experiment.request import Request, plan_grid
from ablate.experiment.summary import summarise
from ablate.paths import conf_dir
from ablate.results.store import Store
from analysis.table.published import read

READY = [f.stem for f in sorted((conf_dir() / "model").glob("*.yaml"))
         if "shape" in yaml.safe_load(f.read_text())]  # fmt: skip
STUDIES = [(f.stem, scale) for f in sorted((conf_dir() / "study").glob("*.yaml"))
           for scale in yaml.safe_load(f.read_text())["scales"]]  # fmt: skip


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "no network")
    monkeypatch.setattr("ablate.models.folders._copy", lambda path, revision: None)


def plan(*words: str, out: Path) -> Request:
    return plan_grid([*words, f"out={out}"], known=Assumed())


def test_runs_that_no_gpu_holds_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("dataset=alpaca", "model=llama_2_7b,smollm2_135m", "adapter=full,lora",
             "train=alpaca", "train.lr=1e-5", "train.precision=fp32", "evaluate=none",
             "evaluate.heldout=[]")  # fmt: skip
    found = summarise(plan(*words, "train.batch_size=16", out=tmp_path))
    # 4 bytes a weight and 12 more where it is trained: 108 GB; of LoRA 27 GB and micro-batches
    # of as many rows as fit beside them
    assert [one["cell"] for one in found["too_large"]] == ["model=llama_2_7b adapter=full"]
    assert main(["plan", *words, "train.batch_size=16", f"out={tmp_path}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "GB): model=llama_2_7b adapter=full; fits with execution.offload_optimizer=true" in told
    assert "6 cells (4 of the grid and 2 untouched bases) are 6 runs" in told
    assert summarise(plan(*words, "gpu_gb=141", out=tmp_path))["too_large"] == []
    for fixed in ("execution.micro_batch_size=null", "gpu_gb=24"):
        asked = plan(*words, "train.batch_size=64", fixed, out=tmp_path)
        names = [one["cell"] for one in summarise(asked)["too_large"]]
        assert "model=llama_2_7b adapter=lora" in names


def test_the_settings_that_let_a_run_fit_let_it_fit(tmp_path: Path) -> None:
    """Of the paper's own study on one GPU of 80 GB: without another number, and with others."""
    words = ("study=plw", "scale=paper", "dataset=alpaca", "evaluate=none", "evaluate.heldout=[]",
             "gpu_gb=80")  # fmt: skip
    found = summarise(plan(*words, out=tmp_path))
    assert len(found["too_large"]) == 20
    cures = list(found["too_large"][0]["fits_with"])
    assert cures == [
        "execution.offload_optimizer=true", "base_precision=bf16 optimizer=adamw_8bit",
    ]  # fmt: skip
    for cure in cures:
        cured = summarise(plan(*words, *cure.split(), out=tmp_path))
        assert cured["too_large"] == []
        assert cured["gpu_memory_mb"] <= 80_000
    hours, each = found["hours_on_gpus"], found["hours_on_gpus"][1] / 20
    for gpus in (1, 2, 4, 8):  # whole runs, side by side: 20 on 8 take the time of 3
        assert hours[gpus] == pytest.approx(math.ceil(20 / gpus) * each, rel=0.01)


def test_the_papers_study_on_one_gpu_of_80_gb_is_arithmetic(tmp_path: Path) -> None:
    """With the settings that the plan asks for: what stays on the card, part by part."""
    words = ("study=plw", "scale=paper", "dataset=alpaca", "plw=0.1", "model=llama_2_7b",
             "evaluate=none", "evaluate.heldout=[]")  # fmt: skip
    weights = 6_738_415_616

    def parts(*more: str) -> dict[str, float]:
        request = plan(*words, *more, out=tmp_path)
        (named,) = [n for n in request.design.cells if not n.cell.is_base]
        return dict(need(named, 80e9).parts)

    whole, away = parts(), parts("execution.offload_optimizer=true")
    assert whole["moments"] == 8 * weights
    assert sum(whole.values()) > 16 * weights > 80e9  # weights, gradients and two moments in fp32
    assert "moments" not in away
    assert away["weights"] == away["gradients"] == 4 * weights
    assert 8 * weights + away["copies"] < sum(away.values()) < 80e9
    small = parts("base_precision=bf16", "optimizer=adamw_8bit")
    assert small["weights"] == small["gradients"] == 2 * weights  # rounded at random: no masters
    assert small["moments"] == pytest.approx(2 * (1 + 4 / 256) * weights)
    assert "masters" not in small
    assert sum(small.values()) < 80e9


def test_the_papers_plan_is_arithmetic_on_published_numbers(tmp_path: Path) -> None:
    request = plan("study=plw", "scale=paper", "dataset=alpaca", "plw=0.1", "model=llama_2_7b",
                   "evaluate=none", "evaluate.heldout=[]", out=tmp_path)  # fmt: skip
    (named,) = [n for n in request.design.cells if not n.cell.is_base]
    data, weights = named.identity.data, 6_738_415_616
    assert data.rows == 52_002
    assert data.rg_tokens == pytest.approx(3.27, rel=1e-4)  # arXiv 2401.13586, table 1
    assert data.mean_length == pytest.approx(20 + 65.4 + around("alpaca"), rel=1e-4)
    found = cost([named], Store(tmp_path))
    flops = 6 * weights * 3 * data.tokens
    seconds = flops / RATE[2] + math.ceil(3 * 52_002 / 128) * USUAL_OPTIMIZER * weights / 1e9
    assert found.gpu_hours == found.gpu_training_hours == pytest.approx(seconds / 3600, rel=1e-6)
    parts = found.largest.parts
    assert parts["weights"] == parts["gradients"] == 4 * weights
    assert parts["moments"] == 8 * weights
    assert parts["copies"] == 2 * (weights - 32_000 * 4096 - (2 * 32 + 1) * 4096)
    assert found.largest.total == sum(parts.values())
    assert found.download_bytes == 2 * weights
    assert request.assumed == (
        "model=llama_2_7b is not on this machine: its sizes are its model.shape's",
        "tokens of dataset=alpaca: its published rows and mean lengths",
    )


def test_the_alpaca_template_is_about_as_long_as_it_is_under_llamas_tokenizer() -> None:
    assert abs(around("alpaca") - 34) <= 2


def test_less_memory_is_planned_where_less_is_asked_for(tmp_path: Path) -> None:
    def parts(*words: str) -> dict[str, float]:
        asked = ("model=llama_3_1_8b", "dataset=alpaca", "train=alpaca", "evaluate=none",
                 "evaluate.heldout=[]", "execution.layout=padded")  # fmt: skip
        request = plan(*asked, *words, out=tmp_path)
        return dict(cost(request.design.cells[-1:], Store(tmp_path), gpu_bytes=1e15).largest.parts)

    def beside(found: dict[str, float]) -> float:
        return sum(found.get(name, 0.0) for name in ("gradients", "moments", "masters"))

    whole = parts("adapter=lora")
    shapes = plan("model=llama_3_1_8b", out=tmp_path).design.cells[-1]
    assert whole["moments"] == 8 * lora_count(8, shapes.identity.files.linear_shapes)
    small = parts("execution.micro_batch_size=4")
    assert small["activations"] == whole["activations"] / 32
    assert parts("execution.gradient_checkpointing=true")["activations"] < whole["activations"] / 8
    own = whole["gradients"]
    half = parts("base_precision=bf16")["weights"] - own
    assert half == (parts("base_precision=fp32")["weights"] - own) / 2
    assert parts("plw=0")["logits"] < parts("plw=1", "masking=none")["logits"]
    trained = shapes.identity.files.parameters
    full = ("adapter=full", "embeddings=trained", "base_precision=bf16")
    for words, each in (
        (("base_precision=fp32",), 12),
        ((), 14),  # gradient 2, fp32 copy 4, moments 8; the copy's gradient comes after the pass
        (("optimizer=adamw_8bit",), 2 + 2 * (1 + 4 / 256)),
        (("execution.offload_optimizer=true",), 2),
    ):
        assert beside(parts(*full, *words)) == each * trained
    both = parts("adapter=lora", "embeddings=trained", "base_precision=bf16")
    ends = shapes.identity.files.embedding_parameters
    assert beside(both) == beside(whole) + 14 * ends


@pytest.mark.parametrize("model", READY)
def test_every_ready_model_on_every_ready_data_set_and_suite(model: str, tmp_path: Path) -> None:
    data = [f.stem for f in (conf_dir() / "dataset").glob("*.yaml")
            if yaml.safe_load(f.read_text()).get("published")]  # fmt: skip
    request = plan(f"model={model}", f"dataset={','.join(data)}", "adapter=full,lora",
                   "train=alpaca", "evaluate=forgetting", "evaluate.heldout=[]",
                   out=tmp_path)  # fmt: skip
    assert not request.design.illegal
    assert json.dumps(summarise(request))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2_135m", "pythia_160m", "llama_3_1_8b"])
@pytest.mark.parametrize(("study", "scale"), STUDIES)
def test_ready_models_of_three_shapes_with_every_study(
    study: str, scale: str, model: str, tmp_path: Path
) -> None:
    request = plan(f"study={study}", f"scale={scale}", f"model={model}", "skip_illegal=true",
                   "evaluate.run_code=true", out=tmp_path)  # fmt: skip
    assert summarise(request)["gpu_hours"] > 0


def test_rows_that_are_here_are_counted_by_characters(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": "a" * 40, "input": "b" * 20, "output": "c" * 80}] * 3
    file.write_text("\n".join(json.dumps(r) for r in rows))
    request = plan("model=qwen_3_8b", "dataset=local", f"dataset.path={file}", "evaluate=none",
                   "evaluate.heldout=[]", "dataset.splits.train=[0,1]",
                   "dataset.splits.validation=[1,1]", "dataset.splits.test=[1,1]",
                   out=tmp_path)  # fmt: skip
    data = request.design.cells[-1].identity.data
    assert (data.rows, dict(data.counts)) == (
        3,
        {
            "boilerplate": 3 * around("alpaca"),
            "instruction": 3 * 60 // CHARACTERS,
            "completion": 3 * 80 // CHARACTERS,
        },
    )


# Levels whose means are those of arXiv 2405.14394, table 5, and the table's name of the set.
OF_TABLE_5 = {
    "lima": "LIMA", "less_mmlu_chat": "Less MMLU Chat", "less_tydiqa": "Less Tydiqa",
    "less_bbh_icl": "Less BBH ICL", "alpagasus_dolly_3k": "Alpagasus Dolly 3k",
    "alpagasus_dolly_9k": "Alpagasus Dolly 9k", "alpagasus_alpaca_5k": "Alpagasus Alpaca 5k",
    "tulu_v2": "Tulu V2", "wizardlm": "WizardLM", "code_alpaca": "Code Alpaca",
    "dolly": "Alpagasus Dolly 3k", "ultrafeedback": "WizardLM",
}  # fmt: skip
TABLE_5 = read("im_datasets").set_index("dataset")


def published(level: str) -> dict[str, float]:
    return dict(yaml.safe_load((conf_dir() / "dataset" / f"{level}.yaml").read_text())["published"])


@pytest.mark.parametrize(("level", "name"), OF_TABLE_5.items())
def test_words_of_a_table_are_taken_as_tokens(level: str, name: str) -> None:
    sizes, means = published(level), TABLE_5.loc[name]
    assert sizes["prompt"] == pytest.approx((means.mean_instruction - 1) * 4 / 3, abs=0.051)
    assert sizes["completion"] == pytest.approx((means.mean_output - 1) * 4 / 3, abs=0.051)
    if level not in ("dolly", "ultrafeedback", "wizardlm", "tulu_v2"):  # the table has a part
        assert sizes["rows"] == means.n_examples


@pytest.mark.parametrize(("level", "rg"), [("alpaca", 3.27), ("alpaca_cleaned", 7.83),
                                           ("alpaca_short", 0.08)])  # fmt: skip
def test_generation_ratios_are_those_of_the_plw_paper(level: str, rg: float) -> None:
    sizes = published(level)
    assert sizes["completion"] / sizes["prompt"] == pytest.approx(rg, rel=0.03)


def test_words_and_counted_tokens_of_alpaca_agree() -> None:
    sizes, means = published("alpaca"), TABLE_5.loc["Stanford Alpaca"]
    words = means.mean_total - 2
    assert sizes["prompt"] + sizes["completion"] == pytest.approx(words * 4 / 3, rel=0.1)
    assert means.mean_output / means.mean_instruction == pytest.approx(2.43, rel=0.001)  # printed


def test_a_file_that_is_not_here_yet_has_its_published_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("dataset=alpagasus_dolly_3k", "dataset.template=plain", "evaluate=none",
             "evaluate.heldout=[]", "dataset.splits.train=[0,1]", "dataset.splits.test=[1,1]",
             "dataset.splits.validation=[1,1]")  # fmt: skip
    for model in ("qwen_3_8b", "micro_0"):  # not on this machine, and on it
        request = plan(f"model={model}", *words, out=tmp_path)
        assert request.design.cells[-1].identity.data.rows == 2996
        assert any("alpagasus_dolly_3k: its published rows" in said for said in request.assumed)
    there = tmp_path / "InstructionModelling" / "data" / "alpagasus_3k_dolly.jsonl"
    there.parent.mkdir(parents=True)
    there.write_text(json.dumps({"messages": ["a" * 40, "b" * 80]}) + "\n")
    request = plan("model=qwen_3_8b", *words, out=tmp_path)
    assert request.design.cells[-1].identity.data.rows == 1
    with pytest.raises(UserError, match=r"dataset.path=no.jsonl: no such file"):
        plan("model=qwen_3_8b", "dataset=local", "dataset.path=no.jsonl", out=tmp_path)


def test_a_data_set_of_unknown_size_is_one_line(tmp_path: Path) -> None:
    words = ("model=qwen_3_8b", "dataset=hub", "dataset.path=a/b")
    with pytest.raises(UserError, match=r"dataset.path=a/b: .*cannot be reached"):
        plan(*words, out=tmp_path)
    known = ("dataset.published.rows=1000", "dataset.published.text=200")
    assert plan(*words, *known, out=tmp_path).design.cells[-1].identity.data.tokens == 900 * 200


@pytest.mark.parametrize(
    "published",
    ["row=3", "rows=0"],
)
def test_published_sizes_are_checked(published: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"dataset.published.{published}"):
        plan(f"dataset.published.{published}", out=tmp_path)


@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_a_gpu_that_is_not_here_is_refused_before_anything_runs(verb: str, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, "-m", "ablate.cli", verb, "execution.device=cuda", f"out={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "ablate: execution.device=cuda: there is no GPU here; use auto or cpu\n",
    )
    assert not list(tmp_path.glob("cells/*"))


def test_a_plan_prints_what_it_assumed_and_costs(capsys: Any, tmp_path: Path) -> None:
    from rich.console import Console

    from ablate.commands.plan_view import render

    request = plan("model=pythia_1b,smollm2_135m", "adapter=full,lora", out=tmp_path)
    render(summarise(request), Console(width=300))
    shown = capsys.readouterr().out
    assert "parameters; query_key_value holds several projections, which change together" in shown
    assert "smollm2_135m: 134,515,008 parameters; token embedding and head are one matrix" in shown
    assert "assumed: model=pythia_1b is not on this machine" in shown
    assert "assumed: tokens of dataset=micro: its rows, 4 characters a token" in shown
    assert "of an H100: training" in shown
    assert "to download" in shown
    assert shown.count("untuned") == 4  # no rate is tuned for either model


def test_fewer_cells_side_by_side_are_offered_where_more_do_not_fit(tmp_path: Path) -> None:
    """A thousand forward passes of a 7B model on one card, of which one fits."""
    request = plan(
        "model=llama_2_7b", "dataset=alpaca", "train=alpaca", "adapter=lora", "evaluate=none",
        "base_precision=bf16", "execution.lanes=1000", "execution.micro_batch_size=1",
        "execution.gradient_checkpointing=true", out=tmp_path,
    )  # fmt: skip
    named = next(n for n in request.design.cells if not n.cell.is_base)
    wanted = need(named, 80e9)
    assert not wanted.fits
    assert wanted.cures[0][0] == "execution.lanes=1"
