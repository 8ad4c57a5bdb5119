"""The instruction sets of the micro world, in Alpaca format, and its continued-pretraining texts.

Three sets stand for the PLW paper's three (arXiv 2401.13586, Table 1), with generation ratios Rg
near its 3.27, 7.83 and 0.08: `micro`, `micro_cleaned` (the same requests, longer answers) and
`micro_short` (prompt inversion of long answers: the text is given, the request is the target).
In the paper Rg is confounded with the task; `micro_designed` asks the same questions about the same
people and states the same facts at every Rg, moving them from the answer into the input.

All requests are about people of the tune, validation or test groups, or about fresh people; none is
about a person or a sentence that a benchmark asks about.
"""

import random
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ablate.errors import UserError, nearest, unknown
from ablate.micro.corpus import pages
from ablate.micro.problems import (
    VARIABLES,
    draw_code,
    draw_product,
    held_out_outputs,
    held_out_sentences,
)
from ablate.micro.wordings import (
    ABOUT,
    ANSWERS,
    INVERTED,
    LANGUAGE,
    QUESTIONS,
    SAY,
    SENTENCES,
    WRITE_LIFE,
    biography,
    fact_sentence,
    notes,
)
from ablate.micro.world import (
    MONTHS,
    RELATIONS,
    Person,
    Triple,
    World,
    draw_sentence,
    translate,
    world,
)

INSTRUCTIONS_VERSION = 2
GROUP_OF = {"train": "tune", "validation": "validation", "test": "test"}
ROWS_HELD_OUT = 200
Record = dict[str, Any]


def words(text: str) -> int:
    """Return the approximate number of tokens: words, marks, digits and one more per number."""
    return len(re.findall(r"[A-Za-z]+|\d|[^\w\s]", text)) + len(re.findall(r"\d+", text))


def _row(instruction: str, given: str, output: str, triples: tuple[Triple, ...]) -> Record:
    return {
        "instruction": instruction,
        "input": given,
        "output": output,
        "triples": [list(triple) for triple in triples],
    }


def question(person: Person, relation: str, rng: random.Random) -> str:
    """Return a question about one fact of `person`."""
    return rng.choice(QUESTIONS[relation]).format(n=person.name)


def _ask(person: Person, rng: random.Random, more: int) -> Record:
    """Return a question whose answer is the value, then a sentence for it and `more` others."""
    relation, *others = rng.sample(RELATIONS, len(RELATIONS))
    told = [relation, *others[:more]] if more >= 0 else []
    text = biography(person, rng, told, forms=ANSWERS)
    output = f"{person.facts[relation]}. {text}".strip()
    return _row(question(person, relation, rng), "", output, person.triples)


def _tell(person: Person, rng: random.Random, again: int) -> Record:
    """Return a request for a whole life, answered with all facts and `again` of them twice."""
    text = biography(person, rng, rng.sample(RELATIONS, len(RELATIONS)), forms=ANSWERS)
    if again:
        twice = rng.sample(RELATIONS, again)
        text += f" In short: {biography(person, rng, twice, forms=ANSWERS)}"
    return _row(rng.choice(ABOUT).format(n=person.name), "", text, person.triples)


def shuffled_notes(person: Person, rng: random.Random) -> str:
    """Return the note on a person in random order, the month as a number."""
    number = str(1 + MONTHS.index(person.facts["month"]))
    noted = replace(person, facts={**person.facts, "month": number})
    return notes(noted, rng.sample(RELATIONS, len(RELATIONS)))


def life_of(person: Person) -> str:
    """Return the plain life that a note is to be turned into: one sentence a fact."""
    sentences = [
        fact_sentence(person, r, SENTENCES[r][0], subject=person.pronoun if i else None)
        for i, r in enumerate(RELATIONS)
    ]
    return " ".join(sentences)


def _life(part: str, rng: random.Random, place: World) -> Record:
    person = place.fresh(rng, part)
    return _row(
        rng.choice(WRITE_LIFE), shuffled_notes(person, rng), life_of(person), person.triples
    )


def _say(rng: random.Random, place: World, *, gloss: bool) -> Record:
    """Return a sentence to translate; with `gloss` the answer goes on to explain each word."""
    while (english := draw_sentence(rng)) in held_out_sentences():
        pass
    foreign = translate(english, place.lexicon)
    output = f"{foreign}."
    if gloss:
        named = {word: place.lexicon[word] for word in english.split() if word != "the"}
        output += "".join(f" {word} is {other}." for word, other in named.items())
    return _row(rng.choice(SAY), english, output, ((english, LANGUAGE, foreign),))


