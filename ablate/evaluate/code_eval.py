"""lm-eval's metric of generated programs, pass@k, computed in the sandbox."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ablate.evaluate.sandbox import SECONDS, isolation, run


def pass_at_k(count: int, passed: int, k: int) -> float:
    """Return the chance that one of k answers passes, from `count` answers of which some did.

    1 − C(n − c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
        count: answers, at least k.
        passed: of them.
        k: how many are drawn without putting back.
    """
    if not 0 <= passed <= count or not 1 <= k <= count:
        raise ValueError(f"pass@{k} of {passed} of {count} answers")
    if count - passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(count - passed + 1, count + 1))


@dataclass(frozen=True)
class CodeEval:
    """What `evaluate.load("code_eval")` returns to lm-eval's tasks, in the sandbox.

    The one that the hub ships runs programs in the process's own account, without a sandbox.
    """

    seconds: float = SECONDS

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, float], Mapping[int, list[tuple[int, dict[str, Any]]]]]:
        """Return pass@k over problems, and every answer's outcome.

        Args:
            references: the tests of every problem.
            predictions: the answers to it.
            k: which pass@k; those beyond the number of answers are left out.
            num_workers: programs at a time, by default the processors there are.
            timeout: seconds of a program.

        Raises:
            NotJudged: of a program it could not be told whether it passes.
            UserError: it could not be told whether the sandbox can be had.
        """
        isolation()  # found out once, before the threads
        tasks = [
            (number, index, f"{answer}\n{tests}")
            for number, (tests, answers) in enumerate(zip(references, predictions, strict=True))
            for index, answer in enumerate(answers)
        ]
        seconds = self.seconds if timeout is None else timeout
        with ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool:
            said = list(pool.map(lambda task: run(task[2], seconds=seconds), tasks))
        outcomes: dict[int, list[tuple[int, dict[str, Any]]]] = {
            number: [] for number in range(len(references))
        }
        for (number, index, _), result in zip(tasks, said, strict=True):
            one = {"task_id": number, "completion_id": index, "passed": result == "passed",
                   "result": result}  # fmt: skip
            outcomes[number].append((index, one))
        counts = [(len(own), sum(o["passed"] for _, o in own)) for own in outcomes.values()]
        found = {
            f"pass@{each}": float(np.mean([pass_at_k(n, c, each) for n, c in counts]))
            for each in k
            if counts and all(n >= each for n, _ in counts)
        }
        return found, outcomes


@contextlib.contextmanager
def in_place_of_the_hubs() -> Iterator[None]:
    """Give `evaluate.load("code_eval")` inside the block the metric of this module."""
    import evaluate

    usual = evaluate.load

    def load(path: str, *rest: Any, **options: Any) -> Any:
        return CodeEval() if path.endswith("code_eval") else usual(path, *rest, **options)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = usual
