"""A results table with the columns of results.parquet whose true effects are known.

Scores are drawn from the default model itself, in points (0 to 100), before they are stored as the
fractions or points that the metric uses:

    score = task + side and adapter + rank slope + b1 wp + b2 wp^2 + block + cell + run + residual

so that a fit can be held against `Truth`. Everything comes from one seeded generator.
"""

import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.regression.default_model import default_formula
from analysis.regression.model import Request
from analysis.regression.panels import PanelModel, panel_models
from analysis.table.frame import study_rows

WP_EXPONENT = 0.30103
RG = {"micro": 3.3, "micro_short": 0.08}
BASE_PARAMETERS = 262_144
# task: (task_type, side, skill, metric, base score in points, score after tuning at PLW 0)
TASKS: dict[str, tuple[str, str, str, str, float, float]] = {
    "micro_facts": ("mc", "source", "knowledge", "acc", 70.0, 58.0),
    "micro_pronouns": ("mc", "source", "coreference", "acc", 75.0, 68.0),
    "micro_arithmetic": ("mc", "target", "arithmetic", "acc", 35.0, 55.0),
    "micro_translate": ("short", "target", "translation", "chrf", 20.0, 48.0),
    "micro_biography": ("long", "target", "composition", "facts", 15.0, 45.0),
}


@dataclass(frozen=True)
class Truth:
    """The true effects, in points; `dose` is (b1, b2) by (task type, dataset type)."""

    dose: Mapping[tuple[str, str], tuple[float, float]] = field(
        default_factory=lambda: {
            ("mc", "short"): (10.0, -8.0),  # vertex at wp 0.625: an interior optimum
            ("short", "short"): (12.0, -10.0),  # vertex at wp 0.6
            ("long", "short"): (12.0, 0.0),  # rises to PLW 1
            ("mc", "long"): (0.0, 0.0),
            ("short", "long"): (0.0, 0.0),
            ("long", "long"): (0.0, 0.0),
        }
    )
    adapter: Mapping[tuple[str, str], float] = field(
        default_factory=lambda: {
            ("full", "target"): 4.0,
            ("lora", "target"): 0.0,
            ("mora", "target"): 1.0,
            ("full", "source"): -6.0,
            ("lora", "source"): 0.0,
            ("mora", "source"): -1.0,
        }
    )
    per_log2_rank: Mapping[tuple[str, str], float] = field(
        default_factory=lambda: {
            ("lora", "target"): 1.0,
            ("mora", "target"): 0.5,
            ("lora", "source"): -1.0,
            ("mora", "source"): -0.5,
        }
    )
    block_sd: float = 1.0
    cell_sd: float = 0.0  # of a cell's score on one task, the same under every seed
    run_sd: float = 1.0
    residual_sd: float = 1.2
    sham: float = 0.0
    placebo: float = -3.0  # placebo minus none at the same PLW
    shuffled: float = -8.0  # shuffled prompts minus the same data unshuffled, target tasks


@dataclass(frozen=True)
class _Cell:
    masking: str
    plw: float
    adapter: str
    rank: int
    dataset: str
    seed: int
    sham: str = "a"
    shuffled: bool = False

    @property
    def wp(self) -> float:
        plw = 0.0 if self.masking == "instruction" else self.plw
        return plw**WP_EXPONENT

    @property
    def cell(self) -> str:
        """What runs that differ in the seed alone have in common."""
        return self.key.replace(f"-{self.seed}-{self.sham}-", "-")

    @property
    def key(self) -> str:
        """The train key: equal for aliases (no masking difference at 0, no rank when full)."""
        masking = "none" if self.wp == 0 else self.masking
        rank = 0 if self.adapter == "full" else self.rank
        parts = (
            masking, round(self.wp, 6), self.adapter, rank, self.dataset, self.seed, self.sham,
            "shuffled" if self.shuffled else "paired",
        )  # fmt: skip
        return "-".join(str(p) for p in parts)


