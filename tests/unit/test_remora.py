"""ReMoRA and ReLoRA as layers: against dense sums of changes, the rank laws, and on disk."""

import copy
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ablate.adapters.mora import restarts
from ablate.adapters.mora.relora import ReloraConfig, ReloraLinear
from ablate.adapters.mora.remora import RemoraConfig
from ablate.adapters.mora.restart_layer import RestartLayer
from ablate.adapters.mora.spec import square_side
from ablate.streams import Streams
from tests import toys
from tests.dense import adapter_buffers, base, dense, normal
from tests.restarted import (
    METHODS,
    assert_close,
    config,
    draws,
    learn,
    make,
    own,
    wrapped,
)

# PEFT 0.21 asks transformers 5.23 under a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# The type of each stage, ReMoRA's from the paper (alternate) and from the released code (cycle).
STAGES = {
    "cycle": ("sharing", "grouped_2", "grouped_3", "grouped_4", "sharing"),
    "alternate": ("sharing", "grouped_2") * 2 + ("sharing",),
    "permute": ("sharing",) * 5,
    "same": ("sharing",) * 5,
}
SHAPES = {  # (d outputs, k inputs, r)
    "square": (32, 32, 2),
    "padded": (33, 47, 3),
    "grouped-query": (16, 64, 4),
    "tall, side above k": (96, 12, 6),
}


def formula(layer: RestartLayer, kind: str, adapter: str = "default") -> Tensor:
    """The change of the present stage alone, (d, k), from the formulas."""
    d, k = layer.out_features, layer.in_features
    if isinstance(layer, ReloraLinear):
        A, B = own(layer, adapter)
        return 3.0 * B.data @ A.data
    change = dense(kind, layer.mora_M[adapter].data, d, k)
    if adapter not in layer.order_in:
        return change
    into, out = (torch.eye(n, dtype=torch.float64) for n in (k, d))
    return out[layer.order_out[adapter]] @ change @ into[layer.order_in[adapter]]


# --- a layer


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_a_no_op(method):
    layer, x = make(method, 33, 47, 3), normal(3, 47, seed=4)
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_restart_keeps_the_function_and_the_sum_of_the_formulas(method, shape, conv):
    d, k, r = shape
    layer = make(method, d, k, r, conv=conv)
    x, total = normal(3, 2, k, seed=4), torch.zeros(d, k, dtype=torch.float64)
    for stage, kind in enumerate(STAGES.get(method, ("lora",) * 5)):
        learn(layer, stage)
        total += formula(layer, kind)
        before = layer(x)
        assert_close(before - layer.base_layer(x), x @ total.T)
        delta = layer.get_delta_weight("default")
        assert_close(delta.T if conv else delta, total)
        layer.restart("default", draws(stage))
        assert_close(layer(x), before)
        assert not own(layer)[-1].any()  # M, or B
        assert int(layer.stage["default"]) == stage + 1


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("method", METHODS)
def test_the_past_merges_unmerges_and_can_be_switched_off(method, conv):
    layer = make(method, 33, 47, 3, conv=conv)
    x, W = normal(3, 47, seed=4), layer.base_layer.weight.data.clone()
    for stage in range(2):
        learn(layer, stage)
        layer.restart("default", draws(stage))
    learn(layer, 2)
    expected = layer(x)
    assert torch.equal(layer.base_layer.weight.data, W)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge(safe_merge=True)
    assert_close(layer(x), expected)
    layer.restart("default", draws(2))  # takes the merge back first
    assert_close(layer.base_layer.weight.data, W, 1e-13)
    assert_close(layer(x), expected)
    layer.merge()
    assert_close(layer(x), expected)
    layer.unmerge()
    assert_close(layer.base_layer.weight.data, W, 1e-13)
    assert_close(layer(x), expected)


@pytest.mark.parametrize("method", METHODS)
def test_two_adapters_of_different_rank_restart_apart(method):
    layer = make(method, 33, 47, 2)
    if method == "relora":
        layer.update_layer("other", 5, lora_alpha=15, config=config(method, 5))
        layer.double()
    else:
        layer.update_layer("other", config(method, 5))
    x, learnt = normal(3, 47, seed=4), {}
    for seed, name in enumerate(("default", "other")):
        learn(layer, seed, name)
        learnt[name] = x @ formula(layer, "sharing", name).T
    layer.restart("other", draws(0))
    assert [int(layer.stage[name]) for name in ("default", "other")] == [0, 1]
    plain = layer.base_layer(x)
    for names in (["default"], ["other"], ["default", "other"]):
        layer.set_adapter(names)
        assert_close(layer(x), plain + sum(learnt[name] for name in names))
    layer.delete_adapter("other")
    assert_close(layer(x), plain + learnt["default"])
    assert not any("other" in name for name, _ in layer.named_buffers())


