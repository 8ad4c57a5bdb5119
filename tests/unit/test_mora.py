"""MoRA against a dense Delta-W built from the formulas alone."""

import math
import warnings

import peft
import pytest
import torch
from torch import Tensor, nn

from ablate.adapters.mora.layer import MoraConfig, MoraLinear
from ablate.adapters.mora.spec import ROWS, TYPES, mora_type, square_side
from ablate.adapters.mora.square import MAPS
from tests.dense import GROUPED, base, dense, maps, normal

# (d outputs, k inputs, r): what is special about it
SHAPES = {
    "square, no padding": (64, 64, 2),
    "square, padded": (64, 64, 5),
    "square, side above half": (32, 32, 10),
    "square, full rank": (24, 24, 24),
    "wide": (48, 96, 3),
    "tall": (96, 48, 3),
    "grouped-query 4:1": (32, 128, 4),
    "grouped-query, side above d": (16, 64, 16),
    "primes, wide": (47, 61, 5),
    "primes, tall": (61, 47, 5),
    "side above k: one group": (256, 64, 16),
    "side above 2 k: padding wraps": (256, 16, 16),
    "very wide": (10, 200, 10),
    "very tall": (200, 10, 10),
    "few rows": (5, 150, 1),
    "rank one": (40, 40, 1),
}
EXACT = 1e-10  # float64, sums of at most some hundred terms of order one


def adapted(d: int, k: int, r: int, kind: str, *, conv: bool = False, seed: int = 3) -> MoraLinear:
    layer = MoraLinear(base(d, k, conv=conv), "default", MoraConfig(r=r, mora_type=kind))
    q = len(layer.mora_M["default"])
    layer.mora_M["default"].data = normal(q, q, seed=seed)
    return layer


def assert_close(actual: Tensor, expected: Tensor, atol: float = EXACT) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", TYPES)
def test_forward_and_delta_agree_with_the_formulas(kind, shape, conv):
    d, k, r = shape
    layer = adapted(d, k, r, kind, conv=conv)
    x = normal(3, 2, k, seed=4)
    expected = dense(kind, layer.mora_M["default"].data, d, k)
    delta = layer.get_delta_weight("default")
    assert_close(delta.T if conv else delta, expected)
    assert_close(layer(x) - layer.base_layer(x), x @ expected.T)


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", TYPES)
def test_merge_equals_forward_and_unmerge_restores(kind, shape, conv):
    d, k, r = shape
    layer = adapted(d, k, r, kind, conv=conv)
    x, W = normal(3, k, seed=4), layer.base_layer.weight.data.clone()
    expected = layer(x)
    layer.merge(safe_merge=True)
    assert (layer.base_layer.weight - W).abs().max() > 0.1
    assert_close(layer(x), expected)
    layer.unmerge()
    assert_close(layer.base_layer.weight.data, W, 1e-14)
    assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("d", "k", "r", "sharing", "rotation"),
    [
        (4096, 4096, 8, 256, 256),
        (4096, 4096, 16, 362, 362),
        (4096, 4096, 64, 724, 724),
        (4096, 4096, 128, 1024, 1024),
        (4096, 4096, 256, 1448, 1448),
        (11008, 4096, 8, 347, 346),
        (4096, 11008, 256, 1966, 1966),
        (1024, 4096, 128, 809, 808),
        (1024, 4096, 256, 1144, 1144),
        (14336, 4096, 64, 1086, 1086),
        (2048, 2048, 8, 181, 180),
        (64, 64, 64, 64, 64),  # sqrt(2 k r) = 90 would hold rows that no output reads
        (1, 2, 1, 1, 2),
    ],
)
def test_side_of_the_square_is_the_papers_floor(d, k, r, sharing, rotation):
    assert square_side(r, (d, k), "sharing") == sharing
    assert square_side(r, (d, k), "truncate") == sharing
    assert square_side(r, (d, k), "rotation") == rotation


def test_auto_rotates_at_the_papers_small_rank_and_shares_at_its_large_ones():
    def chosen(rank: int, width: int) -> str:
        shapes = {"q_proj": (width, width), "down_proj": (width, 3 * width)}
        return mora_type(rank, shapes, {"type": "auto"})

    assert chosen(8, 4096) == "rotation"
    assert [chosen(256, 4096), chosen(128, 2048), chosen(128, 768)] == ["sharing"] * 3
    assert [chosen(31, 4096), chosen(32, 4096)] == ["rotation", "sharing"]


