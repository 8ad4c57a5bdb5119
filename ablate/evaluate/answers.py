"""What a model was asked and answered, item by item, as the record keeps it; no torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HASH_LENGTH = 16  # hexadecimal digits of a prompt's sha256 that are kept


@dataclass(frozen=True, slots=True)
class Answer:
    """One item: its prompt's hash, the right answer, the model's, and its log-likelihoods.

    `output` is the text generated, or the option of the highest log-likelihood; None where the task
    asks for neither. `loglikelihoods` are in nats, one per request in the task's order: options,
    then (for acc_mutual_info) options without the question. None for generated text.
    """

    prompt_hash: str
    gold: str
    output: str | None
    loglikelihoods: tuple[float, ...] | None


def prompt_hash(prompt: str) -> str:
    """Return the first digits of the sha256 of `prompt`."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:HASH_LENGTH]


def answers(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[int, Answer]:
    """Return the answer to every item by doc_id.

    Args:
        task: lm-eval's task.
        samples: lm-eval's samples of the task under one filter.
    """
    return {int(sample["doc_id"]): _answer(task, sample) for sample in samples}


def _answer(task: Any, sample: Mapping[str, Any]) -> Answer:
    hashed, target = sample["prompt_hash"][:HASH_LENGTH], sample["target"]
    first = [responses[0] for responses in sample["resps"]]
    if task.OUTPUT_TYPE == "generate_until":
        said = [text for responses in sample["resps"] for text in responses]
        return Answer(hashed, _text(target), said[0] if len(said) == 1 else _text(said), None)
    values = tuple(float(one[0] if isinstance(one, list | tuple) else one) for one in first)
    if task.OUTPUT_TYPE != "multiple_choice":
        return Answer(hashed, _text(target), None, values)
    options = [str(option) for option in task.doc_to_choice(sample["doc"])]
    best = max(range(len(options)), key=values.__getitem__)
    right = task.doc_to_text(sample["doc"]) if task.multiple_input else target
    return Answer(hashed, _gold(right, options), options[best], values)


def _gold(right: Any, options: Sequence[str]) -> str:
    """Return the right option's text; of several right ones their texts as JSON."""
    if isinstance(right, list | tuple):
        return _text([_gold(one, options) for one in right])
    known = isinstance(right, int) and 0 <= right < len(options)
    return options[right] if known else _text(right)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