@pytest.mark.parametrize("method", METHODS)
def test_follows_a_dtype_move_after_a_restart(method):
    layer = make(method, 33, 47, 3)
    x = normal(16, 47, seed=4)
    learn(layer, 0)
    layer.restart("default", draws(0))
    learn(layer, 1)
    truth = layer(x)
    assert_close(layer.float()(x.float()).double(), truth, 1e-4)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.double() - truth).abs().mean() < 0.02 * truth.abs().mean()
    assert layer.stage["default"].dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_follows_a_device_move_after_a_restart(method):
    layer = make(method, 33, 47, 3)
    x = normal(16, 47, seed=4)
    learn(layer, 0)
    layer.restart("default", draws(0))
    learn(layer, 1)
    truth = layer(x)
    layer.cuda()
    assert_close(layer(x.cuda()).cpu(), truth, 1e-9)
    layer.restart("default", draws(1))
    assert_close(layer(x.cuda()).cpu(), truth, 1e-9)


# --- how far the restarts reach


def reached(method: str, d: int, k: int, r: int, *, stages: tuple[int, ...]) -> list[int]:
    """The rank of the whole change at the end of these stages, when each learns at random."""
    layer, ranks = make(method, d, k, r), []
    for stage in range(1, max(stages) + 1):
        learn(layer, stage)
        if stage in stages:
            ranks.append(int(torch.linalg.matrix_rank(layer.get_delta_weight("default"))))
        layer.restart("default", draws(stage))
    return ranks


@pytest.mark.parametrize(("d", "k", "r", "q", "cap"), [(64, 64, 2, 16, 28), (192, 256, 4, 42, 83)])
def test_changing_types_alone_caps_the_rank_just_below_2_q(d, k, r, q, cap):
    # The functions that are both strided and runs: of i mod q and of i // (size / q) at once.
    assert square_side(r, (d, k), "sharing") == q
    for method in ("cycle", "alternate"):
        assert reached(method, d, k, r, stages=(1, 4, 12)) == [q, cap, cap]


def test_permuted_groups_reach_full_rank():
    assert reached("permute", 64, 64, 2, stages=(1, 2, 3, 4, 5, 6)) == [16, 31, 46, 61, 64, 64]


def test_relora_adds_its_rank_at_every_restart():
    assert reached("relora", 24, 40, 5, stages=(1, 2, 3, 4, 5, 6)) == [5, 10, 15, 20, 24, 24]


def test_without_another_grouping_the_functions_are_those_of_one_stage():
    assert reached("same", 64, 64, 2, stages=(1, 2, 5)) == [16] * 3
    layer, total = make("same", 33, 47, 3), 0.0
    for stage in range(4):
        learn(layer, stage)
        total = total + layer.mora_M["default"].data
        layer.restart("default", draws(stage))
    assert_close(layer.get_delta_weight("default"), dense("sharing", total, 33, 47))


# --- on disk


RELOAD = """
    import copy, json, sys
    from pathlib import Path
    import torch
    from peft import PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    import ablate.adapters.mora.relora, ablate.adapters.mora.remora

    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    bases = {n: AutoModelForCausalLM.from_pretrained(root / n).eval() for n in ("llama", "gpt2")}
    for folder in sorted(f for f in root.iterdir() if "-" in f.name):
        stored = load_file(folder / "logits.safetensors")
        def base():
            return copy.deepcopy(bases[folder.name.split("-")[0]])
        def ours():
            read = PeftModel.from_pretrained(base(), str(folder / "peft")).peft_config["default"]
            read.inference_mode = False
            module = get_peft_model(base(), read).eval()
            left = module.load_state_dict(load_file(folder / "ours.safetensors"), strict=False)
            assert not left.unexpected_keys, left
            return module
        ways = {
            "peft": lambda: PeftModel.from_pretrained(base(), str(folder / "peft")),
            "lean": lambda: PeftModel.from_pretrained(
                base(), str(folder / "peft"), low_cpu_mem_usage=True
            ),
            "ours": ours,
            "merged": lambda: ours().merge_and_unload(),
        }
        for way, build in ways.items():
            with torch.no_grad():
                logits = build()(input_ids=stored["ids"]).logits
            error = float((logits - stored["logits"]).abs().max())
            print(json.dumps([folder.name, way, error]))
"""


