"""The guards of the micro world: figures that make its experiments informative, measured.

`python -m ablate.commands.guards` measures them on the shipped base models: prompts carry
information, no benchmark triple is in an instruction row, every task has room between chance and
the top, items differ between runs, full fine-tuning gains on a target task and costs source
knowledge.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ablate.config.schema import Dataset, Evaluate, Execution, Loss, Masking, Train, Weight
from ablate.data.tokenise import Tokenised, tokenise
from ablate.data.tokenizer import Tokenizer
from ablate.evaluate.harness import score
from ablate.evaluate.heldout import losses
from ablate.micro.instructions import rows
from ablate.micro.tasks import TASKS, TEMPLATE, evaluated_triples
from ablate.models.load import load_tokenizer
from ablate.objective import make_objective
from ablate.roles import MASKED_ROLES
from ablate.streams import Streams
from ablate.training.loop import train

CHECKPOINTS = Path(__file__).parents[1] / "micro" / "checkpoints"
SETS = ("micro", "micro_cleaned", "micro_short")
RATES = {"micro": 8e-3, "micro_cleaned": 4e-3, "micro_short": 1.6e-2}  # conf/tuned/micro.csv: full
Scores = Mapping[str, np.ndarray]  # per task, a score an item


@dataclass(frozen=True, slots=True)
class Guard:
    """One figure and the range that it must be in."""

    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def holds(self) -> bool:
        """Whether the figure is in its range."""
        return self.low <= self.value <= self.high


def text_guards() -> list[Guard]:
    """Return the guards on the instruction sets alone; no model is needed."""
    made = {name: rows(name, "train", {}) for name in (*SETS, "micro_designed")}
    surfaces = {row["instruction"] for records in made.values() for row in records}
    used = {tuple(triple) for records in made.values() for r in records for triple in r["triples"]}
    return [
        Guard("distinct instruction surfaces", len(surfaces), low=1000),
        Guard("benchmark triples in fine-tuning rows", len(used & evaluated_triples()), high=0),
    ]


def _tokenised(name: str, folder: Path) -> Tokenised:
    return tokenise(
        Dataset(name=name, source="micro", path=name, template=TEMPLATE),
        "train",
        tokenizer=Tokenizer(folder),
        max_length=256,
        boundary="offset",
    )


def _base(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def prompt_guards(folder: Path) -> list[Guard]:
    """Return each set's generation ratio and the base's loss on instruction and input tokens."""
    published = {"micro": 3.27, "micro_cleaned": 7.83, "micro_short": 0.08}
    found = []
    for name in SETS:
        data = _tokenised(name, folder)
        by_role = losses(_base(folder), data, rows=400)
        sums, counts = zip(
            *(by_role.get(r, (0.0, 0)) for r in ("instruction", "input")), strict=True
        )
        ratio = data.rg_tokens or 0.0
        near = {"low": 0.9 * published[name], "high": 1.1 * published[name]}
        found.append(Guard(f"{folder.name} {name}: completion / prompt", ratio, **near))
        found.append(
            Guard(f"{folder.name} {name}: prompt loss, nats", sum(sums) / sum(counts), low=1.5)
        )
    return found


def scores(
    model: torch.nn.Module,
    folder: Path,
    *,
    limit: int,
    tasks: Iterable[str] = TASKS,
    shots: int = 0,
) -> Scores:
    """Return the score of every item of `tasks`, each up to `limit` items."""
    wanted = Evaluate(name="guards", tasks=tuple(tasks), limit=limit, num_fewshot=shots)
    found = score(model, load_tokenizer(folder), wanted, execution=Execution(device="cpu"))
    kept = {one.task: one for one in found if one.metric == TASKS[one.task].metric}
    return {task: np.array([value for _, value in one.items]) for task, one in kept.items()}


def tuned(folder: Path, name: str, *, plw: float, seed: int = 0) -> torch.nn.Module:
    """Return the base model fine-tuned in full on the set `name`, at its tuned rate."""
    model = _base(folder)
    weights: dict[str, Weight] = dict.fromkeys(MASKED_ROLES, "plw")
    everything = Masking(name="none", weights=weights | {"completion": 1.0})
    train(
        model,
        _tokenised(name, folder),
        Train(name="guards", lr=RATES[name]),
        objective=make_objective(everything, plw, 1.0, Loss()),
        streams=Streams(seed),
        execution=Execution(device="cpu"),
    )
    return model


@dataclass(frozen=True, slots=True)
class Trial:
    """One base model's scores: untouched, with three shots, and after each fine-tuning."""

    base: Scores
    shots: Scores
    cells: Mapping[tuple[str, float], Scores]  # by instruction set and PLW


