"""Every three-factor level on a tiny Llama and a tiny GPT-2, and its budget at real sizes."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from ablate import paths
from ablate.adapters.method import lora_count
from ablate.adapters.three_factor import lamda
from ablate.adapters.three_factor.layer import ThreeFactorLinear
from ablate.adapters.three_factor.rules import RULES
from ablate.adapters.three_factor.spec import ROWS
from ablate.streams import Streams
from ablate.training.hooks import NO_HOOKS
from tests.dense import adapter_buffers
from tests.factors import (
    ARCHITECTURES,
    LEVELS,
    NOT_AT_BASE,
    RANK,
    TRAINED,
    adapted,
    best,
    fit,
    gradients,
    logits,
    pristine,
    settings,
    shapes_of,
    tokens,
    trained,
    tree,
)
from tests.toys import ROUNDING


def hooks_of(level: str):
    options = tree(level)["options"]
    return lamda.hooks(options, Streams(0)) if level == "lamda" else NO_HOOKS


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_complete_and_tells_its_paper(level):
    row, file = ROWS[tree(level)["kind"]], paths.conf_dir() / f"adapter/{level}.yaml"
    assert tree(level)["name"] == level
    assert set(tree(level)) == {"name", "kind", "options"}
    assert set(tree(level)["options"]) == set(row.options)
    assert all(row.options[name].accepts(v) for name, v in tree(level)["options"].items())
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert (row.paper in first) == (level != "slora")  # which is MoSLoRA's row
    assert "arXiv" in first
    assert row.starts_at_base == (level not in NOT_AT_BASE)


def test_every_row_has_a_level_and_every_rule_a_use():
    assert {tree(level)["kind"] for level in LEVELS} == set(ROWS)
    used = {settings(level)["start"] for level in LEVELS}
    assert set(RULES) - used == {"plain", "nystrom_inverse"}  # LoRA's, and NLoRA's by option


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_starts_where_its_row_says_and_draws_nothing_global(level, architecture):
    before = torch.random.get_rng_state()
    model = adapted(level, architecture, **({"step": 1e-5} if level == "lora_sb" else {}))
    assert torch.equal(torch.random.get_rng_state(), before)
    plain = pristine(architecture)
    if level == "lora_sb":
        for name, (d, k) in shapes_of(architecture).items():
            n = min(model.peft_config["default"].r, d, k)
            update = torch.as_tensor(best(-1e-5 * gradients(architecture)[name].sign().numpy(), n))
            weight = plain.get_submodule(name).weight
            weight.data += update.to(weight.dtype).T if architecture == "gpt2" else update
        assert (logits(plain) - logits(pristine(architecture))).abs().max() > 2e-5
        rounding = ROUNDING * float(logits(plain).abs().max())
        torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=rounding)
    else:
        torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_declared_trainable_changes_and_nothing_else(level, architecture):
    model = adapted(level, architecture)
    assert {name.split(".")[-2] for name in trained(model)} == {
        f"factor_{name}" for name in TRAINED[level]
    }
    row, shapes = ROWS[tree(level)["kind"]], shapes_of(architecture)
    counted = sum(p.numel() for p in trained(model).values())
    assert counted == row.parameters_at(RANK, shapes, tree(level)["options"])
    assert len(trained(model)) == len(TRAINED[level]) * len(shapes)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    declared = set(trained(model))
    losses = fit(model)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == declared
    assert losses[-1] < losses[0]
    assert all(p.grad is None for n, p in model.named_parameters() if n not in declared)


def test_no_two_levels_train_alike():
    traces = {level: fit(adapted(level, "llama"), hooks=hooks_of(level)) for level in LEVELS}
    traces["nlora by the inverse"] = fit(adapted("nlora", "llama", start="nystrom_inverse"))
    traces["lamda without its hook"] = fit(adapted("lamda", "llama"))
    assert len(set(map(tuple, traces.values()))) == len(LEVELS) + 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_disabling_gives_the_base_and_merging_gives_the_adapted_model(level, architecture):
    model = adapted(level, architecture)
    fit(model)
    plain, tuned = logits(pristine(architecture)), logits(model)
    assert (tuned - plain).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), tuned, rtol=0, atol=2e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), tuned, rtol=0, atol=2e-5)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, ThreeFactorLinear) for m in merged.modules())
    torch.testing.assert_close(logits(merged), tuned, rtol=0, atol=2e-5)


RELOAD = """
    import json, sys
    from pathlib import Path
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    import ablate.adapters.three_factor.layer

    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for folder in sorted(f for f in root.iterdir() if not f.name.startswith("base")):
        stored = load_file(folder / "logits.safetensors")
        name = folder.name.partition("-")[2]
        base = AutoModelForCausalLM.from_pretrained(root / f"base-{name}").eval()
        with torch.no_grad():
            model = PeftModel.from_pretrained(base, str(folder))
            logits = model(input_ids=stored["ids"]).logits
        error = float((logits - stored["logits"]).abs().max())
        print(json.dumps([folder.name, error]))
