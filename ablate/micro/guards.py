"""The guards of the micro world: figures without which it would be a toy, measured and printed.

`python -m ablate.micro.guards` measures them on a shipped base model: prompts carry information,
no benchmark triple is in an instruction row, every task has room between chance and the top, items
differ between runs, full fine-tuning gains on a target task and costs source knowledge.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ablate.config import Dataset, Evaluate, Execution, Loss, Masking, Train, Weight
from ablate.data.tokenise import Tokenised, Tokeniser, tokenise
from ablate.evaluate.harness import score
from ablate.evaluate.heldout import losses
from ablate.micro.instructions import rows
from ablate.micro.tasks import TASKS, evaluated_triples
from ablate.model import load_tokenizer
from ablate.roles import MASKED_ROLES
from ablate.streams import Streams
from ablate.train import train
from ablate.weights import objective

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SETS = ("micro", "micro_cleaned", "micro_short")
LR = 3e-3
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
        Dataset(name=name, source="micro", path=name),
        "train",
        tokeniser=Tokeniser(folder),
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
        found.append(Guard(f"{name}: completion / prompt tokens", ratio, **near))
        found.append(Guard(f"{name}: base loss on prompts, nats", sum(sums) / sum(counts), low=1.5))
    return found


def _scores(model: torch.nn.Module, folder: Path, *, limit: int, shots: int = 0) -> Scores:
    wanted = Evaluate(name="guards", tasks=tuple(TASKS), limit=limit, num_fewshot=shots)
    found = score(model, load_tokenizer(folder), wanted, execution=Execution(device="cpu"))
    kept = {one.task: one for one in found if one.metric == TASKS[one.task].metric}
    return {task: np.array([value for _, value in one.items]) for task, one in kept.items()}


def tuned(folder: Path, name: str, *, plw: float, lr: float = LR, seed: int = 0) -> torch.nn.Module:
    """Return the base model fine-tuned in full on the set `name`."""
    model = _base(folder)
    weights: dict[str, Weight] = dict.fromkeys(MASKED_ROLES, "plw")
    everything = Masking(name="none", weights=weights | {"completion": 1.0})
    train(
        model,
        _tokenised(name, folder),
        Train(name="guards", lr=lr),
        goal=objective(everything, plw, 1.0, Loss()),
        streams=Streams(seed),
        execution=Execution(device="cpu"),
    )
    return model


def _item_spread(runs: Sequence[np.ndarray]) -> float:
    """Return the share of items that are neither always right nor always wrong."""
    scores_RI = np.stack(runs)
    return float((scores_RI.max(0) - scores_RI.min(0) > 0).mean())


def score_guards(folder: Path, *, limit: int = 500) -> list[Guard]:
    """Return room, item spread, gain on the target and loss at the source, in points of 100."""
    base = _scores(_base(folder), folder, limit=limit)
    shots = _scores(_base(folder), folder, limit=limit, shots=3)
    cells = [(name, plw) for name in SETS for plw in (0.0, 0.1, 1.0)]
    runs = [_scores(tuned(folder, n, plw=plw), folder, limit=limit) for n, plw in cells]
    found = []
    for task, info in TASKS.items():
        best = 100 * max(float(s[task].mean()) for s in (base, *runs))
        found.append(Guard(f"{task}: base or best", best, 100 * info.chance + 10, 95))
        found.append(
            Guard(f"{task}: items that differ", _item_spread([r[task] for r in runs]), 0.5)
        )
        if info.side == "target":
            gain = 100 * float(runs[0][task].mean() - shots[task].mean())
            found.append(Guard(f"{task}: gain over the base's 3-shot", gain))
    lost_I = 100 * (base["micro_knowledge"] - runs[0]["micro_knowledge"])
    margin = 1.96 * float(lost_I.std(ddof=1)) / len(lost_I) ** 0.5
    found.append(
        Guard("largest gain on a target", max(g.value for g in found if "gain" in g.name), 20)
    )
    found.append(Guard("loss of source knowledge", float(lost_I.mean()), 10))
    found.append(Guard("loss of source knowledge, lower end", float(lost_I.mean()) - margin, 5))
    return found


def main(folder: Path) -> int:
    """Print every guard with its range; return 1 if one does not hold."""
    torch.set_num_threads(1)
    found = [*text_guards(), *prompt_guards(folder), *score_guards(folder)]
    for guard in found:
        mark = "ok  " if guard.holds else "FAIL"
        print(f"{mark} {guard.name:48s} {guard.value:9.3f}   [{guard.low:g}, {guard.high:g}]")
    return int(not all(guard.holds for guard in found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINTS / "micro_0"))
