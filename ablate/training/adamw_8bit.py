"""AdamW with 8-bit moments (arXiv 2110.02861) and stochastic rounding of 16-bit weights.

A moment is stored as a code of 8 bits a number and a scale for every 256 of them, 2.03 bytes a
parameter for both. Codes stand for values whose relative distance is even over several decades
("dynamic tree quantisation"). Plain torch: on a CPU and on a GPU, without another library.

A weight in bfloat16 is updated in fp32 and rounded up or down at random with the probability that
makes its mean exact (arXiv 2010.06192), so that steps below its spacing add up without a fp32 copy:
6 bytes a trained parameter with the gradient.

Shapes: N numbers of a chunk, B blocks of `BLOCK` numbers.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ablate.config.schema import Train
from ablate.training.optim import adamw_settings, decay_groups, trainable

BLOCK = 256
SMALLEST = 4096  # tensors below this size keep their moments in fp32, as in the paper's code
CHUNK = 2**24  # numbers updated at once, a multiple of BLOCK: bounds the temporaries in fp32
DECADES = 7

# A moment of one parameter: `codes` and `scales_B`, or `exact_N` where it is small.
Moment = dict[str, Tensor]


def adamw_8bit(
    model: nn.Module, settings: Train, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return 8-bit AdamW over the trained parameters; `seed` of the options seeds its rounding."""
    groups = decay_groups(trainable(model), settings.weight_decay)
    return AdamW8bit(groups, seed=options["seed"], **adamw_settings(settings))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments are stored in 8 bits; weights in bfloat16 are rounded stochastically."""

    rounds_stochastically = True

    def __init__(self, params: Any, *, seed: int, **settings: Any) -> None:
        """Make the optimizer of parameter groups that hold `weight_decay`.

        Args:
            params: the groups.
            seed: of the rounding; the same on all processes, whose weights must stay the same.
            settings: lr, betas and eps.
        """
        super().__init__(params, settings)
        self.seed = seed
        self._generators: dict[torch.device, Generator] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["moments"] = (_zero(parameter, signed=True), _zero(parameter, signed=False))
            parameter.data = parameter.data.contiguous()
        state["step"] += 1
        number = int(state["step"])
        generator = self._generator(parameter.device)
        value_N, gradient_N = parameter.detach().view(-1), gradient.reshape(-1)
        for start in range(0, len(value_N), CHUNK):
            part = slice(start, min(start + CHUNK, len(value_N)))
            new_N = _updated(
                value_N[part].float(), gradient_N[part].float(), state["moments"], part,
                number=number, group=group,
            )  # fmt: skip
            rounds = parameter.dtype == torch.bfloat16
            value_N[part] = stochastically_rounded(new_N, generator) if rounds else new_N

    @property
    def draws(self) -> list[Generator]:
        """The generators of its rounding, one for each device that holds weights."""
        every = (p.device for group in self.param_groups for p in group["params"])
        return [self._generator(device) for device in dict.fromkeys(every)]

    def _generator(self, device: torch.device) -> Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


def _updated(
    value_N: Tensor,
    gradient_N: Tensor,
    moments: tuple[Moment, Moment],
    part: slice,
    *,
    number: int,
    group: Mapping[str, Any],
) -> Tensor:
    """Return the weights after AdamW's step `number` (from 1); the moments are updated."""
    (one, two), rate = group["betas"], group["lr"]
    first, second = moments
    first_N = _read(first, part, signed=True).lerp_(gradient_N, 1 - one)
    second_N = _read(second, part, signed=False).mul_(two)
    second_N.addcmul_(gradient_N, gradient_N, value=1 - two)
    _write(first, part, first_N, signed=True)
    _write(second, part, second_N, signed=False)
    divisor_N = second_N.sqrt_().div_(math.sqrt(1 - two**number)).add_(group["eps"])
    value_N = value_N * (1 - rate * group["weight_decay"])
    return value_N.addcdiv_(first_N, divisor_N, value=-rate / (1 - one**number))


