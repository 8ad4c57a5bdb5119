"""How adapters start: the levels of `init`, which are LoRA's, and the starts of methods themselves.

What PEFT does well is PEFT's: the decompositions of PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ and EVA.
What is drawn is drawn here, from one stream per module, so that the choice of targets does not move
the draws, and row by row, so that a seed's A at rank 4 is the first four rows of its A at rank 16.

Letters: D outputs, K inputs, R rank.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, initialize_lora_eva_weights
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Generator, Tensor, nn

from ablate.adapters.calibration import BATCHES, Calibration
from ablate.adapters.method import Options
from ablate.adapters.mora.remora import draw_rows
from ablate.adapters.three_factor import layer as three_factor
from ablate.adapters.three_factor import spec as rows
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.streams import Streams

ADAPTER = "default"  # the name that PEFT gives the adapter
EVA_PASSES = 50  # through the first batches, at most; EVA usually needs two


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a start may use."""

    streams: Streams
    calibration: Calibration
    options: Options = field(default_factory=dict)  # of the init


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start in three parts, each of which does nothing by default.

    settings: from the options, what PEFT's configuration is told.
    before: with the base model, before there is an adapter.
    after: with the adapter in place.
    quiet: how a warning of PEFT's begins that there is an answer to.
    """

    settings: Callable[[Options], dict[str, Any]] = lambda options: {}
    before: Callable[[nn.Module, PeftConfig, Ground], None] = lambda model, config, ground: None
    after: Callable[[nn.Module, Ground], None] = lambda module, ground: None
    quiet: str = ""


def layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the LoRA layers by their names in the base model."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name.removeprefix("base_model.model."), layer


# --- starts of methods


@torch.no_grad()
def _rows(module: nn.Module, ground: Ground) -> None:
    """Draw A from U(-1/sqrt(k), 1/sqrt(k)), PEFT's law, and leave B at zero."""
    for name, layer in layers(module):
        draw_rows(layer.lora_A[ADAPTER].weight, ground.streams.torch("init", "lora", name))


@torch.no_grad()
def _kasa(module: nn.Module, ground: Ground) -> None:
    """Draw A as LoRA's and the singular values from N(0, 1), as the paper's code."""
    _rows(module, ground)
    for name, layer in layers(module):
        generator = ground.streams.torch("init", "kasa", name)
        layer.lora_diag[ADAPTER].copy_(torch.randn(layer.r[ADAPTER], generator=generator))


@torch.no_grad()
def _adalora(module: nn.Module, ground: Ground) -> None:
    """Draw both factors from N(0, 0.02^2), as PEFT does; the singular values stay zero."""
    for name, layer in layers(module):
        assert isinstance(layer, AdaLoraLayer)
        generator = ground.streams.torch("init", "adalora", name)
        for A_K, B_D in zip(layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T, strict=True):
            A_K.copy_(_normal(len(A_K), 0.02, generator))
            B_D.copy_(_normal(len(B_D), 0.02, generator))


@torch.no_grad()
def _velora(module: nn.Module, ground: Ground) -> None:
    """Draw A as LoRA's; fix the projection at the mean input of the first batch.

    As the paper does it (arXiv 2405.17991, section 3.2); PEFT would take it from the first
    micro-batch, pads and all.
    """
    _rows(module, ground)
    found = dict(layers(module))
    means = ground.calibration.mean_inputs(list(found), 1)
    for name, layer in found.items():
        kept = layer.lora_velora_embed[ADAPTER]
        missing = layer.lora_velora_num_groups[ADAPTER] * len(kept) - len(means[name])
        groups = nn.functional.pad(means[name], (0, missing)).view(-1, len(kept))
        kept.copy_(nn.functional.normalize(groups.mean(0), dim=0))
        layer.lora_velora_initialized[ADAPTER] = True


def _three_factor(module: nn.Module, ground: Ground) -> None:
    three_factor.start(module, ground.streams)


def _from_gradient(module: nn.Module, ground: Ground) -> None:
    names = [name for name, _ in three_factor.layers(module)]
    three_factor.start(module, ground.streams, ground.calibration.gradients(names, BATCHES))


def _normal(size: int, deviation: float, generator: Generator) -> Tensor:
    return torch.empty(size).normal_(0.0, deviation, generator=generator)


_THREE_FACTOR = {**dict.fromkeys(rows.ROWS, _three_factor), "lora_sb": _from_gradient}

# A kind that is not here starts as PEFT draws it.
KINDS: Mapping[str, Callable[[nn.Module, Ground], None]] = {
    "lora": _rows,
    "relora": _rows,
    "alora": _rows,
    "velora": _velora,
    "kasa": _kasa,
    "adalora": _adalora,
    **_THREE_FACTOR,
}

# What a kind's configuration must be told of the data.
_LEARNT: Mapping[str, Callable[[Calibration], dict[str, Any]]] = {
    "alora": lambda calibration: {"alora_invocation_tokens": calibration.invocation()},
}


def learnt(kind: str, calibration: Calibration) -> dict[str, Any]:
    """Return what a kind's configuration is told of the data; to be kept beside its weights."""
    return _LEARNT[kind](calibration) if kind in _LEARNT else {}


# --- levels of init


@torch.no_grad()
def _gaussian(module: nn.Module, ground: Ground) -> None:
    """Draw A from N(0, 1/r^2), PEFT's law, and leave B at zero."""
    for name, layer in layers(module):
        generator = ground.streams.torch("init", "gaussian", name)
        for A_K in layer.lora_A[ADAPTER].weight:
            A_K.copy_(_normal(len(A_K), 1 / layer.r[ADAPTER], generator))


