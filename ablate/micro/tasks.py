"""The benchmarks of the micro world as lm-eval tasks: YAML and jsonl, the same bytes every time.

Source tasks ask what pretraining taught, as text to be continued; target tasks ask what the
instruction sets teach, in their compact template, about people and sentences that no row mentions.
Options are one token each, so that lm-eval scores all of an item's options in one pass.
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ablate.data.templates import FRAMES
from ablate.micro.instructions import life_of, shuffled_notes
from ablate.micro.problems import held_out_sentences, held_out_sums, puzzle
from ablate.micro.scoring import SCORERS
from ablate.micro.wordings import LANGUAGE, QUESTIONS, SAY, SENTENCES, WRITE_LIFE, fact_sentence
from ablate.micro.world import NUMBERS, RELATIONS, VALUES, Person, Triple, World, translate, world
from ablate.paths import cache_dir

TASKS_VERSION = 2
ITEMS = 1000
SHOTS = 60
TEMPLATE: Literal["compact"] = "compact"  # as in conf/dataset/micro*.yaml
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What a micro task measures and how to read its score."""

    task_type: Literal["mc", "short", "long"]
    side: Literal["source", "target"]
    skill: str
    metric: str
    chance: float
    max_new_tokens: int | None = None


TASKS: Mapping[str, TaskInfo] = {
    "micro_knowledge": TaskInfo("mc", "source", "knowledge", "acc", 0.25),
    "micro_pronouns": TaskInfo("mc", "source", "pronouns", "acc", 0.5),
    "micro_arithmetic": TaskInfo("mc", "source", "arithmetic", "acc", 0.25),
    "micro_questions": TaskInfo("mc", "target", "questions", "acc", 0.25),
    "micro_translation": TaskInfo("short", "target", "translation", "chrf", 0.0, 16),
    "micro_lives": TaskInfo("long", "target", "biographies", "facts", 0.0, 60),
}


def _choice(
    rng: random.Random, prompt: str, right: str, wrong: Iterable[str], triple: Triple
) -> Item:
    """Return a multiple-choice item with its options in random order."""
    options = [right, *wrong]
    rng.shuffle(options)
    item = {"prompt": prompt, "choices": options, "answer": options.index(right)}
    return {**item, "target": right, "triple": list(triple)}


def _any_value(person: Person, relation: str) -> list[str]:
    return [value for value in VALUES[relation] if value != person.facts[relation]]


def _namesakes_values(person: Person, relation: str) -> list[str]:
    """Return the other values that people have who share the first or the last name."""
    everyone = (each for people in world().people.values() for each in people)
    alike = [each for each in everyone if person.first == each.first or person.last == each.last]
    values = dict.fromkeys(each.facts[relation] for each in alike)
    values.pop(person.facts[relation], None)
    return list(values) if len(values) >= 3 else _any_value(person, relation)


def _about(
    people: Iterable[Person],
    rng: random.Random,
    ask: Callable[[Person, str, int], str],
    others: Callable[[Person, str], list[str]],
) -> list[Item]:
    """Return two items on each fact in two wordings; each half holds every fact once."""
    halves: tuple[list[Item], list[Item]] = ([], [])
    for person in people:
        for relation, value in person.facts.items():
            for half, form in zip(halves, rng.sample(range(3), 2), strict=True):
                wrong = rng.sample(others(person, relation), 3)
                triple = (person.name, relation, value)
                half.append(_choice(rng, ask(person, relation, form), value, wrong, triple))
    for half in halves:
        rng.shuffle(half)
    return [*halves[0], *halves[1]]


def _cloze(person: Person, relation: str, form: int) -> str:
    """Return a sentence up to its last word, the value; forms 0 to 2 end so."""
    return fact_sentence(person, relation, SENTENCES[relation][form]).rpartition(" ")[0]


def _asked(person: Person, relation: str, form: int) -> str:
    return FRAMES[TEMPLATE].asked(QUESTIONS[relation][form].format(n=person.name))


def _knowledge(place: World, rng: random.Random) -> list[Item]:
    items = _about(place.people["source"], rng, _cloze, _namesakes_values)
    return [*items[:ITEMS], *_about(place.people["validation"], rng, _cloze, _namesakes_values)]


def _questions(place: World, rng: random.Random) -> list[Item]:
    items = _about(place.people["asked"], rng, _asked, _any_value)
    return [*items[:ITEMS], *_about(place.people["validation"], rng, _asked, _any_value)]


def _pronouns(place: World, rng: random.Random) -> list[Item]:
    made: dict[str, Item] = {}
    while len(made) < ITEMS + SHOTS:
        text, right, wrong = puzzle(rng, place)
        made[text] = _choice(rng, text, right, [wrong], (text, "pronoun", right))
    return list(made.values())