@pytest.mark.parametrize(("d", "k"), [(64, 64), (48, 96), (96, 48), (10, 64), (64, 10)])
@pytest.mark.parametrize("kind", TYPES)
def test_rank_of_the_change(kind, d, k):
    M = normal(16, 16)
    limit = max(d, k) if kind in ("rotation", "decouple") else 16
    assert torch.linalg.matrix_rank(MAPS[kind].delta(M, d, k)) == min(limit, d, k)


@pytest.mark.parametrize("kind", TYPES)
def test_spectrum_of_the_change(kind):
    M = normal(16, 16)
    values = torch.linalg.svdvals(M)
    n, m = 4, 3
    if kind in ("rotation", "decouple"):
        square = torch.linalg.svdvals(MAPS[kind].delta(M, n * 16, n * 16))
        assert_close(square, values.repeat_interleave(n))
        return
    factor = 1.0 if kind == "truncate" else math.sqrt(n * m)
    assert_close(torch.linalg.svdvals(MAPS[kind].delta(M, m * 16, n * 16))[:16], factor * values)


def test_every_type_has_its_maps_and_its_closed_form():
    assert set(TYPES) == set(MAPS)
    shapes = {str(i): (d, k) for i, (d, k, _) in enumerate(SHAPES.values())}
    row = ROWS["mora"]
    for kind in TYPES:
        options = {"type": kind, "dropout": 0.1}
        arguments = row.arguments_at(5, shapes, options)
        config = MoraConfig(**arguments)
        assert (config.r, config.mora_type, config.mora_dropout) == (5, kind, 0.1)
        layers = [MoraLinear(base(d, k), "default", config) for d, k in shapes.values()]
        counted = sum(layer.mora_M["default"].numel() for layer in layers)
        assert row.parameters_at(5, shapes, options) == counted
        sides = {f"{d}x{k}": square_side(5, (d, k), kind) for d, k in shapes.values()}
        found = {"type": kind, "q": sides, "dropout": 0.1}
        assert row.capacity_at(5, shapes, options) == found


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(12, 20, 2), (20, 12, 2), (9, 7, 1)])
def test_starts_as_a_no_op_with_the_gradient_of_the_formula(kind, shape):
    d, k, r = shape
    layer = MoraLinear(base(d, k), "default", MoraConfig(r=r, mora_type=kind))
    x, slope = normal(5, k, seed=4), normal(5, d, seed=5)
    assert torch.equal(layer(x), layer.base_layer(x))
    (layer(x) * slope).sum().backward()
    G = slope.T @ x  # gradient with respect to Delta-W
    actual = layer.mora_M["default"].grad
    q = len(actual)
    if kind in GROUPED:
        E, C = maps(kind, d, k, q)
        assert_close(actual, E.T @ G @ C.T)
    # Delta-W is linear in M: each entry's gradient is G's inner product with that entry's change.
    units = torch.eye(q * q, dtype=torch.float64).view(q * q, q, q)
    expected = torch.stack([(G * dense(kind, unit, d, k)).sum() for unit in units])
    assert_close(actual, expected.view(q, q))
    assert actual.abs().max() > 0.1


def test_two_adapters_of_different_rank_and_type_on_one_layer():
    d, k = 40, 56
    layer = adapted(d, k, 2, "sharing")
    layer.update_layer("other", MoraConfig(r=7, mora_type="rotation"))
    q = square_side(7, (d, k), "rotation")
    layer.mora_M["other"].data = normal(q, q, seed=6)
    x = normal(3, k, seed=4)
    out, W = layer.base_layer(x), layer.base_layer.weight.data.clone()
    first = x @ dense("sharing", layer.mora_M["default"].data, d, k).T
    second = x @ dense("rotation", layer.mora_M["other"].data, d, k).T
    for names, change in ((["default"], first), (["other"], second)):
        layer.set_adapter(names)
        assert_close(layer(x), out + change)
    layer.set_adapter(["default", "other"])
    assert_close(layer(x), out + first + second)
    layer.merge()
    assert_close(layer(x), out + first + second)
    layer.unmerge()
    assert_close(layer.base_layer.weight.data, W, 1e-14)
    layer.merge(adapter_names=["other"])
    assert_close(layer(x), out + second)
    layer.enable_adapters(False)  # must undo the merge as well
    assert_close(layer(x), out)
    layer.enable_adapters(True)
    layer.delete_adapter("other")
    assert layer.active_adapters == ["default"]
    assert_close(layer(x), out + first)


