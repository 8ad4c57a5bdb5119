"""Where the time of a cell of the quick study goes: seconds of processor by part.

    python benchmarks/quick_profile.py [--datasets micro] [--small] [--out FILE]

Carries out the untouched base and {micro, micro_short} x {full, lora, mora} at PLW 0.1 in one
process, as a worker of a sweep does. What the base takes is what a worker does once: its benchmarks
are built and its texts tokenised; the other six are the cells. A part is the time of its functions
without that of other parts that they call. `PYTHONPATH` of another checkout profiles that one: a
function that it does not have under the same name is left out, and counts as its caller's.
"""

import argparse
import contextlib
import functools
import importlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = ["masking=none", "plw=0.1", "adapter=full,lora,mora", "rank=8", "seed=0"]
SMALL = ["train.max_steps=2", "evaluate.limit=4", "evaluate.heldout_rows=4"]
TRAINING, FORWARD = "training", "forward passes of scoring"
# Each function where it is called from: "module:name".
PARTS = {
    "settings and identity": ["ablate.run:identify"],
    "data": ["ablate.run:tokenised", "ablate.evaluate.scoring:tokenised"],
    "benchmarks' requests": ["ablate.run:ready"],
    "model and adapter": ["ablate.run:load", "ablate.adapters.build:apply"],
    TRAINING: ["ablate.run:train"],
    FORWARD: [
        "transformers.models.llama.modeling_llama:LlamaModel.forward",
        "transformers.models.llama.modeling_llama:LlamaForCausalLM.forward",
        "ablate.evaluate.choices:likelihoods",
        "ablate.evaluate.choices:_logits",
        "ablate.evaluate.heldout:likelihoods",
    ],
    "benchmarks: around the passes": [
        "ablate.evaluate.live:LiveLM.loglikelihood",
        "ablate.evaluate.live:LiveLM.generate_until",
    ],
    "benchmarks: metrics": ["ablate.evaluate.harness:score"],
    "held-out losses": ["ablate.evaluate.heldout:score"],
    "measures": ["ablate.evaluate.measures:measure"],
    "record": [
        "ablate.recording:unscored",
        "ablate.recording:write_trained",
        "ablate.recording:with_scores",
        "ablate.recording:write",
        "ablate.run:_write_weights",
        "ablate.run:_drop_large",
        "ablate.results.store:Store.keep_trained",
        "ablate.run:_record",
        "ablate.run:_entries",
        "ablate.run:_write",
        "ablate.run:_keep",
    ],
}


class Spent:
    """Seconds of processor by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open, self._marked = ["the rest"], time.process_time()

    def mark(self) -> None:
        """Count the time since the last mark as that of the innermost open part."""
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._marked
        self._marked = now

    def take(self) -> dict[str, float]:
        """Return what was counted and begin again."""
        self.mark()
        found, self.seconds = dict(self.seconds), defaultdict(float)
        return found

    def counted(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return `run` whose time counts as `part`; what training calls counts as training."""

        @functools.wraps(run)
        def counting(*given: Any, **named: Any) -> Any:
            if self._open[-1] == TRAINING:
                return run(*given, **named)
            self.mark()
            self._open.append(part)
            try:
                return run(*given, **named)
            finally:
                self.mark()
                self._open.pop()

        return counting


def patch(spent: Spent) -> None:
    """Count the time of all functions of `PARTS`."""
    for part, names in PARTS.items():
        for name in names:
            module, _, path = name.partition(":")
            *owners, last = path.split(".")
            try:
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
            except ModuleNotFoundError:
                continue
            if hasattr(owner, last):
                setattr(owner, last, spent.counted(part, getattr(owner, last)))


def main() -> None:
    """Print the seconds of every part as lines of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", default=["micro", "micro_short"])
    parser.add_argument("--small", action="store_true", help="very small cells, to try the code")
    parser.add_argument("--out", type=Path, help="append the lines to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        further = SMALL if given.small else ["evaluate.limit=500"]
        lines = profiled(Path(place), [f"dataset={','.join(given.datasets)}", *further])
    for line in lines:
        print(json.dumps(line))
    if given.out:
        with given.out.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)


def profiled(out: Path, further: list[str]) -> list[dict[str, Any]]:
    """Return the parts of what is done once, of each cell and of their mean."""
    spent = Spent()
    from ablate.experiment.request import plan_grid

    start = spent.take()
    design = plan_grid([*WORDS, *further, f"out={out}"]).design
    planned = spent.take()
    import torch  # noqa: F401
    import transformers  # noqa: F401
    import peft  # noqa: F401  # isort: skip

    libraries = spent.take()
    from ablate.results.store import Store
    from ablate.run import run_cells

    patch(spent)
    own = spent.take()
    store, found = Store(out), []
    store.prepare()
    order = sorted(design.runs.items(), key=lambda run: not run[1][0].cell.is_base)
    for key, names in order:
        run_cells([named.cell for named in names], key, store)
        found.append((names[0].cell, spent.take()))
    once = {
        "start and planning": sum(start.values()) + sum(planned.values()),
        "imports: torch, transformers, peft": sum(libraries.values()),
        "imports: the rest": sum(own.values()),
        **{f"untouched base: {part}": value for part, value in found[0][1].items()},
        **concluded(out, spent, [*design.runs]),
    }
    cells = [
        {"cell": f"{cell.dataset.name} {cell.adapter.name}", **rounded(parts)}
        for cell, parts in found[1:]
    ]
    mean = {part: sum(parts.get(part, 0.0) for _, parts in found[1:]) / len(cells)
            for part in [*PARTS, "the rest"]}  # fmt: skip
    overhead = sum(value for part, value in mean.items() if part not in (TRAINING, FORWARD))
    return [
        {"once": rounded(once)},
        *cells,
        {"mean of the cells": rounded(mean), "all": round(sum(mean.values()), 3),
         "outside training and forward passes": round(overhead, 3)},
    ]  # fmt: skip


def concluded(out: Path, spent: Spent, keys: list[str]) -> dict[str, float]:
    """Return what the table and the report of these cells take."""
    from ablate.experiment.design import collect

    collect(out)
    table = sum(spent.take().values())
    from analysis.errors import AnalysisError
    from analysis.report.build import build

    with contextlib.suppress(AnalysisError):  # few cells cannot be fitted
        build(out / "results.parquet", out / "report", study=None)
    return {f"table of {len(keys)} runs": table, "its report": sum(spent.take().values())}


def rounded(parts: dict[str, float]) -> dict[str, float]:
    """Return the parts in milliseconds' precision."""
    return {part: round(value, 3) for part, value in parts.items()}


if __name__ == "__main__":
    main()