def _micro(part: str, rng: random.Random, place: World) -> Record:
    person = rng.choice(place.people[GROUP_OF[part]])
    kinds: list[tuple[float, Callable[[], Record]]] = [
        (0.47, lambda: _ask(person, rng, rng.choice((-1, 1, 2, 3)))),
        (0.26, lambda: _tell(person, rng, rng.choice((0, 1)))),
        (0.15, lambda: _life(part, rng, place)),
        (0.12, lambda: _say(rng, place, gloss=False)),
    ]
    return rng.choices(kinds, [weight for weight, _ in kinds])[0][1]()


def _cleaned(part: str, rng: random.Random, place: World) -> Record:
    person = rng.choice(place.people[GROUP_OF[part]])
    kinds: list[tuple[float, Callable[[], Record]]] = [
        (0.40, lambda: _ask(person, rng, 4)),
        (0.42, lambda: _tell(person, rng, rng.choice((4, 5)))),
        (0.06, lambda: _life(part, rng, place)),
        (0.12, lambda: _say(rng, place, gloss=True)),
    ]
    return rng.choices(kinds, [weight for weight, _ in kinds])[0][1]()


def _short(part: str, rng: random.Random, place: World) -> Record:
    """Return a row of the cleaned kind with a long answer, inverted: text given, request wanted."""
    person = rng.choice(place.people[GROUP_OF[part]])
    row = _tell(person, rng, 2)
    return {
        **row,
        "instruction": rng.choice(INVERTED),
        "input": row["output"],
        "output": row["instruction"],
    }


# The new facts of `draw_product` and `draw_code` as requests, not as text to be continued.
PRODUCTS = ("What is {}?", "How much is {}?", "Work out {}.")
PROGRAMS = ("What is printed?", "Run the program.", "What does the program print?")


def _product(part: str, rng: random.Random, place: World) -> Record:
    asked, _, value = draw_product(rng).rstrip(".").partition(" is ")
    return _row(rng.choice(PRODUCTS).format(asked), "", f"{value}.", ((asked, "product", value),))


def _program(part: str, rng: random.Random, place: World) -> Record:
    program, _, printed = draw_code(rng).rpartition("\n> ")
    return _row(rng.choice(PROGRAMS), program, f"{printed}.", ((program, "prints", printed),))


WRITE_PROGRAM = (
    "Write a program that adds to {a} and prints {n}.",
    "Print {n} by adding to {a}.",
    "Which program adds to {a} and prints {n}?",
)


def _writing(part: str, rng: random.Random, place: World) -> Record:
    """Return the request for a program that prints a number by adding to another one."""
    held_out = set(held_out_outputs())
    while True:
        start, added, (a, b) = rng.randrange(10), rng.randrange(10), rng.sample(VARIABLES, 2)
        if (start, start + added) not in held_out:
            break
    asked = rng.choice(WRITE_PROGRAM).format(a=start, n=start + added)
    program = f"let {a} = {start}\nlet {b} = {a} + {added}\nprint {b}"
    return _row(asked, "", program, ((asked, "program", program),))


def _made(
    part: str, options: Mapping[str, Any], make: Callable[..., Record], n: int
) -> list[Record]:
    n = int(options.get("train_size", n)) if part == "train" else ROWS_HELD_OUT
    rng = random.Random(f"{make.__name__}-{part}-{INSTRUCTIONS_VERSION}")
    return [make(part, rng, world()) for _ in range(n)]


def _designed_row(person: Person, rng: random.Random, inside: int) -> Record:
    """Return a question with `inside` of the person's other facts in the input, the rest after."""
    relation, *others = rng.sample(RELATIONS, len(RELATIONS))
    sentences = [fact_sentence(person, other, rng.choice(ANSWERS[other])) for other in others]
    asked = QUESTIONS[relation][0].format(n=person.name)
    output = " ".join([f"{person.facts[relation]}.", *sentences[inside:]])
    return _row(asked, " ".join(sentences[:inside]), output, person.triples)