def fake_results(
    seed: int = 0,
    *,
    seeds: int = 2,
    plws: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0),
    truth: Truth | None = None,
    controls: bool = True,
) -> pd.DataFrame:
    """Return a results table of the quick study's shape; equal arguments, equal table."""
    truth = truth or Truth()
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = list(_base_rows(rng))
    scores: dict[str, dict[str, float]] = {}
    blocks = {(dataset, s): rng.normal(0, truth.block_sd) for dataset in RG for s in range(seeds)}
    for cell in _cells(seeds, plws, controls):
        alias = cell.key in scores
        if not alias:
            block = blocks[cell.dataset, cell.seed]
            scores[cell.key] = _scores(cell, truth, block, rng)
        rows += _rows(cell, scores[cell.key], alias)
    return pd.DataFrame(rows)


def _cells(seeds: int, plws: tuple[float, ...], controls: bool) -> Iterator[_Cell]:
    """Yield every named cell in grid order, aliases and controls included."""
    maskings = [("instruction", 0.0), *(("none", p) for p in plws)]
    maskings += [("boilerplate", plws[-1]), ("special", plws[-1])]
    capacities = [("full", 4), ("full", 8), ("lora", 4), ("lora", 8), ("mora", 4), ("mora", 8)]
    for dataset in ("micro", "micro_short"):
        for (mask, plw), (kind, rank) in itertools.product(maskings, capacities):
            for s in range(seeds):
                yield _Cell(mask, plw, kind, rank, dataset, s)
    if not controls:
        return
    for s, (kind, rank) in itertools.product(range(seeds), capacities[2:]):
        yield _Cell("none", plws[-1], kind, rank, "micro_short", s, sham="b")
        yield _Cell("placebo", plws[-2], kind, rank, "micro_short", s)
        yield _Cell("none", plws[-1], kind, rank, "micro_short", s, shuffled=True)


def _scores(cell: _Cell, truth: Truth, block: float, rng: np.random.Generator) -> dict[str, float]:
    """Return the score in points of every task for one trained run."""
    run = rng.normal(0, truth.run_sd)
    dataset_type = "short" if RG[cell.dataset] < 1 else "long"
    scores = {}
    for task, (task_type, side, _, _, _, tuned) in TASKS.items():
        b1, b2 = truth.dose[task_type, dataset_type]
        score = tuned + b1 * cell.wp + b2 * cell.wp**2 + block + run
        score += truth.adapter[cell.adapter, side]
        slope = truth.per_log2_rank.get((cell.adapter, side), 0.0)
        score += slope * float(np.log2(cell.rank / 4))
        score += truth.placebo * (cell.masking == "placebo") + truth.sham * (cell.sham == "b")
        score += truth.shuffled * (cell.shuffled and side == "target")
        score += -4.0 * (dataset_type == "short")
        score += truth.cell_sd * _own_of(f"{cell.cell} {task}") if truth.cell_sd else 0.0
        scores[task] = float(np.clip(score + rng.normal(0, truth.residual_sd), 0, 100))
    scores["noise"] = float(rng.uniform(0.9, 1.1))  # for times and measures
    return scores


def _own_of(name: str) -> float:
    """Return a standard normal number that belongs to a name."""
    return float(np.random.default_rng(zlib.crc32(name.encode())).standard_normal())


def _factors(cell: _Cell) -> dict[str, Any]:
    kind = {"instruction": 0.0}.get(cell.masking, cell.plw)
    share = {"full": 1.0}.get(cell.adapter, cell.rank / 64)
    return {
        "study": "fake", "masking": cell.masking, "plw": cell.plw, "completion_weight": 1.0,
        "normaliser": "weight", "scope": "batch", "adapter": cell.adapter, "rank": cell.rank,
        "embeddings": "frozen", "dataset": cell.dataset, "model": "micro_a", "seed": cell.seed,
        "train": "micro", "sham": cell.sham, "shuffle_prompts": cell.shuffled,
        "lr": 1e-3 if cell.adapter == "full" else 3e-3,
        "effective_plw": kind, "wp": cell.wp, "rg": RG[cell.dataset],
        "dataset_type": "short" if RG[cell.dataset] < 1 else "long",
        "trainable_parameters": int(BASE_PARAMETERS * share),
        "train_key": cell.key, "score_key": cell.key + "-s", "status": "done",
    }  # fmt: skip


