"""Optimizers made for adapters: each does what its name says, on every adapter it is legal with."""

import dataclasses
import functools

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn

from ablate.adapters import build, compatibility, registry
from ablate.adapters.lora.starts import layers
from ablate.adapters.method import GENERAL
from ablate.adapters.optimizers import maker, optimizer_of
from ablate.config import schema
from ablate.errors import UserError
from ablate.training import optim
from tests import levels, toys
from tests.levels import ADAPTING, adapter, applied, cell

STEPS = 4  # the first loss is the same for all
OPTIMIZERS, INITS = levels.files("optimizer"), levels.files("init")


def optimizer(level: str, **options) -> schema.Optimizer:
    tree = levels.read("optimizer", level)
    return schema.Optimizer(**tree | {"options": tree["options"] | options})


def short(asked: schema.Cell, **changes) -> schema.Cell:
    settings = {"max_steps": STEPS, "lr": 0.02, "batch_size": 7, **changes}
    return dataclasses.replace(asked, train=toys.train_settings(**settings))


@functools.cache
def trace(level: str, init: str = "default", rule: str = "adamw") -> tuple[float, ...]:
    asked = cell(
        level,
        init=schema.Init(**levels.read("init", init)),
        optimizer=schema.Optimizer(**levels.read("optimizer", rule)),
    )
    asked = short(asked)
    return tuple(levels.fit(applied(asked), asked))


def legal(level: str, **factors) -> bool:
    shapes = build.linear_shapes(levels.pristine("llama"))
    asked = cell(level, **factors)
    try:
        compatibility.check(asked, architecture="LlamaForCausalLM", shapes=shapes)
    except UserError:
        return False
    return True


PAIRS = [
    (level, rule)
    for level in ADAPTING
    for rule in OPTIMIZERS
    if rule not in GENERAL and legal(level, optimizer=optimizer(rule))
] + [(level, "adafactor") for level in ("lora", "mora", "ia3", "layernorm")]
STARTS = [
    (level, start)
    for level in ADAPTING
    for start in INITS
    if start != "default" and legal(level, init=schema.Init(**levels.read("init", start)))
]


@pytest.mark.parametrize(("level", "rule"), PAIRS)
def test_every_legal_optimizer_is_another_run(level, rule):
    others = {trace(level, rule=other) for host, other in PAIRS if host == level and other != rule}
    assert trace(level, rule=rule) not in others | {trace(level)}
    assert trace(level, rule=rule)[-1] < trace(level)[0]


@pytest.mark.parametrize(("level", "start"), STARTS)
def test_every_legal_init_is_another_run(level, start):
    others = {trace(level, other) for host, other in STARTS if host == level and other != start}
    assert trace(level, start) not in others | {trace(level)}


def test_the_legal_pairs_are_these():
    hosts = {rule: {level for level, other in PAIRS if other == rule} for rule in OPTIMIZERS}
    plain = {"lora", "rslora", "alora"}
    assert hosts["lora_fa"] >= plain
    assert hosts["riemannian"] >= plain | {"dora", "velora"}
    assert hosts["lora_plus"] >= plain | {"dora", "velora", "kasa", "adalora"}
    starts = {start: {level for level, other in STARTS if other == start} for start in INITS}
    for start in set(INITS) - {"default", "loftq"}:
        dora = set() if start in ("both_random", "both_zero") else {"dora"}
        assert starts[start] == {"lora", "rslora"} | dora, start
    assert starts["loftq"] == set()  # on 4-bit weights alone


NOT_LEGAL = [
    *(("lora_fa", level) for level in ("dora", "kasa", "mica", "velora", "adalora", "vera")),
    *(("lora_fa", level) for level in ("psoft", "mora", "full")),
    *(("riemannian", level) for level in ("mica", "kasa", "adalora", "vera", "delora", "psoft")),
    *(("lora_plus", level) for level in ("mica", "mora", "vera", "full")),
]


@pytest.mark.parametrize(("rule", "level"), NOT_LEGAL)
def test_what_would_be_another_optimizer_in_silence_is_refused(rule, level):
    with pytest.raises(UserError, match=f"^optimizer={rule}: .*adapter={level}"):
        compatibility.check(cell(level, optimizer=optimizer(rule)), architecture="LlamaForCausalLM")


# --- AdamW


def test_only_matrices_decay():
    settings = toys.train_settings(weight_decay=0.3)
    for rule in ("adamw", "adamw_8bit", "riemannian", "lora_plus"):
        asked = cell("dora", optimizer=optimizer(rule), embeddings="trained")
        module = applied(asked)
        made = optim.optimizer(module, settings, maker(asked.optimizer))
        decay = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
        assert decay.keys() == {id(p) for p in optim.trainable(module)}
        for parameter in optim.trainable(module):
            assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0)
        assert all(group["betas"] == settings.betas for group in made.param_groups)


def test_adamw_is_the_default():
    module, settings = applied(cell("lora")), toys.train_settings()
    plain = optim.optimizer(module, settings)
    assert isinstance(plain, torch.optim.AdamW)
    assert plain.defaults["fused"]


