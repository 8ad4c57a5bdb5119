"""Methods that change a part of LoRA: what each does beside it, against its formulas."""

import dataclasses

import numpy as np
import pytest
import torch
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ablate.adapters import build, registry
from ablate.adapters.hooks import hooks as adapter_hooks
from ablate.adapters.lora.spec import phases
from ablate.adapters.lora.starts import layers
from ablate.config import schema
from ablate.errors import UserError
from ablate.streams import Streams
from ablate.training.hooks import StepContext
from tests import levels, toys
from tests.levels import DATA, RANK, cell, logits, pristine
from tests.pairs import base_weights, close, factors, held, inputs, mean_gradient, same_span


def test_kasa_cuts_the_smallest_singular_values_and_gives_them_back():
    module, plain = levels.applied(cell("kasa")), logits(pristine("llama"))
    for name, weight in held(module).items():
        true = torch.linalg.svdvals(base_weights()[name])
        left = torch.linalg.svdvals(weight)
        close(left[:-RANK], true[:-RANK])
        close(left[-RANK:], torch.zeros(RANK), atol=1e-5)
    assert (logits(module) - plain).abs().max() > 1e-2
    with module.disable_adapter():
        close(logits(module), plain)


def test_lora_sb_and_velora_look_at_the_data():
    """Their start is a sign of a gradient, and the mean of inputs in groups."""
    module, gradients = levels.applied(cell("lora_sb")), mean_gradient()
    warm_up = 1  # 3 % of 16 steps: the released code's step is the rate over the warm-up's steps
    for name, layer in levels_of(module, "factor_M"):
        update = -(0.01 / warm_up) * gradients[name].sign()
        U, S, Vh = torch.linalg.svd(update, full_matrices=False)
        n = min(layer.factor_M["default"].shape)
        close(layer.get_delta_weight("default"), (U[:, :n] * S[:n]) @ Vh[:n], atol=1e-4)
    seen = inputs()
    for name, layer in levels_of(levels.applied(cell("velora")), "lora_velora_embed"):
        mean = np.concatenate(seen[name]).mean(0)
        kept = layer.lora_velora_embed["default"]
        padded = np.pad(mean, (0, 16 * len(kept) - len(mean)))
        direction = padded.reshape(16, -1).mean(0)
        close(kept, torch.from_numpy(direction / np.linalg.norm(direction)), atol=1e-5)


def levels_of(module: nn.Module, attribute: str) -> list[tuple[str, nn.Module]]:
    found = [
        (name.removeprefix("base_model.model."), layer)
        for name, layer in module.named_modules()
        if hasattr(layer, attribute)
    ]
    assert len(found) == 14
    return found


def test_mica_holds_the_last_singular_vectors_and_trains_the_other_factor():
    module = levels.applied(cell("mica"))
    for name, (A, B) in factors(module).items():
        U, _, _ = torch.linalg.svd(base_weights()[name], full_matrices=False)
        same_span(B.T, U[:, -B.shape[1] :].T)
        assert not A.any()
    assert {n.split(".")[-3] for n in build.trained(module)} == {"lora_A"}


def test_kasa_adds_its_penalties_once_a_step():
    """||s||^2 beta + gamma (||B'B - I|| + ||AA' - I||), summed over matrices."""
    options = {"beta": 0.5, "gamma": 0.25}
    asked = cell(levels.adapter("kasa", options=options), execution=toys.execution())
    module = levels.applied(asked)
    expected, eye = 0.0, torch.eye(RANK, dtype=torch.float64)
    for (A, B), (_, layer) in zip(factors(module).values(), layers(module), strict=True):
        expected += 0.5 * float(layer.lora_diag["default"].detach().double().square().sum())
        expected += 0.25 * float((B.T @ B - eye).norm() + (A @ A.T - eye).norm())
    terms = []
    module.train()
    for micro in (None, 2):
        asked = dataclasses.replace(asked, execution=toys.execution(micro_batch_size=micro))
        terms.append(penalty_of(module, asked))
    assert terms == pytest.approx([expected, expected], rel=1e-5)