def _arithmetic(place: World, rng: random.Random) -> list[Item]:
    items = []
    for expression, value in held_out_sums().items():
        at = NUMBERS.index(value)
        near = [n for n in range(at - 3, at + 4) if n != at and 0 <= n < len(NUMBERS)]
        wrong = [NUMBERS[n] for n in rng.sample(near, 3)]
        items.append(_choice(rng, f"{expression} is", value, wrong, (expression, "sum", value)))
    return items


def _translation(place: World, rng: random.Random) -> list[Item]:
    items = []
    for english in held_out_sentences():
        foreign = translate(english, place.lexicon)
        prompt = FRAMES[TEMPLATE].asked(rng.choice(SAY), english)
        items.append(
            {"prompt": prompt, "target": f"{foreign}.", "triple": [english, LANGUAGE, foreign]}
        )
    return items


def _lives(place: World, rng: random.Random) -> list[Item]:
    items = []
    for number in range(ITEMS + SHOTS):
        person = place.fresh(rng, "benchmark" if number < ITEMS else "validation")
        prompt = FRAMES[TEMPLATE].asked(rng.choice(WRITE_LIFE), shuffled_notes(person, rng))
        facts = {relation: person.facts[relation] for relation in RELATIONS}
        items.append(
            {"prompt": prompt, "target": life_of(person), "name": person.name, "facts": facts}
        )
    return items


_MAKERS: Mapping[str, Callable[[World, random.Random], list[Item]]] = {
    "micro_knowledge": _knowledge,
    "micro_pronouns": _pronouns,
    "micro_arithmetic": _arithmetic,
    "micro_questions": _questions,
    "micro_translation": _translation,
    "micro_lives": _lives,
}


@lru_cache(maxsize=1)
def items() -> Mapping[str, tuple[list[Item], list[Item]]]:
    """Return each task's items and its few-shot examples, in their fixed order."""
    made = {}
    for name, make in _MAKERS.items():
        drawn = make(world(), random.Random(f"{name}-{TASKS_VERSION}"))
        made[name] = (drawn[:ITEMS], drawn[ITEMS : ITEMS + SHOTS])
    return made


def evaluated_triples() -> frozenset[Triple]:
    """Return every (entity, relation, value) that a benchmark item asks about."""
    found: set[Triple] = set()
    for test, _ in items().values():
        for item in test:
            if "facts" in item:
                found |= {
                    (item["name"], relation, value) for relation, value in item["facts"].items()
                }
            else:
                found.add((item["triple"][0], item["triple"][1], item["triple"][2]))
    return frozenset(found)


def _yaml(name: str, folder: str, version: str) -> str:
    """Return the task's YAML; JSON values are YAML values."""
    info = TASKS[name]
    fields: dict[str, Any] = {
        "task": name,
        "test_split": "test",
        "fewshot_split": "fewshot",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": " " if info.side == "source" else "",
        "dataset_kwargs": {"path": folder},
        "metric_list": [{"metric": info.metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {
            "version": version,
            "task_type": info.task_type,
            "side": info.side,
            "skill": info.skill,
            "chance": info.chance,
        },
    }
    functions = {"custom_dataset": "load_items"}
    if info.task_type == "mc":
        fields |= {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
        }
    else:
        decoding = {"until": ["\n"], "do_sample": False, "max_gen_toks": info.max_new_tokens}
        fields |= {
            "output_type": "generate_until",
            "doc_to_target": "{{target}}",
            "generation_kwargs": decoding,
        }
        functions["process_results"] = SCORERS[info.metric].__name__
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    lines += [f"{key}: !function ablate.micro.scoring.{f}" for key, f in functions.items()]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=1)
def contents() -> Mapping[str, str]:
    """Return every jsonl file's name and text."""
    files = {}
    for name, (test, shots) in items().items():
        for split, part in (("test", test), ("fewshot", shots)):
            files[f"{name}/{split}.jsonl"] = "".join(json.dumps(item) + "\n" for item in part)
    return files


@lru_cache(maxsize=1)
def version() -> str:
    """Return the hash of all items: a task's version changes when, and only when, its items do."""
    digest = hashlib.sha256(json.dumps([TASKS_VERSION, contents()], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def materialise() -> Path:
    """Return the folder with the tasks' YAML and jsonl files, written whole if it was not there."""
    folder = cache_dir() / "micro-tasks" / version()
    yamls = {f"{name}.yaml": _yaml(name, str(folder / name), version()) for name in TASKS}
    return written_once(folder, {**contents(), **yamls})


def written_once(folder: Path, texts: Mapping[str, str]) -> Path:
    """Return a folder with these files, by their names in it, written whole if it was not there."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".draft-"))
    for name, text in texts.items():
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_text(text, encoding="utf-8")
    try:
        os.rename(draft, folder)
    except OSError:  # another process was first; its files are the same
        shutil.rmtree(draft)
    return folder
