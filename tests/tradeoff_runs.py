"""Full tuning and LoRA over budgets with known truth, for the claims of study=lora_tradeoffs.

At log2 budget t from the shortest one, and at its best rate, an arm has

    learnt = START + RISE t - (behind + widening t) for LoRA          nats a token
    kept   = BASE - (first + PRICE learnt)                            points

A rate away from the best one costs BEND nats per squared log2. A seed moves all arms of a setting
(block), one arm at all budgets (arm), and every run has noise of its own; what it moves in learning
it moves, in part, in what is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.papers.lora_tradeoffs.runs import Own, lora
from analysis.questions.own_rate.curves import RateCurve, best_tried

START, RISE, BASE, PRICE, BEND = 1.0, 0.3, 80.0, 6.0, 0.05
BUDGETS, SEEDS, RANKS = (50.0, 100.0, 200.0, 400.0), 3, (1.0, 4.0, 16.0)
STEP = float(np.log2(10) / 2)  # between rates
BLOCK, ARM, RUN = 0.02, 0.006, 0.008  # standard deviations, nats
POINTS = 60.0  # points to a nat of noise


@dataclass(frozen=True)
class Truth:
    """What an arm is."""

    behind: float = 0.0  # nats, at the shortest budget
    widening: float = 0.0  # nats a doubling
    first: float = 2.0  # points forgotten beside what learning costs
    rate: float = 3e-4  # its best
    steady: float = 1.0  # factor on its noise

    def learnt(self, doublings: Array) -> Array:
        return START + RISE * doublings - (self.behind + self.widening * doublings)

    def kept(self, doublings: Array) -> Array:
        return BASE - (self.first + PRICE * self.learnt(doublings))


def truths(**full: float) -> dict[str, Truth]:
    """Return full tuning and three ranks: LoRA learns less the lower its rank, and forgets less."""
    arms = {"full": Truth(first=4.0, **full)}
    for rank, behind in zip(RANKS, (0.3, 0.2, 0.1), strict=True):
        arms[lora(rank)] = Truth(behind, 0.05, rate=3e-3)
    return arms


def draw(
    arms: Mapping[str, Truth], rng: np.random.Generator, setting: str, *, noise: float = 1.0
) -> list[Own]:
    """Return the arms of one setting at the best of four rates, a point per budget."""
    t_B = np.log2(np.array(BUDGETS) / BUDGETS[0])
    x_K = STEP * np.arange(-1, 3)
    seeds = tuple(str(s) for s in range(SEEDS))
    block_S2 = BLOCK * rng.standard_normal((SEEDS, 2))
    found = []
    for name, arm in arms.items():
        own_S2 = ARM * rng.standard_normal((SEEDS, 2))
        run_SBK2 = RUN * rng.standard_normal((SEEDS, len(BUDGETS), len(x_K), 2))
        run_SBK2[..., 1] = 0.6 * run_SBK2[..., 0] + 0.8 * run_SBK2[..., 1]
        moved_SBK2 = noise * (block_S2 + arm.steady * own_S2)[:, None, None]
        moved_SBK2 = moved_SBK2 + noise * arm.steady * run_SBK2
        for b, budget in enumerate(BUDGETS):
            cost_K = BEND * x_K**2
            learnt_SK = arm.learnt(t_B)[b] - cost_K + moved_SBK2[:, b, :, 0]
            kept_SK = arm.kept(t_B)[b] - cost_K - POINTS * moved_SBK2[:, b, :, 1]
            runs = tuple(
                tuple(f"{setting} {name} {budget:g} {s} {k}" for k in range(len(x_K)))
                for s in seeds
            )
            both = [
                RateCurve(name, str(budget), arm.rate * 2**x_K, seeds, 5.0 - learnt_SK, v_SK, runs)
                for v_SK in (learnt_SK, kept_SK)
            ]
            found.append(Own(setting, name, budget, *map(best_tried, both)))
    return found


DATA = {
    "code CPT": ("micro_code", "text"), "code IFT": ("micro_code_instructions", "short"),
    "math CPT": ("micro_math", "text"), "math IFT": ("micro_math_instructions", "short"),
}  # fmt: skip
UNTAUGHT = {"text": 5.0, "short": 6.0}  # the base's loss
TASKS = ("micro_knowledge", "micro_pronouns", "micro_arithmetic")
PLAIN = {
    "study": "lora_tradeoffs", "masking": "instruction", "plw": 0.0, "effective_plw": 0.0,
    "wp": 0.0, "model": "micro_0", "sham": "a", "shuffle_prompts": False, "alias": False,
    "status": "done", "placement": "all", "regulariser": "none", "optimizer": "lion",
    "init": "default", "train": "micro", "higher_is_better": True,
    "adapter.options.alpha": "null", "regulariser.weight_decay": "null", "train.weight_decay": 0.0,
    "regulariser.attention_dropout": np.nan,
}  # fmt: skip


def results(points: list[Own], changed: Mapping[str, Mapping[str, object]] | None = None,
            ) -> pd.DataFrame:  # fmt: skip
    """Return the results table of a study with these runs, the untouched base beside them.

    Args:
        points: arms at budgets, each over its rates.
        changed: arms with something changed, by name, and the columns that say so.
    """
    rows = []
    for own in points:
        head, _, more = own.arm.partition(", ")
        data, kind = DATA[own.setting]
        name = PLAIN | {
            "adapter": "full" if head == "full" else "lora", "dataset": data, "dataset_type": kind,
            "rank": 8 if head == "full" else int(head.partition(" r")[2]),
            "embeddings": "trained" if head == "full" else "frozen",
            "train.max_steps": own.budget if kind == "text" else np.nan,
            "train.epochs": np.nan if kind == "text" else own.budget,
        } | (dict((changed or {})[own.arm]) if more else {})  # fmt: skip
        learnt, kept = own.learnt.curve, own.kept.curve
        for s, seed in enumerate(learnt.seeds):
            for k, rate in enumerate(learnt.rate_K):
                run = name | {"lr": float(rate), "seed": int(seed),
                              "train_key": learnt.run_SK[s][k]}  # fmt: skip
                loss = float(UNTAUGHT[kind] - learnt.score_SK[s, k])
                role = "loss_text" if kind == "text" else "loss_completion"
                rows += [run | one for one in _held(role, loss)]
                rows += [run | one for one in _scores(float(kept.score_SK[s, k]))]
                rows += [run | one for one in _spectrum(0.3 + 0.02 * np.log2(own.budget))]
    for setting in dict.fromkeys(p.setting for p in points):
        data, kind = DATA[setting]
        base = PLAIN | {"adapter": "none", "dataset": data, "dataset_type": kind, "rank": 8,
                        "seed": 0, "train_key": "base", "lr": np.nan,
                        "embeddings": "frozen"}  # fmt: skip
        role = "loss_text" if kind == "text" else "loss_completion"
        rows += [base | one for one in (*_held(role, UNTAUGHT[kind]), *_scores(BASE))]
    return pd.DataFrame(rows)


def _held(role: str, loss: float) -> list[dict[str, object]]:
    return [
        {"task": f"heldout_{part}", "task_type": "heldout", "side": "target", "metric": role,
         "value": loss, "higher_is_better": False}
        for part in ("validation", "test")
    ]  # fmt: skip


def _scores(points: float) -> list[dict[str, object]]:
    return [
        {"task": task, "task_type": "mc", "metric": "acc", "side": "source", "value": points / 100}
        for task in TASKS
    ]


def _spectrum(share: float) -> list[dict[str, object]]:
    return [
        {"task": "weight_spectrum", "task_type": "measure", "side": "both", "metric": metric,
         "value": share}
        for metric in ("rank90_q_proj", "rank90_layer_0", "stable_q_proj")
    ]  # fmt: skip