def _training(wp: float, noise: float) -> dict[str, float]:
    return {
        "train_seconds": 12.0 * noise, "eval_seconds": 4.0 * noise, "tokens_seen": 400_000.0,
        "peak_mb": 600.0, "grad_norm_mean": 1.5 * noise, "clipped_share": 0.2 * noise,
        "completion_grad_share": 1 / (1 + wp), "final_train_loss": 1.2 * noise + 0.3 * wp,
        "train_loss_rsd": 0.1 * noise + 0.1 * (0 < wp < 0.3),
    }  # fmt: skip


def _score_row(task: str, points: float) -> dict[str, Any]:
    task_type, side, skill, metric, _, _ = TASKS[task]
    chance = 25.0 if task_type == "mc" else 0.0
    scale = 0.01
    p = points / 100
    return {
        "task": task, "task_type": task_type, "side": side, "skill": skill, "metric": metric,
        "value": points * scale, "n": 500, "se": 100 * scale * float(np.sqrt(p * (1 - p) / 500)),
        "higher_is_better": True, "chance": chance * scale,
    }  # fmt: skip


def _other_rows(cell: _Cell, noise: float) -> Iterator[dict[str, Any]]:
    """Yield what is recorded beside the benchmarks: held-out loss per role and the measures."""
    blank = {"side": "both", "skill": "", "n": 200, "se": np.nan, "chance": np.nan}
    for role, loss in (("completion", 1.0), ("instruction", 2.0 - 0.8 * cell.wp)):
        yield {
            "task": "heldout_test", "task_type": "heldout", "metric": f"loss_{role}",
            "value": loss * noise, "higher_is_better": False, **blank,
        }  # fmt: skip
    measures = {
        "weight_distance": 2.0 + cell.wp**2, "prompt_bleu": 80.0 - 40.0 * cell.wp,
        "generation_length": 20.0 + 8.0 * cell.wp,
    }  # fmt: skip
    for name, value in measures.items():
        yield {
            "task": name, "task_type": "measure", "metric": name, "value": value * noise,
            "higher_is_better": False, **blank,
        }  # fmt: skip


def _rows(cell: _Cell, scores: dict[str, float], alias: bool) -> list[dict[str, Any]]:
    noise = scores["noise"]
    common = _factors(cell) | {"alias": alias} | _training(cell.wp, noise)
    found = [_score_row(task, scores[task]) for task in TASKS]
    # A second metric of one task: the frame must keep the primary one only.
    second = {"metric": "bleu", "value": 0.5 * scores["micro_translate"]}
    found.append(_score_row("micro_translate", scores["micro_translate"]) | second)
    found += list(_other_rows(cell, noise))
    return [common | row for row in found]


def _base_rows(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the untouched base model: a run with adapter none, scored once."""
    cell = _Cell("none", 0.0, "none", 1, "micro", 0)
    common = _factors(cell) | {
        "train_key": "base-micro_a", "score_key": "base-micro_a-s", "trainable_parameters": 0,
        "alias": False, "lr": np.nan, "dataset": "none", "rg": np.nan, "dataset_type": "none",
    }  # fmt: skip
    blank = dict.fromkeys(_training(0.0, 1.0), np.nan)
    for task, spec in TASKS.items():
        yield common | blank | _score_row(task, spec[4] + float(rng.normal(0, 0.01)))


def default_models(frame: pd.DataFrame) -> list[PanelModel]:
    """The default models of the panels of a prepared frame."""
    found, lost = panel_models(study_rows(frame), default_formula(frame).formula, Request())
    if not found:
        raise AnalysisError(lost[0].reason)
    return found