def trial(folder: Path, *, limit: int) -> Trial:
    """Return the scores of one base model; takes a minute or two."""
    cells = [(name, plw) for name in SETS for plw in (0.0, 0.1, 1.0)]
    return Trial(
        base=scores(_base(folder), folder, limit=limit),
        shots=scores(_base(folder), folder, limit=limit, shots=3),
        cells={
            (name, plw): scores(tuned(folder, name, plw=plw), folder, limit=limit)
            for name, plw in cells
        },
    )


def score_guards(trials: Sequence[Trial]) -> list[Guard]:
    """Return headroom, item spread, target gain and source loss, in points of 100.

    Scores are means over the base models; the interval of the loss is over items.
    """
    found = [guard for task in TASKS for guard in _task_guards(task, trials)]
    gains = [guard.value for guard in found if "gain" in guard.name]
    task = "micro_knowledge"
    lost_I = 100 * np.mean([t.base[task] - t.cells["micro", 0.0][task] for t in trials], axis=0)
    margin = 1.96 * float(lost_I.std(ddof=1)) / len(lost_I) ** 0.5
    return [
        *found,
        Guard("largest gain on a target", max(gains), 20),
        Guard("loss of source knowledge", float(lost_I.mean()), 10),
        Guard("loss of source knowledge, lower end", float(lost_I.mean()) - margin, 5),
    ]


def _task_guards(task: str, trials: Sequence[Trial]) -> list[Guard]:
    info = TASKS[task]
    base = 100 * float(np.mean([t.base[task] for t in trials]))
    cells = {c: 100 * float(np.mean([t.cells[c][task] for t in trials])) for c in trials[0].cells}
    spread = float(np.mean([_item_spread([s[task] for s in t.cells.values()]) for t in trials]))
    best = base if info.side == "source" else max(cells.values())
    found = [
        Guard(f"{task}: base or best", best, 100 * info.chance + 10, 95),
        Guard(f"{task}: items that differ", spread, 0.5),
    ]
    if info.side == "target":
        shots = 100 * float(np.mean([t.shots[task] for t in trials]))
        found.append(Guard(f"{task}: gain over the base's 3-shot", cells["micro", 0.0] - shots))
    return found


def _item_spread(runs: Sequence[np.ndarray]) -> float:
    """Return the share of items that are neither always right nor always wrong."""
    scores_RI = np.stack(runs)
    return float((scores_RI.max(0) - scores_RI.min(0) > 0).mean())


def show(found: Iterable[Guard]) -> int:
    """Print guards with their ranges; return 1 if one does not hold."""
    found = list(found)
    for guard in found:
        mark = "ok  " if guard.holds else "FAIL"
        print(f"{mark} {guard.name:48s} {guard.value:9.3f}   [{guard.low:g}, {guard.high:g}]")
    return int(not all(guard.holds for guard in found))


def main(folders: Sequence[Path], *, limit: int = 500) -> int:
    """Print every guard with its range; return 1 if one does not hold."""
    torch.set_num_threads(1)
    found = [*text_guards(), *(guard for folder in folders for guard in prompt_guards(folder))]
    return show([*found, *score_guards([trial(folder, limit=limit) for folder in folders])])


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    sys.exit(main(given or sorted(CHECKPOINTS.glob("micro_*"))))