def _zero(parameter: Tensor, *, signed: bool) -> Moment:
    """Return a moment of zero, in 8 bits where the parameter is large enough."""
    size, device = parameter.numel(), parameter.device
    if size < SMALLEST:
        return {"exact_N": torch.zeros(size, device=device)}
    shape, zero = (-(-size // BLOCK), BLOCK), code_of_zero(signed)
    codes = torch.full(shape, zero, dtype=torch.uint8, device=device)
    return {"codes": codes, "scales_B": torch.zeros(shape[0], device=device)}


def _read(moment: Moment, part: slice, *, signed: bool) -> Tensor:
    """Return the numbers of a part that begins with a block, as a new tensor in fp32."""
    if "exact_N" in moment:
        return moment["exact_N"][part].clone()
    blocks = _blocks(part)
    values = dequantised(moment["codes"][blocks], moment["scales_B"][blocks], signed=signed)
    return values.view(-1)[: part.stop - part.start]


def _write(moment: Moment, part: slice, values_N: Tensor, *, signed: bool) -> None:
    """Store the numbers of a part that begins with a block."""
    if "exact_N" in moment:
        moment["exact_N"][part] = values_N
        return
    blocks = _blocks(part)
    moment["codes"][blocks], moment["scales_B"][blocks] = quantised(values_N, signed=signed)


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


def quantised(values_N: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the codes (B, BLOCK) and the scales (B,) of numbers; the last block is filled up."""
    missing = -len(values_N) % BLOCK
    filled_N = nn.functional.pad(values_N, (0, missing)) if missing else values_N
    blocks = filled_N.view(-1, BLOCK)
    scales_B = blocks.abs().amax(1)
    unit = blocks / scales_B.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    middles = _middles(signed, values_N.device)
    return torch.bucketize(unit, middles, out_int32=True).to(torch.uint8), scales_B


def dequantised(codes: Tensor, scales_B: Tensor, *, signed: bool) -> Tensor:
    """Return the numbers (B, BLOCK) that codes and scales stand for."""
    values: Tensor = _values_on(signed, codes.device)[codes.int()]
    return values.mul_(scales_B[:, None])


def code_values(signed: bool) -> list[float]:
    """Return what the 256 codes stand for, ascending: 0, 1 and the middles of intervals.

    A decade below 1 has half as many intervals as the one above it, of equal width; 64 of either
    sign in the highest of `DECADES`, or 128 without a sign (arXiv 2110.02861, section 2.3).
    """
    values = [0.0, 1.0]
    for decade in range(DECADES):
        intervals = 2**decade if signed else 2 ** (decade + 1)
        width, top = 0.9 / intervals, 10.0 ** (decade - DECADES + 1)
        middles = [top * (0.1 + width * (i + 0.5)) for i in range(intervals)]
        values += middles + [-middle for middle in middles if signed]
    return sorted(values)


def code_of_zero(signed: bool) -> int:
    """Return the code that stands for 0."""
    return code_values(signed).index(0.0)


@functools.lru_cache(maxsize=8)
def _values_on(signed: bool, device: torch.device) -> Tensor:
    return torch.tensor(code_values(signed), device=device)


@functools.lru_cache(maxsize=8)
def _middles(signed: bool, device: torch.device) -> Tensor:
    values = torch.tensor(code_values(signed), dtype=torch.float64)
    return ((values[1:] + values[:-1]) / 2).to(device, torch.float32)


def stochastically_rounded(values: Tensor, generator: Generator) -> Tensor:
    """Return fp32 numbers in bfloat16, up or down at random so that the mean is exact.

    The lower 16 bits of a number are its part between two neighbours in bfloat16: a random number
    of 16 bits is added to them, and what is left of them is cut off.
    """
    noise = torch.randint(
        2**16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits = values.contiguous().view(torch.int32).add(noise).bitwise_and_(-(2**16))
    return bits.view(torch.float32).to(torch.bfloat16)
