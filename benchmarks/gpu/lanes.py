"""Cells trained side by side in one process against the same cells one after another.

python -m benchmarks.gpu.lanes [--device cpu --tiny]

Each cell has its own PLW and learning rate. One after another: one cell is trained and its time
taken times their number, its model built before. Scoring: `benchmarks.gpu.lanes_scored`.
"""

import gc
import itertools
import time
from typing import Any

import torch

from ablate.adapters.lora.lanes import kind
from ablate.config.schema import Execution, Train
from ablate.streams import Streams
from ablate.training import loop
from ablate.training.lanes import loop as lanes
from ablate.training.lanes.stack import shell
from benchmarks.gpu import common

WARM = 2  # steps that are not timed, in a run of their own
CASES = (  # shape, cells, rows a step, steps, precision of the base, whether blocks are recomputed
    ("1b", 4, 4, 10, "bf16", False),
    ("1b", 8, 4, 10, "bf16", False),
    ("1b", 16, 4, 10, "bf16", False),
    ("1b", 16, 4, 10, "bf16", True),
    ("micro", 64, 16, 10, "fp32", False),
)
CPU_CASES = (("micro", 16, 16, 10, "fp32", False),)  # in processor time: other processes may run
TINY = (("tiny", 4, 4, 3, "fp32", False), ("tiny", 8, 4, 3, "fp32", True))


def cells(count: int, *, steps: int, batch: int, precision: str) -> list[tuple[Train, Any]]:
    """Return the settings and the objective of each cell."""
    grid = itertools.islice(itertools.product((1e-4, 2e-4, 5e-4, 1e-3), range(16)), count)
    return [
        (
            Train(name="bench", lr=lr, max_steps=steps, batch_size=batch, precision=precision),
            common.objective(number / 15),
        )
        for lr, number in grid
    ]


def main() -> None:
    """Measure every case."""
    options = common.arguments(__doc__).parse_args()
    device = torch.device(options.device)
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    chosen_cases = TINY if options.tiny else CPU_CASES if on_cpu else CASES
    for shape, count, batch, steps, precision, recomputed in chosen_cases:
        execution = Execution(
            device=options.device, layout="auto" if on_cpu else "padded",
            gradient_checkpointing=recomputed,
        )  # fmt: skip
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        base = common.llama(shape, device, dtype).requires_grad_(False)
        data = common.rows(512, common.SHAPES[shape]["vocab_size"], longest=512)
        found: dict[str, Any] = {}
        for way, number in (("alone", 1), ("lanes", count)):
            for length in (WARM, steps):
                chosen = cells(number, steps=length, batch=batch, precision=precision)
                models = [common.with_lora(shell(base)) for _ in chosen]
                common.peak_gib(device)
                common.synchronize(device)
                started = clock()
                if way == "alone":
                    [(settings, loss)] = chosen
                    course = loop.train(
                        models[0], data, settings, objective=loss, streams=Streams(0),
                        execution=execution,
                    )  # fmt: skip
                else:
                    every = [
                        lanes.Lane(model, kind, data, settings, loss, Streams(0))
                        for model, (settings, loss) in zip(models, chosen, strict=True)
                    ]
                    [course, *_] = lanes.train(base, every, execution=execution)
                common.synchronize(device)
                found[way] = clock() - started
                found[f"{way}_gib"] = common.peak_gib(device)
                found[f"{way}_losses"] = [round(float(e["loss"] or 0), 4) for e in course.history]
                del models
                gc.collect()
        common.report(
            options.out, device, f"lanes {shape} x {count}", shape=shape, cells=count, rows=batch,
            steps=steps, base=precision, recomputed=recomputed, seconds_a_cell_alone=found["alone"],
            seconds_a_cell_in_lanes=found["lanes"] / count,
            times_the_cells_an_hour=found["alone"] * count / found["lanes"],
            gib_alone=found["alone_gib"], gib_lanes=found["lanes_gib"],
            losses=[found["alone_losses"][-1], found["lanes_losses"][-1]],
        )  # fmt: skip
        del base
        gc.collect()


if __name__ == "__main__":
    main()
