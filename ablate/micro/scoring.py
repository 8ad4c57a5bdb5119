"""The functions that the micro tasks' YAML files name: reading items and scoring generations."""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablate.micro.wordings import ANSWERS, SENTENCES


def load_items(path: str, **_: Any) -> Mapping[str, Any]:
    """Return a task's splits, test and fewshot, read from the jsonl files beside `path`."""
    from datasets import Dataset

    splits = {}
    for split in ("test", "fewshot"):
        with Path(path, f"{split}.jsonl").open(encoding="utf-8") as lines:
            splits[split] = Dataset.from_list([json.loads(line) for line in lines])
    return splits


def load_test_items(path: str, **_: Any) -> Mapping[str, Any]:
    """Return the items of a task without examples, read from the jsonl file beside `path`."""
    from datasets import Dataset

    with Path(path, "test.jsonl").open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def sentence_chrf(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Return the chrF of one translation, between 0 and 1 (Popović 2015; sacrebleu's defaults)."""
    from sacrebleu.metrics import CHRF

    said = results[0].strip().split("\n")[0]
    return {"chrf": CHRF().sentence_score(said, [doc["target"]]).score / 100}


def facts_stated(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Return the share of facts stated rightly, between 0 and 1.

    Every sentence of the world's forms is read as a statement about its subject; "He" and "She" are
    the person asked about. The score is right statements over all that should have been made or
    were made, whichever is more: leaving out and inventing cost the same.
    """
    truth = {(doc["name"], relation, value) for relation, value in doc["facts"].items()}
    said = statements(results[0], doc["name"])
    return {"facts": len(truth & said) / max(len(truth), len(said))}


SCORERS: Mapping[str, Callable[[Mapping[str, Any], list[str]], dict[str, float]]] = {
    "chrf": sentence_chrf,
    "facts": facts_stated,
}


def statements(text: str, name: str) -> set[tuple[str, str, str]]:
    """Return every (entity, relation, value) that `text` states; pronouns stand for `name`."""
    found = set()
    for sentence in re.findall(r"[^.]+\.", text):
        for relation, pattern in _patterns():
            match = pattern.fullmatch(sentence.strip())
            if match:
                who = match["who"]
                found.add((name if who in ("He", "She") else who, relation, match["value"]))
                break
    return found


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return a pattern for each form of sentence, with the groups `who` and `value`."""
    made = []
    for relation in SENTENCES:
        for form in (*SENTENCES[relation], *ANSWERS[relation]):
            pattern = re.escape(form)
            for hole, group in (("s", r"(?P<who>He|She|\w+ \w+)"), ("n", r"(?P<who>\w+ \w+)")):
                pattern = pattern.replace(re.escape(f"{{{hole}}}"), group)
            value = pattern.replace(re.escape("{v}"), r"(?P<value>\w+)")
            made.append((relation, re.compile(value)))
    return tuple(made)