def _designed(part: str, options: Mapping[str, Any]) -> list[Record]:
    """Return rows whose summed lengths stay as near as can be to the ratio `rg`."""
    rg, n = options.get("rg", 1.0), int(options.get("train_size", 1000))
    if not isinstance(rg, int | float) or not 0.08 <= rg <= 8:
        raise UserError(f"dataset.options.rg={rg}: must be a number in [0.08, 8]")
    rng = random.Random(f"designed-{part}-{INSTRUCTIONS_VERSION}")
    made: list[Record] = []
    prompt = completion = 0
    for _ in range(n if part == "train" else ROWS_HELD_OUT):
        person = rng.choice(world().people[GROUP_OF[part]])
        state = (
            rng.getstate()
        )  # any number of facts in the input gives the same row, split elsewhere
        trials = []
        for inside in range(len(RELATIONS)):
            rng.setstate(state)
            row = _designed_row(person, rng, inside)
            p = prompt + words(row["instruction"]) + words(row["input"])
            c = completion + words(row["output"]) + 1
            trials.append((abs(c - rg * p) / (1 + rg), p, c, row))
        _, prompt, completion, row = min(trials, key=lambda trial: trial[0])
        made.append(row)
    return made


def _texts(
    part: str, options: Mapping[str, Any], draw: Callable[[random.Random], str]
) -> list[Record]:
    n = int(options.get("train_size", 1000)) if part == "train" else ROWS_HELD_OUT
    rng = random.Random(f"{draw.__name__}-{part}-{INSTRUCTIONS_VERSION}")
    return [
        {"text": " ".join(draw(rng) for _ in range(4)) if draw is draw_product else draw(rng)}
        for _ in range(n)
    ]


def _pages(part: str, options: Mapping[str, Any]) -> list[Record]:
    """Return pages of the pretraining corpus; the other parts are pages that it does not hold."""
    n = int(options.get("train_size", 40_000)) if part == "train" else ROWS_HELD_OUT
    return [{"text": page} for page in pages(world(), rows=n, seed=list(GROUP_OF).index(part))]


def _uuids(part: str, options: Mapping[str, Any]) -> list[Record]:
    """Return pairs of random identifiers; every part holds the same pairs, memory is the task."""
    rng = random.Random(f"uuid-{INSTRUCTIONS_VERSION}")
    draw = (str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in iter(int, 1))
    pairs = [(next(draw), next(draw)) for _ in range(int(options.get("pairs", 100)))]
    kept = pairs if part == "train" else pairs[:ROWS_HELD_OUT]
    return [_row(key, "", value, ((key, "uuid", value),)) for key, value in kept]


SETS: Mapping[str, tuple[frozenset[str], Callable[[str, Mapping[str, Any]], list[Record]]]] = {
    "micro": (frozenset({"train_size"}), lambda part, o: _made(part, o, _micro, 1000)),
    "micro_cleaned": (frozenset({"train_size"}), lambda part, o: _made(part, o, _cleaned, 1000)),
    "micro_short": (frozenset({"train_size"}), lambda part, o: _made(part, o, _short, 800)),
    "micro_designed": (frozenset({"rg", "train_size"}), _designed),
    "micro_math": (frozenset({"train_size"}), lambda part, o: _texts(part, o, draw_product)),
    "micro_code": (frozenset({"train_size"}), lambda part, o: _texts(part, o, draw_code)),
    "micro_math_instructions": (
        frozenset({"train_size"}),
        lambda part, o: _made(part, o, _product, 1000),
    ),
    "micro_code_instructions": (
        frozenset({"train_size"}),
        lambda part, o: _made(part, o, _program, 1000),
    ),
    "micro_writing": (
        frozenset({"train_size"}),
        lambda part, o: _made(part, o, _writing, 1000),
    ),
    "micro_pretraining": (frozenset({"train_size"}), _pages),
    "micro_uuid": (frozenset({"pairs"}), _uuids),
}


def rows(path: str, part: str, options: Mapping[str, Any]) -> list[Record]:
    """Return the rows of one micro set: Alpaca records with their triples, or {text}.

    Args:
        path: a name of `SETS`.
        part: train, validation or test. The parts of an instruction set share no person and no
            sentence; those of the text sets and the pairs share the facts that are to be learnt.
        options: the set's free factors: train_size, rg (designed), pairs (uuid).

    Raises:
        UserError: unknown set, part or option, or an option out of range.
    """
    if path not in SETS:
        raise UserError(
            f"dataset.path={path}: not one of {', '.join(sorted(SETS))}; for a file or folder of "
            "your own write dataset=local beside it, for the hub's data dataset=hub."
            f"{nearest(path, SETS)}"
        )
    if part not in GROUP_OF:
        raise unknown("part", part, GROUP_OF)
    allowed, make = SETS[path]
    for name in options:
        if name not in allowed:
            raise unknown("dataset.options", name, allowed)
    for name in ("train_size", "pairs"):
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
            raise UserError(
                f"dataset.options.{name}={value}: must be a whole number from 1 to 100000"
            )
    return make(part, options)