"""


def test_saved_adapters_give_equal_logits_in_a_fresh_process(tmp_path):
    names = set()
    for architecture in ARCHITECTURES:
        pristine(architecture).save_pretrained(tmp_path / f"base-{architecture}")
        for level in LEVELS:
            model = adapted(level, architecture)
            fit(model)
            folder = tmp_path / f"{level}-{architecture}"
            model.save_pretrained(folder, save_embedding_layers=False)
            save_file({"ids": tokens(), "logits": logits(model)}, folder / "logits.safetensors")
            names.add(folder.name)
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RELOAD), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    errors = dict(json.loads(line) for line in answer.stdout.splitlines())
    assert errors.keys() == names
    assert {name: e for name, e in errors.items() if e > 0} == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_trained_and_persistent_tensors_are_all_that_must_be_kept(level, architecture):
    model = adapted(level, architecture)
    fit(model)
    kept = {n: p.detach().clone() for n, p in trained(model).items()}
    assert not kept.keys() & adapter_buffers(model, ThreeFactorLinear).keys()
    kept |= {name: t.clone() for name, t in adapter_buffers(model, ThreeFactorLinear).items()}
    other = adapted(level, architecture, seed=1)
    state = other.state_dict()
    assert kept.keys() == {n for n in state if "factor_" in n or "fixed_" in n or "start_" in n}
    for name, tensor in kept.items():
        state[name].copy_(tensor)
    assert torch.equal(logits(other), logits(model))


# --- budgets


def decoder(width: int, narrow: int, middle: int) -> dict[str, tuple[int, int]]:
    attention = {"q": (width, width), "k": (narrow, width), "v": (narrow, width)}
    mlp = {"gate": (middle, width), "up": (middle, width), "down": (width, middle)}
    return attention | {"o": (width, width)} | mlp


SIZES = {
    "Llama-3.2-1B": decoder(2048, 512, 8192),
    "Llama-2-7B": decoder(4096, 4096, 11008),
}


@pytest.mark.parametrize("rank", [4, 8, 16, 64, 128, 256])
@pytest.mark.parametrize("shapes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("level", LEVELS)
def test_budgets_match_at_the_papers_sizes(level, shapes, rank):
    row, options = ROWS[tree(level)["kind"]], tree(level)["options"]
    ratio = row.parameters_at(rank, shapes, options) / lora_count(rank, shapes)
    assert row.matched == (level != "loldu")
    if row.matched:
        assert 0.93 < ratio < 1.03
    else:
        assert ratio < 0.1


def test_a_square_core_grows_to_the_budget_and_no_further_than_the_matrix():
    shapes, options = {"any": (64, 64)}, tree("inttune")["options"]
    row = ROWS["nlora"]
    sizes = {r: row.arguments_at(r, shapes, options)["r"] for r in (1, 2, 8, 32, 64)}
    assert sizes == {1: 11, 2: 16, 8: 32, 32: 64, 64: 64}  # sqrt(128 r), at most the side
    assert row.parameters_at(8, shapes, options) == 1024
    pair = ROWS["nora"].arguments_at(8, shapes, tree("nora")["options"])
    assert pair["r"] == 32
    assert ROWS["nora"].parameters_at(8, shapes, tree("nora")["options"]) == 2 * 32 * 16
    assert ROWS["loldu"].parameters_at(1, shapes, tree("loldu")["options"]) == 65


def test_rows_need_no_torch():
    code = "import sys, ablate.adapters.three_factor.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
