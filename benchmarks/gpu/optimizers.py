"""Time and memory of one step of every optimizer on bf16 weights, and of AdamW on the CPU.

python -m benchmarks.gpu.optimizers [--device cpu --tiny]
"""

from typing import Any

import torch
from torch import nn

from ablate.adapters.optimizers import OPTIMIZERS, maker
from ablate.config.schema import Optimizer, Train
from ablate.errors import UserError
from ablate.training.optim import optimizer
from benchmarks.gpu.common import arguments, report, seconds

SETTINGS = Train(name="benchmark", lr=1e-5)
KINDS = ("adamw", "adamw_8bit", "adafactor", "adamw_bnb_8bit", "paged_adamw", "paged_adamw_8bit")
MATRIX, SMALL = (4096, 11008), (64, 256)
COUNT = 12  # matrices: half a billion parameters of the large shape


def main() -> None:
    """Print one line an optimizer, the last one with masters and moments on the CPU."""
    options = arguments(__doc__).parse_args()
    device = torch.device(options.device)
    shape, count = (SMALL, 2) if options.tiny else (MATRIX, COUNT)
    for kind, offload in [*((kind, False) for kind in KINDS), ("adamw", True)]:
        try:
            figures = measured(kind, device, shape, count, offload=offload)
        except (UserError, ImportError) as error:
            figures = {"skipped": str(error)}
        name = f"optimizer step, {kind}" + (", offloaded" if offload else "")
        report(options.out, device, name, matrices=count, shape=list(shape), **figures)


def measured(
    kind: str, device: torch.device, shape: tuple[int, int], count: int, *, offload: bool
) -> dict[str, Any]:
    """Return seconds of a step and bytes a parameter: weights, gradients, masters and moments."""
    model = nn.ModuleList(
        nn.Linear(*shape, bias=False, device=device, dtype=torch.bfloat16) for _ in range(count)
    )
    parameters = sum(p.numel() for p in model.parameters())
    made = optimizer(model, SETTINGS, maker(Optimizer(name=kind, kind=kind), offload=offload))
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    figures = {"seconds": seconds(device, made.step), "parameters": parameters}
    figures["state_by_row"] = OPTIMIZERS[kind].state
    if device.type == "cuda":
        figures["bytes_per_parameter"] = torch.cuda.memory_allocated() / parameters
        torch.cuda.reset_peak_memory_stats()
        made.step()
        figures["peak_bytes_per_parameter"] = torch.cuda.max_memory_allocated() / parameters
    return figures


if __name__ == "__main__":
    main()
