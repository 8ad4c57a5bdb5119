"""Benchmark scores of a live model through lm-eval, the score of every item kept."""

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, cast, get_args

import numpy as np
import sacrebleu
import torch
from lm_eval import evaluator
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate.config.schema import Evaluate, Execution
from ablate.errors import UserError
from ablate.evaluate.answers import answers
from ablate.evaluate.live import LiveLM, TokenMemo
from ablate.evaluate.requests import Benchmark, benchmark, quiet
from ablate.evaluate.sandbox import isolation
from ablate.evaluate.scores import Items, TaskScore, Unit, finite, standard_error
from ablate.micro.tasks import TASKS as MICRO

# Corpus metrics have no score per item in lm-eval: the sentence score stands for it.
SENTENCE = {
    "bleu": lambda answer, truth: sacrebleu.sentence_bleu(answer, truth).score,
    "chrf": lambda answer, truth: sacrebleu.sentence_chrf(answer, truth).score,
    "chrf++": lambda answer, truth: sacrebleu.sentence_chrf(answer, truth, word_order=2).score,
    "ter": lambda answer, truth: sacrebleu.sentence_ter(answer, truth).score,
}
TASK_TYPES = {
    "multiple_choice": "mc",
    "loglikelihood": "mc",
    "generate_until": "short",
    "loglikelihood_rolling": "heldout",
}
ACCURACIES = ("acc", "acc_norm", "acc_bytes")
PASS = "pass@"  # k: a metric that states several, under names that its task does not list
RIGHT_OR_WRONG = (*ACCURACIES, "acc_mutual_info", "acc_all", "exact_match")
# lm-eval's own metrics.
UNITS: dict[str, Unit] = {
    **dict.fromkeys(RIGHT_OR_WRONG, "fraction"), "f1": "fraction", "mcc": "fraction",
    "bleu": "points", "chrf": "points", "chrf++": "points", "ter": "points",
    "perplexity": "perplexity", "word_perplexity": "perplexity", "byte_perplexity": "perplexity",
    "bits_per_byte": "bits", "brier_score": "ratio", "likelihood": "ratio",
}  # fmt: skip


def prepare(
    evaluate: Evaluate, tokenizer: Tokenizer | None = None, *, chat: bool = False
) -> list[Benchmark]:
    """Return the benchmarks of `evaluate`, loaded and with their requests built.

    Worth calling before training: what cannot be scored is then known before it is trained, and
    `score` finds the work done.

    Args:
        evaluate: the tasks and their settings.
        tokenizer: needed for `chat` only.
        chat: whether prompts go through the tokenizer's chat template.

    Raises:
        UserError: an unknown task, or its data cannot be had.
    """
    return [benchmark(name, evaluate, tokenizer if chat else None) for name in evaluate.tasks]


def score(
    model: nn.Module,
    tokenizer: Tokenizer,
    evaluate: Evaluate,
    *,
    execution: Execution,
    chat: bool = False,
    seed: int = 0,
) -> list[TaskScore]:
    """Return one score per task and metric, in the order asked for.

    The model comes back in the mode it had, and no global random state moves.

    Args:
        model: a transformers causal model, or a PEFT model around one, unmerged.
        tokenizer: its fast tokenizer.
        evaluate: the tasks and their settings.
        execution: for the sizes of its batches.
        chat: whether prompts go through the tokenizer's chat template.
        seed: of the draws of a task that samples its answers.

    Raises:
        UserError: an unknown task, or its data cannot be had.
    """
    benchmarks = prepare(evaluate, tokenizer, chat=chat)
    tasks = {name: task for bench in benchmarks for name, task in bench.tasks.items()}
    if not tasks:
        return []
    with quiet(), _undisturbed(model, seed):
        lm = LiveLM(
            model,
            tokenizer,
            batch_size=execution.eval_batch_size,
            batch_tokens=execution.eval_batch_tokens,
            memo=memo(tokenizer),
            chat=chat,
        )
        found = evaluator.evaluate(
            lm,
            {"tasks": tasks},
            limit=evaluate.limit,
            bootstrap_iters=0,
            log_samples=any(_is_bypass(task) for task in tasks.values()),
            confirm_run_unsafe_code=evaluate.run_code,
        )
    return [
        one
        for bench in benchmarks
        for name in bench.tasks
        for one in _scores(bench.unit, name, tasks[name], found)
    ]


