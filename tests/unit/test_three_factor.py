"""One layer with three-factor adapters against dense products, and against LoRA."""

import math
import warnings

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from ablate.adapters.three_factor import rules
from ablate.adapters.three_factor import start as three_factor
from ablate.adapters.three_factor.layer import ThreeFactorConfig, ThreeFactorLinear
from ablate.adapters.three_factor.rules import Given
from ablate.errors import UserError
from ablate.streams import Streams
from tests.dense import adapter_buffers, base, normal
from tests.factors import (
    LEVELS,
    NOT_AT_BASE,
    TRAINED,
    adapted,
    assert_close,
    begun,
    factor,
    layer_of,
    settings,
    shaken,
    started,
    trained,
)

SHAPES = {"square": (24, 24, 6), "wide": (16, 40, 7), "tall": (40, 16, 7), "cut": (12, 20, 99)}


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("level", LEVELS)
def test_delta_and_forward_agree_with_a_dense_product(level, shape, conv):
    d, k, n = shape
    model = shaken(started(level, d, k, n, conv=conv, scale=1.5))
    layer, n = layer_of(model), min(shape)
    W = layer.base_layer.weight.detach().numpy()
    B, A = factor(layer, "B").numpy(), factor(layer, "A").numpy()
    if "up" in TRAINED[level]:
        core = factor(layer, "up").numpy() @ factor(layer, "down").numpy()
        assert factor(layer, "down").shape == (max(1, n // 2), n)
    else:
        core = factor(layer, "M").numpy()
        core = np.diag(core) if core.ndim == 1 else core
    expected = np.zeros((d, k))
    for i in range(n):
        for j in range(n):
            expected += float(factor(layer, "scale")) * core[i, j] * np.outer(B[:, i], A[j])
    # The SVD's start has the scale inside, so that what is taken out is the best of its rank.
    taken = 1.0 if level == "lamda" else 1.5
    expected -= taken * begun(level, W.T if conv else W, n)
    delta = layer.get_delta_weight("default").detach()
    assert_close(delta.T if conv else delta, expected)
    x = normal(3, 2, k, seed=4)
    assert_close((layer(x) - layer.base_layer(x)).detach(), x @ torch.as_tensor(expected).T)


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("level", LEVELS)
def test_merge_equals_forward_and_unmerge_restores(level, conv):
    model = shaken(started(level, 16, 40, 7, conv=conv))
    layer, x = layer_of(model), normal(3, 40, seed=4)
    W = layer.base_layer.weight.data.clone()
    expected = model(x)
    layer.merge(safe_merge=True)
    assert (layer.base_layer.weight - W).abs().max() > 0.1
    assert_close(model(x), expected)
    layer.unmerge()
    assert_close(layer.base_layer.weight.data, W, 1e-12)
    assert_close(model(x), expected)
    with model.disable_adapter():
        assert_close(model(x), layer.base_layer(x), 0)


def test_without_a_core_it_is_lora():
    ours = peft.get_peft_model(
        nn.Sequential(base(16, 40)),
        ThreeFactorConfig(r=4, start="plain", scale=2.0, target_modules=["0"]),
    )
    three_factor.start(ours, Streams(0))
    lora = peft.get_peft_model(
        nn.Sequential(base(16, 40)), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    )
    theirs = next(m for m in lora.modules() if isinstance(m, LoraLayer))
    theirs.lora_A["default"].weight.data = factor(layer_of(ours), "A").clone()
    x = normal(32, 40, seed=4)
    for model in (ours, lora):
        optimizer = torch.optim.AdamW(trained(model).values(), lr=0.1)
        for _ in range(5):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_close(ours(x), lora(x))
    assert (ours(x) - ours.base_model.model[0].base_layer(x)).abs().max() > 0.1


def test_two_adapters_of_different_kind_and_size_on_one_layer():
    d, k = 16, 40
    model = started("nlora", d, k, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        model.add_adapter(
            "other", ThreeFactorConfig(r=9, **settings("loldu"), target_modules=["0"])
        )
    layer = layer_of(model)
    model.set_adapter("other")
    three_factor.start(model, Streams(0))
    shaken(model)
    model.set_adapter("default")
    shaken(model)
    x = normal(3, k, seed=4)
    out, W = layer.base_layer(x), layer.base_layer.weight.data.clone()
    first, second = (x @ layer.get_delta_weight(name).T for name in ("default", "other"))
    assert (first - second).abs().max() > 0.1
    for names, change in ((["default"], first), (["other"], second)):
        layer.set_adapter(names)
        assert_close(layer(x), out + change)
    assert {n.rpartition(".")[0] for n in trained(layer)} == {"factor_M", "factor_scale"}
    layer.set_adapter(["default", "other"])
    assert_close(layer(x), out + first + second)
    layer.merge()
    assert_close(layer(x), out + first + second)
    layer.unmerge()
    assert_close(layer.base_layer.weight.data, W, 1e-12)
    layer.merge(adapter_names=["other"])
    layer.enable_adapters(False)  # must undo the merge as well
    assert_close(layer(x), out)
    layer.enable_adapters(True)
    layer.delete_adapter("other")
    assert layer.active_adapters == ["default"]
    assert_close(layer(x), out + first)
    layer.update_layer("default", ThreeFactorConfig(r=3, **settings("pmss")))
    assert not any("start_" in name for name, _ in layer.named_buffers())
    assert_close(layer(x), layer.base_layer(x), 0)


@pytest.mark.parametrize("level", LEVELS)
def test_follows_a_dtype_move_after_a_forward(level):
    model = shaken(started(level, 16, 40, 7, scale=0.3))
    x = normal(64, 40, seed=4)
    truth = model(x).detach()
    size = float(truth.abs().max())
    single = model.float()(x.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), truth, 1e-5 * size)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    # Each of at most six factors is rounded to 8 bits, and each product again.
    assert (half.double() - truth).abs().max() < 0.1 * size
    layer_of(model).merge()
    assert (model(x.bfloat16()).double() - truth).abs().max() < 0.1 * size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("level", LEVELS)
def test_follows_a_device_move_and_starts_there(level):
    model = shaken(started(level, 16, 40, 7))
    x = normal(3, 40, seed=4)
    truth = model(x)
    model.cuda()
    assert_close(model(x.cuda()).cpu(), truth)
    three_factor.start(model, Streams(0), {"0": normal(16, 40, seed=9)})
    fresh = started(level, 16, 40, 7)
    assert_close(model(x.cuda()).cpu(), fresh(x), 1e-6)  # draws are made in single precision
    layer_of(model).merge()
    assert_close(model(x.cuda()).cpu(), fresh(x), 1e-6)


@pytest.mark.parametrize("level", [n for n in LEVELS if n not in NOT_AT_BASE])
def test_adapter_in_single_precision_on_a_bfloat16_base(level):
    config = ThreeFactorConfig(r=7, **settings(level, scale=0.3), target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(base(16, 40).bfloat16()), config)
    three_factor.start(model, Streams(0))
    layer, x = layer_of(model), normal(3, 40).bfloat16()
    held = [*trained(model).values(), *adapter_buffers(model, ThreeFactorLinear).values()]
    assert {t.dtype for t in held} == {torch.float32}
    assert factor(layer, "scale") == torch.tensor(0.3)
    out = model(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, layer.base_layer(x))
    out.sum().backward()
    assert {p.grad.dtype for p in trained(model).values()} == {torch.float32}


def test_dropout_acts_on_the_change_in_training_only():
    model = started("inttune", 16, 40, 7, dropout=0.5)
    x = torch.ones(1, 40, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert_close(model(x), layer_of(model).base_layer(x), 0)  # no change, nothing to drop
        shaken(model)
        draws = torch.stack([model(x) - layer_of(model).base_layer(x) for _ in range(2000)])
    model.eval()
    kept = model(x) - layer_of(model).base_layer(x)
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - kept).abs() < 5 * standard_error).all()
    assert draws.std(0).min() > 0.1


def test_a_merge_that_would_break_the_weight_is_refused():
    layer = layer_of(started("moslora", 12, 20, 2))
    W = layer.base_layer.weight.data.clone()
    layer.factor_B["default"].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight.data, W)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_converts_to_lora_factors_of_its_rank():
    model = shaken(started("inttune", 16, 40, 5))
    x = normal(3, 40, seed=4)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, weights = peft.convert_to_lora(model, 5, progressbar=False)
    lora = peft.get_peft_model(nn.Sequential(base(16, 40)), config)
    peft.set_peft_model_state_dict(lora, weights)
    # PEFT's conversion works in single precision.
    assert_close(lora.double()(x), expected, 1e-6 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "nystroem"}, "start=nystroem: must be one of plain, kaiming"),
        ({"trains": "M"}, "trains=M: must be one of all, left"),
        ({"r": 0}, "r=0: must be at least 1"),
        ({"nesting": 0}, "nesting=0: must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        ThreeFactorConfig(**changes)


def test_layers_whose_weight_is_not_the_matrix_are_refused():
    quantised = nn.Linear(8, 8)
    quantised.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    for layer in (quantised, nn.Embedding(8, 8)):
        with pytest.raises(TypeError, match="floating-point weights"):
            ThreeFactorLinear(layer, "default", ThreeFactorConfig())


def test_a_start_from_a_gradient_that_is_missing_is_one_line():
    model = adapted("lora_sb", "llama")
    with pytest.raises(UserError, match=r"needs the gradient of model.layers.0.self_attn.q_proj"):
        three_factor.start(model, Streams(0))
    with pytest.raises(ValueError, match="needs the gradient"):
        rules.gradient_svd(Given(W_DK=normal(4, 4), N=2))
