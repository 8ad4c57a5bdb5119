"""Scoring on a GPU: numbers against the CPU and transformers, no waits, and what a fault costs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from ablate import run
from ablate.adapters.lora.forward import lighten
from ablate.evaluate import choices, generate, heldout, scoring, static
from ablate.evaluate.precision import BF16_MEAN, BF16_MOST, computed_in
from ablate.experiment.request import plan_grid
from ablate.results.store import Store
from tests import toys
from tests.unit.test_evaluate import _by_generate, asked_at_random, model_of, token_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Please use the new API settings"),
]
NAMES = ("GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM")


def adapted(model):
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    found = get_peft_model(model, config)
    lighten(found)
    return found.eval().requires_grad_(False)


@pytest.mark.parametrize("name", [*NAMES, "lora"])
def test_greedy_decoding_equals_transformers_on_the_cpu(name):
    model = adapted(model_of()) if name == "lora" else model_of(name)
    draws = np.random.default_rng(0)
    prompts = [draws.integers(3, 512, size).tolist() for size in (2, 11, 7, 5, 3)]
    free = [_by_generate(model, prompt, [2]) for prompt in prompts]
    stops = [2, free[0][4], free[1][1]]
    expected = [_by_generate(model, prompt, stops) for prompt in prompts]
    model.cuda()
    found = generate.answers(model, prompts, stops=stops, max_new=16, batch_size=3)
    assert found == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_token_is_decoded_as_a_graph_without_a_wait_for_the_device(precision):
    model = adapted(model_of()).cuda()
    ids = torch.tensor([[0, 5, 6, 7], [9, 8, 7, 6]], device="cuda")
    with torch.inference_mode(), computed_in(model, precision):
        state = static.StaticDecoding(model, ids, (ids > 0).long(), 16)
        state.next()
        state.next()
        assert static._unrecorded == set()
        assert state._graph is not None
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                state.next()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_long_answers_of_rows_that_end_apart_are_those_of_single_steps(precision, monkeypatch):
    model = adapted(model_of()).cuda()
    draws = np.random.default_rng(1)
    prompts = [draws.integers(3, 512, size).tolist() for size in draws.integers(2, 30, 12)]
    monkeypatch.setattr(static, "ROOM", 24)  # grows on the way
    asked = {"max_new": 80, "batch_size": 12}
    free = generate.answers(model, prompts, stops=[], **asked)
    asked["stops"] = [free[0][10], free[1][30], free[2][50]]
    with computed_in(model, precision):
        found = generate.answers(model, prompts, **asked)
        monkeypatch.setattr(static, "_unrecorded", {"for this test"})
        single = generate.answers(model, prompts, **asked)
        monkeypatch.setitem(generate.LOOK_EVERY, "cuda", 1)
        grown = generate.answers(model, prompts, **asked)
    assert len({len(tokens) for tokens in found}) > 1
    if precision == "fp32":
        assert found == single == grown
    else:  # of random models a near tie may fall either way
        assert np.mean([one == other for one, other in zip(found, single, strict=True)]) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_are_the_cpus_in_fp32_and_near_them_in_bf16(name):
    model, pairs = model_of(name), asked_at_random()
    expected = choices.loglikelihoods(model, pairs, batch_size=16)
    model.cuda()
    with computed_in(model, "fp32"):
        found = choices.loglikelihoods(model, pairs, batch_size=16)
    assert token_errors(found, expected, pairs).max() < 1e-4
    with computed_in(model, "bf16"):
        found = choices.loglikelihoods(model, pairs, batch_size=16)
    assert 0 < token_errors(found, expected, pairs).mean() < BF16_MEAN
    assert token_errors(found, expected, pairs).max() < BF16_MOST


def test_tf32_is_off_while_fp32_is_scored():
    model = model_of().cuda()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with computed_in(model, "fp32"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_heldout_losses_are_the_cpus():
    rows, model = toys.tokenised(toys.examples(7)), toys.llama()
    expected = heldout.losses(model, rows, batch_size=3)
    found = heldout.losses(model.cuda(), rows, batch_size=3)
    assert {role: count for role, (_, count) in found.items()} == {
        role: count for role, (_, count) in expected.items()
    }
    for role, (total, _) in expected.items():
        assert found[role][0] == pytest.approx(total, rel=1e-4)


SHORT = (
    "masking=none", "plw=0.1", "rank=2", "train.lr=0.01", "train.batch_size=8", "train.max_steps=3",
    "dataset.max_rows=40", "evaluate.heldout_rows=8", "evaluate.measures=[generation_length]",
    "evaluate.tasks=[micro_knowledge,micro_lives]", "evaluate.limit=20", "evaluate.precision=bf16",
    "execution.device=cuda", "report=false",
)  # fmt: skip


def test_a_cell_is_scored_in_bf16_and_its_record_says_on_what(tmp_path, monkeypatch):
    [named] = [n for n in plan_grid(SHORT).design.cells if not n.cell.is_base]
    store, whole, seen = Store(tmp_path), scoring._heldout, []
    store.prepare()

    def short_of_memory(model, history, wanted):
        seen.append(wanted[0].cell.execution.eval_batch_size)
        if seen[-1] > 16:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return whole(model, history, wanted)

    monkeypatch.setattr(scoring, "_heldout", short_of_memory)
    run.run_cells([named.cell], named.key, store)
    record = store.record(named.key)
    assert record["unscored"] == []
    assert {s["task"] for s in record["scores"]} >= {"micro_knowledge", "heldout_test"}
    [about] = record["provenance"]["scored"]
    assert seen == [64, 32, 16]
    assert about["halvings"] == 2
    assert about["hardware"]["gpu"] == torch.cuda.get_device_name()
    assert about["hardware"]["cuda"] == torch.version.cuda
    assert about["hardware"]["matmul_precision"] == "highest"
    assert about["hardware"]["attention"] == "sdpa"
    print(json.dumps(about["hardware"]))


ASSERTED = """
import torch
from ablate.models.gpu import lost_device
try:
    torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")].sum().item()
except Exception as error:
    print("LOST" if lost_device(error) else f"not seen: {error}")
"""


def test_a_device_side_assert_is_known_as_the_loss_of_the_gpu():
    made = subprocess.run([sys.executable, "-c", ASSERTED], capture_output=True, text=True)
    assert "LOST" in made.stdout, made.stdout + made.stderr[-500:]


def test_memory_that_ran_out_is_no_loss_of_the_gpu():
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert not scoring.lost_device(raised.value)