def _is_bypass(task: Any) -> bool:
    """Return whether lm-eval refuses to evaluate a task without its own log of samples."""
    return "bypass" in getattr(task, "_metric_fn_list", ())


_MEMOS: dict[int, TokenMemo] = {}


def memo(tokenizer: Any) -> TokenMemo:
    """Return the texts already tokenised by a tokenizer of this content."""
    return _MEMOS.setdefault(hash(tokenizer.backend_tokenizer.to_str()), TokenMemo())


@contextlib.contextmanager
def _undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluate with generators of their own; afterwards all is as it was."""
    device = next(model.parameters()).device
    training = model.training
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (others draw from it)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            model.eval()
            yield
        finally:
            model.train(training)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _scores(asked: str, name: str, task: Any, found: dict[str, Any]) -> Iterator[TaskScore]:
    about, better = _metadata(name, task), task.higher_is_better()
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in task.noted.samples():
        samples[sample["filter"]].append(sample)
    said = {chain: answers(task, some) for chain, some in samples.items()}
    for key, value in found["results"][name].items():
        metric, comma, chain = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        answered = [sample for sample in samples[chain] if metric in sample]
        items = _items(metric, answered)
        yield TaskScore(
            asked=asked,
            task=name,
            metric=metric if chain == "none" else key,
            value=finite(value),
            unit=_unit(name, task, metric),
            n=len(answered),
            of=found["n-samples"][name]["original"],
            chosen=task.chosen,
            se=standard_error([one for _, one in items]),
            higher_is_better=True if metric.startswith(PASS) else better.get(metric),
            chance=_chance(task, metric),
            items=items,
            answers=said[chain],
            isolation=isolation() if getattr(task, "UNSAFE_CODE", False) else None,
            **about,
        )


def _items(metric: str, samples: list[dict[str, Any]]) -> Items:
    """Return (doc_id, score) of every item, empty where the metric has none."""
    values = [sample[metric] for sample in samples]
    if metric in SENTENCE and all(isinstance(value, list | tuple) for value in values):
        truths = [[truth] if isinstance(truth, str) else list(truth) for truth, _ in values]
        answers = [answer for _, answer in values]
        values = [SENTENCE[metric](a, t) for a, t in zip(answers, truths, strict=True)]
    if not all(isinstance(value, int | float | np.number) for value in values):
        return ()
    return tuple((int(s["doc_id"]), float(v)) for s, v in zip(samples, values, strict=True))


def _stated(task: Any) -> dict[str, Any]:
    stated = task.config.metadata
    return stated if isinstance(stated, dict) else {}


def _metadata(name: str, task: Any) -> dict[str, str]:
    """Return what the task's YAML says about it under `metadata:`, with defaults by output type."""
    stated = _stated(task)
    return {
        "version": str(stated.get("version", task.VERSION)),
        "task_type": str(stated.get("task_type", TASK_TYPES[task.OUTPUT_TYPE])),
        "side": str(stated.get("side", "both")),
        "skill": str(stated.get("skill", name)),
    }


def _unit(name: str, task: Any, metric: str) -> Unit | None:
    """Return the unit of a metric: as the task states it, or as lm-eval's own metric has it.

    None where the task computes it by a rule of its own and does not say.
    """
    stated = _stated(task).get("unit")
    if stated is not None:
        return _checked(name, stated)
    if name in MICRO:
        return "fraction"
    if metric.startswith(PASS):
        return "fraction"
    corpus = getattr(task.aggregation().get(metric), "__name__", "") == metric
    if task.config.process_results is not None and not corpus and metric not in RIGHT_OR_WRONG:
        return None
    return UNITS.get(metric)


def _checked(name: str, stated: object) -> Unit:
    units = get_args(Unit)
    if stated not in units:
        raise UserError(f"{name}: metadata.unit={stated}: must be one of {', '.join(units)}")
    return cast(Unit, stated)


def _chance(task: Any, metric: str) -> float | None:
    """Return what guessing scores: as stated, or one in the number of choices."""
    stated = _stated(task).get("chance")
    if stated is not None:
        return float(stated)
    own_rule = task.config.process_results is not None or "acc_mutual_info" in task.aggregation()
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in ACCURACIES or own_rule:
        return None
    choices = Counter(instance.doc_id for instance in task.instances).values()
    return sum(1 / count for count in choices) / len(choices)