def penalty_of(module: nn.Module, asked: schema.Cell) -> float:
    """What the adapter's hooks add to the loss in one step of the loop, all micro-batches."""
    hooks = adapter_hooks(asked, streams=Streams(0))
    micro = asked.execution.micro_batch_size
    count = -(-len(DATA) // micro) if isinstance(micro, int) else 1
    contexts = [
        StepContext(0, 1, module, None, None, 1.0, i == count - 1)  # type: ignore[arg-type]
        for i in range(count)
    ]
    with torch.no_grad():
        return sum(float(hooks.extra_loss(context)) for context in contexts)


@pytest.mark.parametrize("level", ["adalora", "kasa"])
def test_penalties_are_exact_under_autocast(level):
    """Near their minimum, where 16 bits lose what the penalty measures: against float64."""
    module = levels.applied(cell(level, rank=16))
    with torch.no_grad():
        for _, layer in layers(module):
            for factor in (layer.lora_A, layer.lora_B):
                P = factor["default"]
                P = P.weight if isinstance(P, nn.Module) else P
                nn.init.orthogonal_(P)
                P += 1e-3 * torch.randn(P.shape, generator=torch.Generator().manual_seed(0))
    gradients = []
    for exact in (False, True):
        module = module.double() if exact else module
        module.zero_grad()
        context = StepContext(0, 1, module, None, None, 1.0, True)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            adapter_hooks(cell(level), streams=Streams(0)).extra_loss(context).backward()
        found = [p.grad.double().flatten() for p in module.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_adalora_prunes_to_its_last_rank_and_no_further():
    module = levels.run("adalora", "llama").module
    settings = module.peft_config["default"]
    assert (settings.init_r, settings.target_r) == (4, 3)
    alive = [int((layer.lora_E["default"] != 0).sum()) for _, layer in layers(module)]
    assert sum(alive) == 3 * len(alive)
    assert len(set(alive)) > 1  # the rank went where it matters


def test_adaloras_penalty_is_the_mean_distance_from_orthogonality():
    module = levels.applied(cell("adalora"))
    distances = []
    for _, layer in layers(module):
        for P in (layer.lora_A["default"].double(), layer.lora_B["default"].double().T):
            distances.append(float((P @ P.T - torch.eye(4, dtype=torch.float64)).norm().detach()))
    assert penalty_of(module, cell("adalora")) == pytest.approx(0.5 * np.mean(distances), rel=1e-5)
    plain = cell(levels.adapter("adalora", options={"orthogonality": 0.0}))
    assert levels.fit(levels.applied(plain), plain) != levels.run("adalora", "llama").losses


def test_adaloras_rank_does_not_train_on_a_gpu(monkeypatch):
    """There every tensor is moved, so PEFT makes each a new parameter."""
    real = AdaLoraLayer._move_adapter_to_device_of_base_layer

    def move(layer, name, device=None):
        real(layer, name, device)
        for part in (*layer.adapter_layer_names, "ranknum"):
            if name in getattr(layer, part, {}):
                getattr(layer, part)[name] = getattr(layer, part)[name].clone()

    monkeypatch.setattr(AdaLoraLayer, "_move_adapter_to_device_of_base_layer", move)
    trained = build.trained(levels.applied(cell("adalora")))
    assert not [name for name in trained if "ranknum" in name]
    count = registry.trainable_parameters(cell("adalora"), levels.sizes("llama"))
    assert sum(p.numel() for p in trained.values()) == count


def test_adaloras_phases():
    options = {"initial": 0.1, "final": 0.5, "interval": 0.001}
    assert phases(12, options) == (2, 6, 1)
    assert phases(3000, options) == (300, 1500, 3)
    with pytest.raises(UserError, match="leave no step to prune in a run of 2"):
        phases(2, options)


def test_alora_acts_from_the_invocation_on():
    module = levels.run("alora", "llama").module
    assert module.peft_config["default"].alora_invocation_tokens == [levels.HEADING]
    ids = levels.tokens()
    ids[ids == levels.HEADING] = 0
    with torch.no_grad():
        close(module(input_ids=ids).logits, pristine("llama")(input_ids=ids).logits, atol=0)
        ids[:, 5] = levels.HEADING
        now, then = (m(input_ids=ids).logits for m in (module, pristine("llama")))
    close(now[:, :5], then[:, :5], atol=0)
    assert ((now - then)[:, 5:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("level", ["lora", "adalora", "kasa", "velora", "alora"])
def test_draws_depend_on_seed_and_module_alone(level):
    one, other = (levels.applied(cell(level, seed=seed)) for seed in (0, 1))
    part = schema.Placement(name="v", modules=("v_proj", "mlp.down_proj"))
    some = dict(layers(levels.applied(cell(level, placement=part))))
    assert len(some) == 4
    for (name, layer), (_, twin) in zip(layers(one), layers(other), strict=True):
        A, B = drawn(layer), drawn(twin)
        assert not torch.equal(A, B)
        if name in some:
            assert torch.equal(A, drawn(some[name]))


def drawn(layer: LoraLayer) -> Tensor:
    A = layer.lora_A["default"]
    return getattr(A, "weight", A).detach()


def test_counts_of_the_family():
    shapes = {"q": (64, 64), "up": (170, 64), "down": (64, 170)}
    asked = {
        level: registry.budget(cell(level, rank=8), shapes).got for level in ("kasa", "adalora")
    }
    lora = 8 * (128 + 234 + 234)
    assert asked == {"kasa": lora + 24, "adalora": lora + 24}
    mica = registry.budget(cell("mica", rank=8), shapes)
    assert mica.got == 16 * (64 + 64 + 170)  # the nearest multiple of the inputs
    fixed = cell("lora", rank=8, optimizer=schema.Optimizer(kind="lora_fa"))
    assert registry.budget(fixed, shapes).got == 8 * (64 + 170 + 64)
    assert registry.budget(cell("adalora", rank=1), shapes).ratio > 2  # two ranks at least