def gpt2() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        return GPT2LMHeadModel(GPT2Config(vocab_size=toys.VOCAB, **sizes)).eval()


def test_a_restarted_adapter_reloads_in_a_fresh_process(tmp_path):
    bases = {"llama": (toys.llama(torch.float32), METHODS), "gpt2": (gpt2(), ("permute", "relora"))}
    expected = set()
    for architecture, (model, methods) in bases.items():
        model.save_pretrained(tmp_path / architecture)
        for method in methods:
            name = f"{architecture}-{method}"
            _store(tmp_path / name, copy.deepcopy(model), method)
            expected |= {(name, way) for way in ("peft", "lean", "ours", "merged")}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RELOAD), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    errors = {(name, way): error for name, way, error in lines}
    assert errors.keys() == expected
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}


def _store(folder: Path, model: nn.Module, method: str) -> None:
    settings = config(method, 2, target_modules="all-linear", task_type="CAUSAL_LM")
    if method == "relora":
        settings.fan_in_fan_out = "gpt2" in folder.name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = peft.get_peft_model(model, settings).eval()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad])
    for stage in range(3):  # the last stage of the three has a type and an order of its own
        for layer in (m for m in module.modules() if isinstance(m, RestartLayer)):
            for i, p in enumerate(own(layer)):
                p.data = 0.1 * normal(*p.shape, seed=7 * stage + i).float()
        if stage < 2:
            restarts.restart(module, optimizer, streams=Streams(0))
    module.save_pretrained(folder / "peft")
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    kept = adapter_buffers(module, RestartLayer)
    assert not trained.keys() & kept.keys()
    save_file({**trained, **kept}, folder / "ours.safetensors")
    ids = torch.randint(toys.VOCAB, (3, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        save_file({"ids": ids, "logits": module(ids).logits}, folder / "logits.safetensors")


def test_the_past_goes_along_when_converted_to_lora():
    layer = make("cycle", 24, 24, 2)
    model = nn.Sequential(base(24, 24))
    model = peft.get_peft_model(model, config("cycle", 2, target_modules=["0"])).double()
    for stage in range(2):
        learn(model.base_model.model[0], stage)
        model.base_model.model[0].restart("default", draws(stage))
        learn(layer, stage)
        layer.restart("default", draws(stage))
    settings, weights = peft.convert_to_lora(model, 24, progressbar=False)
    lora = peft.get_peft_model(nn.Sequential(base(24, 24)), settings)
    peft.set_peft_model_state_dict(lora, weights)
    x = normal(3, 24, seed=4)
    assert_close(lora.double()(x), layer(x), 1e-4)  # PEFT's conversion works in single precision


# --- refusals


@pytest.mark.parametrize(
    ("made", "settings", "said"),
    [
        (RemoraConfig, {"groups": "cycel"}, "groups=cycel: must be one of cycle, alternate"),
        (RemoraConfig, {"mora_type": "rotation"}, "ReMoRA starts from sharing"),
        (ReloraConfig, {"use_dora": True}, "use_dora=True: ReLoRA restarts plain LoRA only"),
        (ReloraConfig, {"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        (ReloraConfig, {"lora_bias": True}, "lora_bias"),
    ],
)
def test_a_wrong_configuration_is_refused(made, settings, said):
    with pytest.raises(ValueError, match=said):
        made(**settings)


def test_what_would_leave_the_past_out_is_refused():
    layer = make("relora", 12, 20, 2)
    with pytest.raises(ValueError, match="mixes adapters"):
        layer(normal(3, 20), adapter_names=["default"] * 3)
    with pytest.raises(ValueError, match="cannot be combined"):
        wrapped("relora").add_weighted_adapter(["default"], [1.0], "sum")


@pytest.mark.parametrize("method", ["cycle", "relora"])
def test_layers_whose_weight_is_not_the_matrix_are_refused(method):
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="floating-point weights"):
        peft.get_peft_model(model, config(method, 2, target_modules=["0"]))