@torch.no_grad()
def _orthogonal(module: nn.Module, ground: Ground) -> None:
    """Let PEFT draw both factors, of orthogonal row spaces, so that B A = 0."""
    for name, layer in layers(module):
        factors = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        placed = [factor.weight for factor in factors]
        with ground.streams.global_torch("init", "orthogonal", name):
            layer.orthogonal_init(ADAPTER)
        for factor, weight in zip(factors, placed, strict=True):  # it makes new ones, on the CPU
            weight.copy_(factor.weight)
            factor.weight = weight


def _eva(module: nn.Module, ground: Ground) -> None:
    """Start A at the principal directions of each matrix's inputs.

    Only positions whose token carries weight in the loss are looked at, as the paper does with
    labels. Every matrix keeps its rank: with ranks moved between matrices the number of trained
    parameters would depend on the data, and no budget could be planned.

    Raises:
        UserError: the directions do not settle, or a batch has too few tokens for the rank.
    """
    steps = ground.calibration.batches(ground.options["batches"])
    batches = [
        {"input_ids": batch.ids_BL, "weighs": batch.num_BL > 0} for step in steps for batch in step
    ]
    rank = max(layer.r[ADAPTER] for _, layer in layers(module))
    fewest = min(int(batch["weighs"].sum()) for batch in batches)
    if fewest < 2 * rank:
        raise UserError(
            f"rank={rank}: init=eva needs {2 * rank} tokens that carry weight in a batch, one of "
            f"the first has {fewest}; raise train.batch_size"
        )
    initialize_lora_eva_weights(
        module,
        _Rounds(batches, EVA_PASSES),
        forward_fn=lambda model, batch: model(input_ids=batch["input_ids"], use_cache=False),
        prepare_model_inputs_fn=lambda batch, config: batch["weighs"].nonzero(),
        show_progress_bar=False,
    )


class _Rounds:
    """Batches again and again, but not for ever: PEFT goes on until nothing changes."""

    def __init__(self, batches: list[dict[str, Tensor]], passes: int) -> None:
        self.batches, self.passes = batches, passes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.passes):
            yield from self.batches
        raise UserError(
            f"init=eva: the directions do not settle in {self.passes} passes; raise "
            "init.options.batches or lower init.options.converged"
        )


def _corda(model: nn.Module, config: PeftConfig, ground: Ground) -> None:
    """Decompose weights in the directions of their inputs, row by row as PEFT needs it."""
    from peft.tuners.lora.corda import preprocess_corda  # needs attrs, which nothing else does

    def run() -> None:
        for ids_1L in ground.calibration.examples(ground.options["batches"]):
            model(input_ids=ids_1L, use_cache=False)

    training = model.training
    preprocess_corda(model, config, run_model=run)
    model.train(training)


def _lora_ga(model: nn.Module, config: PeftConfig, ground: Ground) -> None:
    """Decompose the gradient of the mean loss, which PEFT divides by the number of passes."""
    count = ground.options["batches"]
    passes = ground.calibration.passes(count)
    with warnings.catch_warnings():  # it counts passes by a hook, which fires all the same
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        preprocess_loraga(
            model, config, lambda: ground.calibration.backward(count, times=float(passes))
        )


def _loftq(module: nn.Module, ground: Ground) -> None:
    """Start at what 4-bit quantisation took from each weight, read anew from the model's files."""
    from peft import replace_lora_weights_loftq

    folder = Path(module.get_base_model().name_or_path)  # type: ignore[operator]
    replace_lora_weights_loftq(module, model_path=str(folder / "model.safetensors"))


def _pissa_settings(options: Options) -> dict[str, Any]:
    iterations = options["iterations"]
    return {"init_lora_weights": "pissa" if iterations is None else f"pissa_niter_{iterations}"}


def _eva_settings(options: Options) -> dict[str, Any]:
    config = EvaConfig(rho=1.0, tau=options["converged"])
    return {"init_lora_weights": "eva", "eva_config": config}


def _lora_ga_settings(options: Options) -> dict[str, Any]:
    config = LoraGAConfig(
        direction=options["direction"], scale=options["scale"], stable_gamma=options["gamma"]
    )
    return {"init_lora_weights": "lora_ga", "lora_ga_config": config}


def _corda_settings(options: Options) -> dict[str, Any]:
    return {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="ipm")}


def _named(name: str) -> Callable[[Options], dict[str, Any]]:
    return lambda options: {"init_lora_weights": name}


# `default` is not here: it is the method's own start.
INITS: Mapping[str, Start] = {
    "gaussian": Start(settings=_named("gaussian"), after=_gaussian),
    "orthogonal": Start(settings=_named("orthogonal"), after=_orthogonal),
    "pissa": Start(settings=_pissa_settings),
    "olora": Start(settings=_named("olora")),
    # Its advice would make the adapter on the meta device, to save what is small anyway.
    "eva": Start(settings=_eva_settings, after=_eva, quiet="lora with eva initialization used"),
    "corda": Start(settings=_corda_settings, before=_corda),
    "lora_ga": Start(settings=_lora_ga_settings, before=_lora_ga),
    "loftq": Start(after=_loftq),
}


def start_of(cell: Cell) -> Start:
    """Return how the cell's adapter starts."""
    if cell.init.kind in INITS:
        return INITS[cell.init.kind]
    own = KINDS.get(cell.adapter.kind)
    return Start(after=own) if own else Start()
