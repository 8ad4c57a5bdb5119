"""Every level of the factors around an adapter on a tiny Llama and a tiny GPT-2, trained once.

A level joins by being a file in conf/adapter, conf/init or conf/optimizer. What the tests of
tests/unit/test_adapters.py and tests/slow/test_levels.py ask about it is measured here, in one go:
a level is built and trained once per architecture.
"""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ablate import paths
from ablate.adapters import build, compatibility, hooks, optimizers, registry
from ablate.config import schema
from ablate.errors import UserError
from ablate.objective import objective_of
from ablate.roles import Role
from ablate.streams import Streams
from ablate.training.hooks import Hooks, StepContext, combine
from ablate.training.loop import train
from ablate.training.optim import trainable
from tests import toys
from tests.reference import Example

torch.set_num_threads(1)  # models so small lose more by sharing the work than they gain

RANK = 4
STEPS = 16  # the first restart, pruning or freezing of every level is among them
LOOK = 3  # steps within which every trained tensor must have changed, and before any event


def files(group: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (paths.conf_dir() / group).glob("*.yaml")))


LEVELS = files("adapter")
ADAPTING = tuple(n for n in LEVELS if n not in ("none", "full"))
ARCHITECTURES = ("llama", "gpt2", "llama_tied")
NAMES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "llama_tied": "LlamaForCausalLM"}


def read(group: str, level: str) -> dict[str, Any]:
    made = OmegaConf.to_container(OmegaConf.load(paths.conf_dir() / group / f"{level}.yaml"))
    return {"options": {}, **made}


def adapter(level: str, **changes: Any) -> schema.Adapter:
    tree = read("adapter", level)
    options = tree["options"] | changes.pop("options", {})
    return schema.Adapter(**(tree | {"options": options} | changes))


def cell(level: Any, **changes: Any) -> schema.Cell:
    """A cell of an adapter level, or of an `Adapter`; `changes` are settings of the cell."""
    chosen = level if isinstance(level, schema.Adapter) else adapter(level)
    weights = {role: 1.0 for role in schema.MASKED_ROLES}
    settings: dict[str, Any] = {
        "masking": schema.Masking(name="none", weights=weights),
        "plw": 1.0,
        "loss": schema.Loss(),
        "adapter": chosen,
        "rank": RANK,
        "dataset": schema.Dataset(name="d", source="local", path="x"),
        "model": schema.Model(name="m", source="local", path="x"),
        "train": toys.train_settings(
            batch_size=7, max_steps=STEPS, schedule="constant", clip=None, lr=0.01
        ),
        "evaluate": schema.Evaluate(name="e"),
        "execution": toys.execution(),
    }
    return schema.Cell(**settings | changes)


# --- which cells there are


def _with(level: str, group: str) -> schema.Cell:
    """A cell of a level of init or optimizer, with the first adapter that carries it out."""
    made = {"init": schema.Init, "optimizer": schema.Optimizer}[group](**read(group, level))
    legal = {"init": lambda row: row.inits, "optimizer": lambda row: row.optimizers}[group]
    host = next(n for n in ("lora", *ADAPTING) if made.kind in legal(registry.method(adapter(n))))
    return cell(host, **{group: made})


def subjects() -> dict[str, schema.Cell]:
    """Every level once: adapters as they are, each other init and optimizer on one adapter."""
    found = {level: cell(level) for level in LEVELS}
    for group, plain in (("init", "default"), ("optimizer", "adamw")):
        others = [level for level in files(group) if level != plain]
        found |= {f"{group}={level}": _with(level, group) for level in others}
    return found


SUBJECTS = subjects()
STILL = ("none", "init=both_zero")  # the base itself, and factors that never have a gradient


def applies(name: str, architecture: str) -> bool:
    shapes = build.linear_shapes(pristine(architecture))
    try:
        compatibility.check(SUBJECTS[name], architecture=NAMES[architecture], shapes=shapes)
        registry.check(SUBJECTS[name], shapes)
    except UserError:
        return False
    return True


def cases(*architectures: str, among: tuple[str, ...] = tuple(SUBJECTS)) -> list[tuple[str, str]]:
    return [(name, a) for a in architectures for name in among if applies(name, a)]


# --- models and data

HEADING = 36  # the token right before every answer, by which aLoRA is invoked


def headed(example: Example) -> Example:
    """Return an example whose last token before the answer is HEADING."""
    ids, roles = list(example[0]), example[1]
    ids[roles.index(Role.COMPLETION) - 1] = HEADING
    return ids, roles


DATA = toys.tokenised([headed(example) for example in toys.examples()])


