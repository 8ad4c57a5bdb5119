"""Benchmarks of what the math and code sets of the micro world teach, as GSM8K and HumanEval ask.

    micro_products   a product in words; exact match of the answer, read by a filter as of GSM8K
    micro_programs   what a program prints; the same
    micro_writing    a program that prints a number by adding to another; run by `ran`, several
                     answers are drawn, pass@1 and pass@8

They are in no study of `evaluate=micro`, and have versions of their own.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablate.data.templates import FRAMES
from ablate.evaluate.code_eval import pass_at_k
from ablate.micro.instructions import PRODUCTS, PROGRAMS, WRITE_PROGRAM
from ablate.micro.problems import FUNCTIONS, draw_code, held_out_outputs, product_fact
from ablate.micro.scoring import load_test_items
from ablate.micro.tasks import TEMPLATE, Item, written_once
from ablate.paths import cache_dir

EXERCISES_VERSION = 1
PROGRAMS_ASKED = 300
DRAWN = 8  # answers to every item of micro_writing


@dataclass(frozen=True, slots=True)
class Exercise:
    """How one of the benchmarks asks and scores."""

    skill: str
    max_new_tokens: int
    answer: str = ""  # a regular expression of the answer in what was said; "": by a function


TASKS: Mapping[str, Exercise] = {
    "micro_products": Exercise("products", 6, r"^\s*([a-z]+)"),
    "micro_programs": Exercise("programs", 6, r"(-?[0-9]+)"),
    "micro_writing": Exercise("writing programs", 28),
}


def _products(rng: random.Random) -> list[Item]:
    facts = [product_fact(a, b) for a in range(5) for b in range(5)]
    found = []
    for fact in facts:
        asked, _, value = fact.rstrip(".").partition(" is ")
        found += [{"prompt": FRAMES[TEMPLATE].asked(form.format(asked)), "target": value}
                  for form in PRODUCTS]  # fmt: skip
    return found


def _programs(rng: random.Random) -> list[Item]:
    found: dict[str, Item] = {}
    while len(found) < PROGRAMS_ASKED:
        program, _, printed = draw_code(rng).rpartition("\n> ")
        prompt = FRAMES[TEMPLATE].asked(rng.choice(PROGRAMS), program)
        found[program] = {"prompt": prompt, "target": printed}
    return list(found.values())


def _writing(rng: random.Random) -> list[Item]:
    return [
        {"prompt": FRAMES[TEMPLATE].asked(form.format(a=start, n=printed)),
         "target": f"let a = {start}\nlet b = a + {printed - start}\nprint b",
         "start": start, "printed": printed}
        for start, printed in held_out_outputs() for form in WRITE_PROGRAM
    ]  # fmt: skip


_MAKERS: Mapping[str, Callable[[random.Random], list[Item]]] = {
    "micro_products": _products, "micro_programs": _programs, "micro_writing": _writing,
}  # fmt: skip


@lru_cache(maxsize=1)
def items() -> Mapping[str, list[Item]]:
    """Return each benchmark's items in a fixed, random order."""
    made = {}
    for name, make in _MAKERS.items():
        rng = random.Random(f"{name}-{EXERCISES_VERSION}")
        found = make(rng)
        rng.shuffle(found)
        made[name] = found
    return made


@lru_cache(maxsize=1)
def version() -> str:
    """Return the hash of all items and of how they are asked."""
    said = [EXERCISES_VERSION, dict(items()), [_yaml(name, "", "") for name in TASKS]]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _yaml(name: str, folder: str, stated: str) -> str:
    info = TASKS[name]
    several = not info.answer
    decoding: dict[str, Any] = {
        "until": ["\n\n"] if several else ["\n"], "do_sample": several,
        "max_gen_toks": info.max_new_tokens,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "task": name,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "dataset_kwargs": {"path": folder},
        "metadata": {"version": stated, "task_type": "short", "side": "target",
                     "skill": info.skill, "chance": 0.0, "unit": "fraction"},
    }  # fmt: skip
    functions = {"custom_dataset": f"{load_test_items.__module__}.{load_test_items.__name__}"}
    if several:
        decoding["temperature"] = 1.0
        every = [{"function": "take_first_k", "k": DRAWN}]
        fields |= {
            "repeats": DRAWN,
            "filter_list": [{"name": "all", "filter": every}],
            "metric_list": [_metric(f"pass@{k}") for k in (1, DRAWN)],
        }
        functions["process_results"] = f"{__name__}.{programs_that_print.__name__}"
    else:
        read = {"function": "regex", "regex_pattern": info.answer}
        fields |= {
            "filter_list": [{"name": "answer", "filter": [read, {"function": "take_first"}]}],
            "metric_list": [_metric("exact_match")],
        }
    fields["generation_kwargs"] = decoding
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    lines += [f"{key}: !function {place}" for key, place in functions.items()]
    return "\n".join(lines) + "\n"


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def materialise() -> Path:
    """Return the folder with the tasks' YAML and jsonl files, written whole if it was not there."""
    folder = cache_dir() / "micro-exercises" / version()
    texts = {f"{name}.yaml": _yaml(name, str(folder / name), version()) for name in TASKS}
    for name, found in items().items():
        texts[f"{name}/test.jsonl"] = "".join(json.dumps(item) + "\n" for item in found)
    return written_once(folder, texts)


def programs_that_print(doc: Mapping[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Return pass@1 and pass@k of the k programs that were written.

    One passes if it prints the number that was asked for and adds to the one it was to add to; it
    is run by the interpreter of the code language, never as Python.
    """
    (programs,) = results
    wanted = {str(doc["start"]), "+"}
    right = [ran(text) for text in programs]
    passed = sum(printed == doc["printed"] and wanted <= used for printed, used in right)
    count = len(programs)
    return {f"pass@{k}": pass_at_k(count, passed, k) for k in (1, count)}


_LET = re.compile(r"let ([a-h]) = (?:(\d+)|([a-z]+) ([a-h])|([a-h]) \+ (\d+))")
_PRINT = re.compile(r"print ([a-h])")


def ran(program: str) -> tuple[int | None, frozenset[str]]:
    """Return what a program of the code language prints, and what it used.

    Used are the numbers that variables were set to, the functions called, and "+". What is printed
    is None where it is no program: a line of another form, a variable without a value, an unknown
    function, or nothing or several things printed.
    """
    known: dict[str, int] = {}
    printed: list[int] = []
    used = set()
    for line in program.strip().split("\n"):
        match, shown = _LET.fullmatch(line.strip()), _PRINT.fullmatch(line.strip())
        if shown and shown[1] in known:
            printed.append(known[shown[1]])
        elif match and match[2]:
            known[match[1]] = int(match[2])
            used.add(match[2])
        elif match and match[3] in FUNCTIONS and match[4] in known:
            known[match[1]] = known[match[4]] + FUNCTIONS[match[3]]
            used.add(match[3])
        elif match and match[5] in known:
            known[match[1]] = known[match[5]] + int(match[6])
            used.add("+")
        else:
            return None, frozenset(used)
    return (printed[0] if len(printed) == 1 else None), frozenset(used)