# --- LoRA+


def test_lora_plus_raises_the_rate_of_b_alone():
    asked = cell("dora", optimizer=optimizer("lora_plus", ratio=4.0), embeddings="trained")
    module = applied(asked)
    made = optim.optimizer(module, toys.train_settings(lr=0.1), maker(asked.optimizer))
    rate = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    for name, parameter in build.trained(module).items():
        assert rate[id(parameter)] == pytest.approx(0.4 if ".lora_B." in name else 0.1)
    assert made.param_groups[0]["lr"] == 0.1  # what the history shows


def test_lora_plus_is_pefts_on_plain_lora(monkeypatch):
    asked = short(cell("lora", optimizer=optimizer("lora_plus", ratio=8.0)), weight_decay=0.1)
    own = levels.fit(applied(asked), asked)

    def pefts(model: nn.Module, settings: schema.Train, rule: object) -> torch.optim.Optimizer:
        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=settings.lr,
            loraplus_lr_ratio=8.0,
            loraplus_weight_decay=settings.weight_decay,
            betas=settings.betas,
            eps=settings.eps,
        )

    monkeypatch.setattr(optim, "optimizer", pefts)
    assert own == pytest.approx(levels.fit(applied(asked), asked), rel=1e-5)


def test_a_model_without_the_factor_is_not_passed_over():
    with pytest.raises(ValueError, match="no factor B"):
        optim.optimizer(applied(cell("mora")), toys.train_settings(), maker(optimizer("lora_plus")))


# --- LoRA-FA and Riemannian LoRA: AdamW's first step is the sign of what it is given


def first_step(rule: str) -> list[tuple[Tensor, ...]]:
    """A, gradients of A and B, and what was added to A and B, by matrix; B starts off zero."""
    asked = cell("lora", optimizer=optimizer(rule))
    module = applied(asked)
    with torch.no_grad():
        for _, layer in layers(module):
            B = layer.lora_B["default"].weight
            B.copy_(torch.arange(B.numel()).sin().view_as(B) / 10)
    made = optim.optimizer(module, toys.train_settings(lr=0.5, eps=1e-12), maker(asked.optimizer))
    ids = levels.tokens()
    module(input_ids=ids, labels=ids).loss.backward()
    seen = []
    for _, layer in layers(module):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        seen.append([A, B, *(x.detach().clone() for x in (A, B)), A.grad, B.grad.clone()])
        seen[-1][4] = None if A.grad is None else A.grad.clone()
    made.step()
    return [(A0, B0, gA, gB, A.detach() - A0, B.detach() - B0) for A, B, A0, B0, gA, gB in seen]


def agree(step: Tensor, direction: Tensor, least: float) -> None:
    """Each entry moved against its direction by the learning rate, but for ones near zero."""
    torch.testing.assert_close(step.abs(), torch.full_like(step, 0.5), rtol=1e-2, atol=0)
    assert (step.sign() == -direction.sign()).float().mean() > least


def test_lora_fa_projects_the_gradient_of_full_tuning():
    """The best B for a fixed A: argmin |s dB A - G|, which is G A' (A A')^-1 / s."""
    for A, _, gA, gB, dA, dB in first_step("lora_fa"):
        assert gA is None
        assert not dA.any()
        agree(dB, gB.double() @ torch.linalg.inv((A @ A.T).double()), 0.97)  # it is in bfloat16


def test_riemannian_preconditions_each_factor_by_the_other():
    eye = 0.01 * torch.eye(levels.RANK, dtype=torch.float64)
    for A, B, gA, gB, dA, dB in first_step("riemannian"):
        A, B = A.double(), B.double()
        agree(dA, torch.linalg.inv(B.T @ B + eye) @ gA.double(), 0.99)
        agree(dB, gB.double() @ torch.linalg.inv(A @ A.T + eye), 0.99)


def test_lora_fa_trains_half_and_says_so():
    asked = cell("lora", optimizer=optimizer("lora_fa"))
    trained = build.trained(applied(asked))
    assert all(".lora_B." in name for name in trained)
    counted = sum(p.numel() for p in trained.values())
    assert counted == registry.trainable_parameters(asked, levels.sizes("llama"))
    made = optim.optimizer(
        applied(asked), toys.train_settings(betas=(0.8, 0.9), eps=1e-5), maker(asked.optimizer)
    )
    assert made.param_groups[0]["betas"] == (0.8, 0.9)
    assert made.param_groups[0]["eps"] == 1e-5


def test_an_option_that_is_not_known_is_one_line():
    with pytest.raises(UserError, match=r"optimizer.options.ratoi.*Did you mean 'ratio'"):
        optimizer_of(schema.Optimizer(kind="lora_plus", options={"ratoi": 2.0}))
    with pytest.raises(UserError, match=r"optimizer.kind=lora_plsu.*Did you mean 'lora_plus'"):
        optimizer_of(schema.Optimizer(kind="lora_plsu"))
    assert adapter("lora").kind == "lora"
