"""The levels of the factor `init`: initialisations of LoRA's two factors.

The decompositions of PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ and EVA are PEFT's. What is drawn is drawn
from one stream per module, row by row (`lora.starts`).

Letters: D outputs, K inputs, r rank.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn

from ablate.adapters.init.calibration import without_logits
from ablate.adapters.init.context import InitContext, InitSteps
from ablate.adapters.lora.starts import ADAPTER, draw_A, draw_rows, layers, normal
from ablate.adapters.options import Options
from ablate.errors import UserError

EVA_PASSES = 50  # upper limit of the passes over the first batches; EVA usually needs two


@torch.no_grad()
def _gaussian(module: nn.Module, context: InitContext) -> None:
    """Draw A from N(0, 1/r^2), PEFT's "gaussian", and leave B at zero."""
    for name, layer in layers(module):
        generator = context.streams.torch("init", "gaussian", name)
        for A_K in layer.lora_A[ADAPTER].weight:
            A_K.copy_(normal(len(A_K), 1 / layer.r[ADAPTER], generator))


@torch.no_grad()
def _orthogonal(module: nn.Module, context: InitContext) -> None:
    """Let PEFT draw both factors with orthogonal row spaces, so that B A = 0."""
    for name, layer in layers(module):
        factors = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        weights = [factor.weight for factor in factors]
        with context.streams.global_torch("init", "orthogonal", name):
            layer.orthogonal_init(ADAPTER)
        # PEFT replaces both parameters by new ones on the CPU: keep ours, with the new values.
        for factor, weight in zip(factors, weights, strict=True):
            weight.copy_(factor.weight)
            factor.weight = weight


@torch.no_grad()
def _milora(module: nn.Module, context: InitContext) -> None:
    """Set the factors to the smallest singular triples of W (MiLoRA, arXiv 2406.09044).

    As in PiSSA, both factors have the square roots of the singular values, and the product is
    subtracted from the base's weights.
    """
    for _, layer in layers(module):
        weight = layer.get_base_layer().weight
        W_DK = weight.T if layer.fan_in_fan_out else weight
        U, S, Vh = torch.linalg.svd(W_DK.float(), full_matrices=False)
        rank = layer.r[ADAPTER]
        root_r = (S[-rank:] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_B[ADAPTER].weight.copy_(U[:, -rank:] * root_r)
        layer.lora_A[ADAPTER].weight.copy_(root_r[:, None] * Vh[-rank:])


@torch.no_grad()
def _both_random(module: nn.Module, context: InitContext) -> None:
    """Draw A as LoRA does and B from U(-1/sqrt(d), 1/sqrt(d)) (arXiv 2505.23194)."""
    draw_A(module, context)
    for name, layer in layers(module):
        generator = context.streams.torch("init", "both_random", name)
        draw_rows(layer.lora_B[ADAPTER].weight.T, generator)


@torch.no_grad()
def _both_zero(module: nn.Module, context: InitContext) -> None:
    """Set both factors to zero: the gradient of each is a product with the other one."""
    for _, layer in layers(module):
        layer.lora_A[ADAPTER].weight.zero_()
        layer.lora_B[ADAPTER].weight.zero_()


def _eva(module: nn.Module, context: InitContext) -> None:
    """Set A to the principal directions of each matrix's inputs (EVA, arXiv 2410.07170).

    Only positions whose token has a weight in the loss are used, as the paper uses those with a
    label. Every matrix keeps its rank: if ranks moved between matrices, the number of trained
    parameters would depend on the data, and no budget could be planned.

    Raises:
        UserError: the directions do not converge, or a batch has too few tokens for the rank.
    """
    steps = context.calibration.batches(context.options["batches"])
    batches = [
        {"input_ids": batch.ids_BL, "has_weight": batch.num_BL > 0}
        for step in steps
        for batch in step
    ]
    rank = max(layer.r[ADAPTER] for _, layer in layers(module))
    fewest = min(int(batch["has_weight"].sum()) for batch in batches)
    if fewest < 2 * rank:
        raise UserError(
            f"rank={rank}: init=eva needs {2 * rank} tokens with a loss weight in each batch, "
            f"one of the first has {fewest}; raise train.batch_size"
        )
    with without_logits(module):
        initialize_lora_eva_weights(
            module,
            _Repeated(batches, EVA_PASSES),
            forward_fn=lambda model, batch: model(input_ids=batch["input_ids"], use_cache=False),
            prepare_model_inputs_fn=lambda batch, config: batch["has_weight"].nonzero(),
            show_progress_bar=False,
        )


class _Repeated:
    """Batches repeated up to a limit: PEFT iterates until the directions no longer change."""

    def __init__(self, batches: list[dict[str, Tensor]], passes: int) -> None:
        self.batches, self.passes = batches, passes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.passes):
            yield from self.batches
        raise UserError(
            f"init=eva: the directions do not converge in {self.passes} passes; raise "
            "init.options.batches or lower init.options.converged"
        )


def _corda(model: nn.Module, config: PeftConfig, context: InitContext) -> None:
    """Decompose weights times their inputs' covariance (CorDA, arXiv 2406.05223).

    PEFT's hooks expect one unpadded example per forward pass.
    """
    from peft.tuners.lora.corda import preprocess_corda  # imports attrs, needed nowhere else

    def run() -> None:
        with without_logits(model):
            for ids_1L in context.calibration.examples(context.options["batches"]):
                model(input_ids=ids_1L, use_cache=False)

    training = model.training
    preprocess_corda(model, config, run_model=run)
    model.train(training)


def _lora_ga(model: nn.Module, config: PeftConfig, context: InitContext) -> None:
    """Decompose the gradient of the mean loss (LoRA-GA, arXiv 2407.05000).

    PEFT divides the accumulated gradient by the number of forward passes, so the loss is multiplied
    by that number first.
    """
    count = context.options["batches"]
    passes = context.calibration.passes(count)
    with warnings.catch_warnings():  # PEFT counts passes by a hook; the count is right regardless
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        preprocess_loraga(
            model, config, lambda: context.calibration.backward(count, times=float(passes))
        )


def _loftq(module: nn.Module, context: InitContext) -> None:
    """Set scale * B A to the 4-bit quantisation error of each weight (LoftQ, arXiv 2310.08659).

    The exact weights are read again from the model's files. PEFT sets B A to the error whatever the
    scale is, and at a scale of 2 the error is turned round instead of made up for.
    """
    from peft import replace_lora_weights_loftq

    folder = Path(module.get_base_model().name_or_path)  # type: ignore[operator]
    replace_lora_weights_loftq(module, model_path=str(folder / "model.safetensors"))
    for _, layer in layers(module):
        for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            factor.weight.data /= layer.scaling[ADAPTER] ** 0.5


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


GAUSSIAN = InitSteps(settings=_named("gaussian"), after=_gaussian)
ORTHOGONAL = InitSteps(settings=_named("orthogonal"), after=_orthogonal)
PISSA = InitSteps(settings=_pissa_settings)
OLORA = InitSteps(settings=_named("olora"))
# PEFT recommends to create the adapter on the meta device, to save memory; here it is small.
EVA = InitSteps(settings=_eva_settings, after=_eva, quiet="lora with eva initialization used")
CORDA = InitSteps(settings=_corda_settings, before=_corda)
LORA_GA = InitSteps(settings=_lora_ga_settings, before=_lora_ga)
LOFTQ = InitSteps(after=_loftq)
MILORA = InitSteps(after=_milora)
BOTH_RANDOM = InitSteps(after=_both_random)
BOTH_ZERO = InitSteps(after=_both_zero)