@pytest.mark.parametrize("kind", TYPES)
def test_follows_a_dtype_move_after_a_forward(kind):
    d, k = 40, 56
    layer = adapted(d, k, 4, kind)
    x = normal(64, k, seed=4)
    truth = layer(x)
    single = layer.float()(x.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), truth, 1e-4)
    layer.bfloat16()
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    naive = nn.functional.linear(
        x.bfloat16(),
        layer.base_layer.weight + dense(kind, layer.mora_M["default"].double(), d, k).bfloat16(),
        layer.base_layer.bias,
    )
    error = (half.double() - truth).abs().mean()
    assert error < 2 * (naive.double() - truth).abs().mean()
    layer.merge()
    assert (layer(x.bfloat16()).double() - truth).abs().mean() < 2 * error
    layer.unmerge()
    assert_close(layer.double()(x), truth, 0.5)  # back, to what bfloat16 kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", TYPES)
def test_follows_a_device_move_after_a_forward(kind):
    layer = adapted(40, 56, 4, kind)
    x = normal(3, 56, seed=4)
    truth = layer(x)
    layer.cuda()
    assert_close(layer(x.cuda()).cpu(), truth)
    layer.merge()
    assert_close(layer(x.cuda()).cpu(), truth)


@pytest.mark.parametrize("kind", TYPES)
def test_adapter_in_single_precision_on_a_bfloat16_base(kind):
    model = peft.get_peft_model(
        nn.Sequential(base(40, 56).bfloat16()),
        MoraConfig(r=4, mora_type=kind, target_modules=["0"]),
    )
    layer = model.base_model.model[0]
    assert layer.mora_M["default"].dtype == torch.float32
    out = model(normal(3, 56).bfloat16())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.mora_M["default"].grad.dtype == torch.float32


def test_dropout_acts_on_the_input_in_training_only():
    layer = MoraLinear(base(40, 56), "default", MoraConfig(r=4, mora_dropout=0.5))
    layer.mora_M["default"].data = torch.ones_like(layer.mora_M["default"])
    x = torch.ones(1, 56, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = torch.stack([layer(x) - layer.base_layer(x) for _ in range(2000)])
    layer.eval()
    kept = layer(x) - layer.base_layer(x)
    assert torch.equal(layer(x), layer(x))
    assert draws[0].allclose(draws[1]) is False
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - kept).abs() < 5 * standard_error).all()


def test_a_merge_that_would_break_the_weight_is_refused():
    layer = adapted(12, 20, 2, "sharing")
    W = layer.base_layer.weight.data.clone()
    layer.mora_M["default"].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight.data, W)
    assert not layer.merged


def test_unmerge_without_a_merge_warns():
    with pytest.warns(UserWarning, match="Already unmerged"):
        adapted(12, 20, 2, "sharing").unmerge()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"mora_type": "rotate"}, "must be one of sharing, grouped_2"), ({"r": 0}, "at least 1")],
)
def test_a_wrong_configuration_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        MoraConfig(**settings)


def test_layers_whose_weight_is_not_the_matrix_are_refused():
    quantised = nn.Linear(8, 8)
    quantised.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    for layer in (quantised, nn.Embedding(8, 8)):
        with pytest.raises(TypeError, match="floating-point weights"):
            MoraLinear(layer, "default", MoraConfig())


def test_sharing_converts_to_lora_factors_of_its_rank():
    model = peft.get_peft_model(
        nn.Sequential(base(40, 56)), MoraConfig(r=2, target_modules=["0"])
    ).double()
    M = model.base_model.model[0].mora_M["default"]
    M.data = normal(*M.shape)
    x = normal(3, 56, seed=4)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, weights = peft.convert_to_lora(model, len(M), progressbar=False)
    lora = peft.get_peft_model(nn.Sequential(base(40, 56)), config)
    peft.set_peft_model_state_dict(lora, weights)
    assert_close(lora.double()(x), expected, 1e-4)  # PEFT's conversion works in single precision