@functools.cache
def pristine(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if architecture == "gpt2":
            ends = {"bos_token_id": None, "eos_token_id": None}
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
            settings = GPT2Config(vocab_size=toys.VOCAB, initializer_range=0.1, **ends, **sizes)
            return GPT2LMHeadModel(settings).eval()
        shape = {
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
            "tie_word_embeddings": architecture == "llama_tied",
        }
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=toys.VOCAB, num_hidden_layers=2, num_key_value_heads=2, **shape)
        ).eval()


def base(architecture: str) -> nn.Module:
    """A random model, the same at every call."""
    return copy.deepcopy(pristine(architecture))


def tokens() -> Tensor:
    ids = torch.randint(toys.VOCAB, (4, 12), generator=torch.Generator().manual_seed(2))
    ids[:, 1] = HEADING
    return ids


@torch.no_grad()
def logits(module: nn.Module) -> Tensor:
    """The predictions for `tokens`, whatever virtual tokens stand before them."""
    return module(input_ids=tokens()).logits[:, -tokens().shape[1] :]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def applied(asked: schema.Cell, architecture: str = "llama") -> nn.Module:
    return build.apply(base(architecture), asked, streams=Streams(asked.seed), data=DATA)


@dataclasses.dataclass(frozen=True)
class LiveSizes:
    """Counts taken from a model in memory, where the planner takes them from its files."""

    linear_shapes: dict[str, tuple[int, int]]
    parameters: int
    embedding_parameters: int
    norm_parameters: int


def sizes(architecture: str) -> LiveSizes:
    model = pristine(architecture)
    norms = [model.get_submodule(name) for name in build.norms(model)]
    return LiveSizes(
        linear_shapes=build.linear_shapes(model),
        parameters=sum(p.numel() for p in model.parameters()),
        embedding_parameters=sum(p.numel() for p in build.end_parameters(model)),
        norm_parameters=sum(p.numel() for norm in norms for p in norm.parameters()),
    )


# --- runs


def fit(
    module: nn.Module,
    asked: schema.Cell,
    tick: Callable[[int, int], None] | None = None,
    *,
    still: bool = False,
) -> list[float]:
    """Train in the loop of every cell, on all rows at each step, and return the losses.

    With `still` every gradient is zero, so that weight decay alone acts.
    """
    own = hooks.hooks(asked, streams=Streams(asked.seed))
    course = train(
        module,
        DATA,
        asked.train,
        objective=objective_of(asked),
        streams=Streams(asked.seed),
        execution=asked.execution,
        hooks=combine(Hooks(after_backward=_forget), own) if still else own,
        make_optimizer=optimizers.maker(asked.optimizer),
        tick=tick,
    )
    return [float(entry["loss"]) for entry in course.history]


def _forget(context: StepContext) -> None:
    for parameter in trainable(context.model):
        if parameter.grad is not None:
            parameter.grad.zero_()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What was seen of one level on one architecture."""

    module: nn.Module  # trained
    declared: set[str]  # what requires a gradient, before the first step
    counted: int  # its size
    moved: set[str]  # what changed within `LOOK` steps
    base: Tensor
    start: Tensor
    tuned: Tensor
    losses: list[float]


@functools.cache
def run(name: str, architecture: str) -> Run:
    asked = SUBJECTS[name]
    module = applied(asked, architecture)
    trained, before, start = build.trained(module), weights(module), logits(module)
    moved: set[str] = set()
    done = 0

    def look(step: int, steps: int) -> None:
        nonlocal done
        done += 1
        if done <= LOOK:
            now = weights(module)
            moved.update(n for n, w in before.items() if not torch.equal(w, now[n]))

    return Run(
        losses=fit(module, asked, look) if trained else [],
        module=module,
        declared=set(trained),
        counted=sum(before[n].numel() for n in trained),
        moved=moved,
        base=logits(pristine(architecture)),
        start=start,
        tuned=logits(module),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undone:
    """The outputs of a trained level with its adapter off, folded in, and taken out again."""

    disabled: Tensor
    merged: Tensor
    unmerged: Tensor
    unloaded: Tensor
    leftover: int  # adapter layers in the model after all was folded in for good


def undone(module: nn.Module) -> Undone:
    """Return what becomes of a copy of `module`, a PEFT model that can be merged."""
    module = copy.deepcopy(module)
    with module.disable_adapter():
        disabled = logits(module)
    module.merge_adapter(safe_merge=True)
    merged = logits(module)
    with warnings.catch_warnings():  # divides by a scale, for which PEFT warns
        warnings.filterwarnings("ignore", message="Unmerge result can be inaccurate")
        module.unmerge_adapter()
    unmerged, unloaded = logits(module), module.merge_and_unload()
    left = [m for m in unloaded.modules() if hasattr(m, "merged_adapters")]
    return Undone(
        disabled=disabled,
        merged=merged,
        unmerged=unmerged,
        unloaded=logits(unloaded),
        leftover=len(left),
    )
