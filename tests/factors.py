"""Layers and tiny models with three-factor adapters, and their starts by numpy and scipy."""

import copy
import functools
import types
import warnings

import numpy as np
import peft
import scipy.linalg
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from ablate import paths
from ablate.adapters.three_factor import start as three_factor
from ablate.adapters.three_factor.layer import ThreeFactorConfig, ThreeFactorLinear
from ablate.adapters.three_factor.spec import ROWS
from ablate.streams import Streams
from ablate.training.hooks import NO_HOOKS, StepContext
from tests.dense import base, normal

EXACT = 1e-10  # float64, sums of some hundred terms of order one
# What trains at each level, and what is left of it besides (the papers' own statements).
TRAINED = {
    "moslora": {"B", "M", "A"},
    "slora": {"B", "M", "A"},
    "nlora": {"B", "M", "A"},
    "inttune": {"M"},
    "lora_sb": {"M"},
    "lora_xs": {"M"},
    "pmss": {"M"},
    "nora": {"up", "down"},
    "lora_mini": {"up", "down"},
    "lamda": {"B", "M"},
    "loldu": {"M", "scale"},
}
LEVELS = tuple(TRAINED)
NOT_AT_BASE = {"lora_sb"}


@functools.cache
def tree(level: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(paths.conf_dir() / f"adapter/{level}.yaml"))


def settings(level: str, **changes) -> dict:
    """The configuration's arguments, but for the size."""
    row, options = ROWS[tree(level)["kind"]], tree(level)["options"] | changes
    found = row.arguments_at(1, {"any": (8, 8)}, options)
    return {name: value for name, value in found.items() if name != "r"}


def started(level: str, d: int, k: int, n: int, *, conv: bool = False, **changes) -> nn.Sequential:
    """One layer in float64 with a started adapter."""
    config = ThreeFactorConfig(r=n, **settings(level, **changes), target_modules=["0"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        model = peft.get_peft_model(nn.Sequential(base(d, k, conv=conv)), config)
    three_factor.start(model, Streams(0), {"0": normal(d, k, seed=9)})
    return model


def layer_of(model: nn.Module) -> ThreeFactorLinear:
    return next(layer for _, layer in three_factor.layers(model))


def factor(layer: ThreeFactorLinear, name: str, adapter: str = "default") -> Tensor:
    for role in ("factor", "fixed"):
        if adapter in getattr(layer, f"{role}_{name}"):
            return getattr(layer, f"{role}_{name}")[adapter].detach()
    raise KeyError(name)


def shaken(model: nn.Module) -> nn.Module:
    """The same model after every trained tensor moved by draws of order one."""
    for i, (_, p) in enumerate(trained(model).items()):
        p.data += normal(p.numel(), seed=20 + i).view(p.shape).to(p.dtype)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def assert_close(actual, expected, atol: float = EXACT) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=0, atol=atol)


def best(X: np.ndarray, n: int) -> np.ndarray:
    """The nearest matrix of rank n."""
    U, S, Vt = np.linalg.svd(X)
    return sum(S[i] * np.outer(U[:, i], Vt[i]) for i in range(n))


def begun(level: str, W: np.ndarray, n: int) -> np.ndarray | float:
    """What a level's change is at its start, before anything is taken out."""
    if level in ("nlora", "inttune"):
        return W[:, :n] @ W[:n, :n] @ W[:n]
    if level == "lamda":
        return best(W, n)
    if level == "loldu":
        P, L, U = scipy.linalg.lu(W)
        return P @ L[:, :n] @ U[:n]
    return 0.0


# --- tiny models

RANK = 4
ARCHITECTURES = ("llama", "gpt2")


@functools.cache
def _pristine(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if architecture == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
            return GPT2LMHeadModel(GPT2Config(vocab_size=60, initializer_range=0.1, **sizes)).eval()
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=60,
                hidden_size=32,
                intermediate_size=44,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=32,
                initializer_range=0.1,
            )
        ).eval()


def pristine(architecture: str) -> nn.Module:
    return copy.deepcopy(_pristine(architecture))


def shapes_of(architecture: str) -> dict[str, tuple[int, int]]:
    found = {}
    for name, module in _pristine(architecture).named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head":
            shape = tuple(module.weight.shape)
            found[name] = shape[::-1] if isinstance(module, Conv1D) else shape
    return found


def tokens() -> Tensor:
    return torch.randint(60, (4, 12), generator=torch.Generator().manual_seed(2))


@functools.cache
def gradients(architecture: str) -> dict[str, Tensor]:
    model = pristine(architecture)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    weights = {name: model.get_submodule(name).weight.grad for name in shapes_of(architecture)}
    return {n: g.T if architecture == "gpt2" else g for n, g in weights.items()}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=tokens()).logits


def adapted(level: str, architecture: str, *, seed: int = 0, **changes) -> nn.Module:
    row, options = ROWS[tree(level)["kind"]], tree(level)["options"] | changes
    arguments = row.arguments_at(RANK, shapes_of(architecture), options)
    config = ThreeFactorConfig(
        **arguments, target_modules=list(shapes_of(architecture)), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        model = peft.get_peft_model(pristine(architecture), config).eval()
    three_factor.start(model, Streams(seed), gradients(architecture))
    return model


def fit(model: nn.Module, steps: int = 3, hooks=NO_HOOKS, weight_decay: float = 0.0) -> list[float]:
    """Train for some steps and return the losses before each and after the last."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.01, weight_decay=weight_decay)
    losses = []
    for step in range(steps + 1):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        losses.append(loss.item())
        if step < steps:
            loss.backward()
            context = StepContext(step, steps, model, optimizer, types.SimpleNamespace(), 1.0, True)
            hooks.after_backward(context)
            optimizer.step()
            hooks.after_step(context)
            optimizer.zero_grad()
    return losses
