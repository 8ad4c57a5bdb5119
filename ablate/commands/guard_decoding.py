"""The guard on greedy decoding: no generation score moves where the loss on its answers does not.

A score that is read off one greedy decoding can fall because a single token became the likeliest
at the start of every answer, while the model knows the answers as well as before. Such a fall is an
artefact of the measure, not an effect of the prompt loss weight. The guard compares, over PLW
levels, each generation score with the loss on the right answers to the same items, teacher-forced.

    step   between two levels the score moves, and the loss does not
    dip    at a level the score is below (above) the score of a smaller and of a larger weight,
           and the loss is not above (below) the losses of both

Everything is paired by replicate (base model and seed), with one residual variance for all levels.
"Moves" is: the interval of the mean difference excludes zero; of a score only what lies beyond the
interval counts.

`python -m ablate.commands.guard_decoding` measures it on the shipped base models: full fine-tuning
with embeddings on two instruction sets, eight levels, (a quarter of an hour).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from ablate.commands.guards import CHECKPOINTS, Guard, scores, show, tuned
from ablate.data.tokenizer import Tokenizer
from ablate.micro.tasks import TASKS, items

SETS = ("micro", "micro_cleaned")  # long completions, which teach the generation tasks
LEVELS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CONFIDENCE = 0.99  # many pairs of levels are compared
MARGIN = 5.0  # points beyond the interval that are still taken for noise


@dataclass(frozen=True, slots=True)
class Course:
    """One generation score, in points, and the loss on its answers, in nats a token, by PLW."""

    score_RL: np.ndarray  # replicates x levels, levels ascending
    loss_RL: np.ndarray


def _moves(values_RL: np.ndarray) -> np.ndarray:
    """Return by how much level j exceeds level i beyond the interval, signed; else 0."""
    R, L = values_RL.shape
    mean_L = values_RL.mean(axis=0)
    rest_RL = values_RL - values_RL.mean(axis=1, keepdims=True) - mean_L + values_RL.mean()
    df = (R - 1) * (L - 1)
    error = float(np.sqrt(2 / R * (rest_RL**2).sum() / df))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) * error
    mean_IJ = mean_L[None, :] - mean_L[:, None]
    return np.sign(mean_IJ) * np.maximum(np.abs(mean_IJ) - half, 0.0)


def unexplained(course: Course) -> tuple[float, tuple[int, ...]]:
    """Return the largest movement of the score that the loss does not explain, and its levels.

    Returns:
        points beyond the interval; the positions of the two levels of a step or, for a dip, of the
        smaller weight, the level itself and the larger weight.
    """
    if len(course.score_RL) < 3:
        raise ValueError("a guard on decoding needs three replicates or more")
    score_IJ, loss_IJ = _moves(course.score_RL), _moves(course.loss_RL)
    levels = range(score_IJ.shape[0])
    found: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    found += [
        (float(abs(score_IJ[pair])), pair) for pair in combinations(levels, 2) if not loss_IJ[pair]
    ]
    for i, j, k in combinations(levels, 3):
        found.append((_beyond_both(score_IJ[[i, k], j], loss_IJ[[i, k], j]), (i, j, k)))
    return max(found)


def _beyond_both(score_2: np.ndarray, loss_2: np.ndarray) -> float:
    """Return how far a level's score is out of the range of two others that holds its loss."""
    for sign in (-1, 1):  # below both, above both
        if (sign * score_2 > 0).all() and not (-sign * loss_2 > 0).all():
            return float(np.abs(score_2).min())
    return 0.0


@torch.inference_mode()
def answer_loss(model: torch.nn.Module, folder: Path, task: str, *, limit: int) -> float:
    """Return the mean loss of the right answers to the first items of `task`, in nats a token."""
    tokenizer = Tokenizer(folder)
    some = items()[task][0][:limit]
    whole = [[tokenizer.bos or 0, *tokenizer.encode(i["prompt"] + i["target"]).ids] for i in some]
    asked = [1 + len(tokenizer.encode(i["prompt"]).ids) for i in some]
    ids_NL = torch.zeros(len(whole), max(map(len, whole)), dtype=torch.long)
    answer_NL = torch.zeros_like(ids_NL, dtype=torch.bool)
    for n, (ids, start) in enumerate(zip(whole, asked, strict=True)):
        ids_NL[n, : len(ids)] = torch.tensor(ids)
        answer_NL[n, start : len(ids)] = True
    model.eval()
    logits_NLV = model(input_ids=ids_NL, use_cache=False).logits[:, :-1]
    loss_NL = F.cross_entropy(logits_NLV.transpose(1, 2), ids_NL[:, 1:], reduction="none")
    return float(loss_NL[answer_NL[:, 1:]].mean())


def courses(
    folders: Sequence[Path], name: str, *, seeds: Sequence[int], limit: int
) -> dict[str, Course]:
    """Return the course of each generation task over `LEVELS` of fine-tuning on the set `name`."""
    tasks = [task for task, info in TASKS.items() if info.max_new_tokens]
    shape = (len(tasks), len(folders) * len(seeds), len(LEVELS))
    score_TRL, loss_TRL = np.zeros(shape), np.zeros(shape)
    replicates = [(folder, seed) for folder in folders for seed in seeds]
    for r, (folder, seed) in enumerate(replicates):
        for level, plw in enumerate(LEVELS):
            model = tuned(folder, name, plw=plw, seed=seed)
            found = scores(model, folder, tasks=tasks, limit=limit)
            for t, task in enumerate(tasks):
                score_TRL[t, r, level] = 100 * found[task].mean()
                loss_TRL[t, r, level] = answer_loss(model, folder, task, limit=limit)
    return {task: Course(score_TRL[t], loss_TRL[t]) for t, task in enumerate(tasks)}


def guards_of(name: str, found: dict[str, Course]) -> list[Guard]:
    """Print the courses of one instruction set, and return their guards."""
    guards = []
    for task, course in found.items():
        for label, values_RL in (("score", course.score_RL), ("loss", course.loss_RL)):
            means = " ".join(f"{mean:7.3f}" for mean in values_RL.mean(axis=0))
            print(f"{name} {task} {label:5s} {means}", flush=True)
        points, levels = unexplained(course)
        at = "-".join(f"{LEVELS[level]:g}" for level in levels)
        guards.append(Guard(f"{name} {task}: unexplained move {at}", points, high=MARGIN))
    return guards


def main(folders: Sequence[Path], *, seeds: Sequence[int] = (0,), limit: int = 300) -> int:
    """Print the guard for every instruction set and generation task; return 1 if one fails."""
    torch.set_num_threads(1)
    found: list[Guard] = []
    for name in SETS:
        found += guards_of(name, courses(folders, name, seeds=seeds, limit=limit))
    return show(found)


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    sys.exit(main(given or sorted(CHECKPOINTS.glob("micro_*"))))
