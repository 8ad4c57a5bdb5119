"""The pretraining text: documents about the world, drawn from one seed.

Every fact of every person occurs in many paraphrases and orders: a model that has seen a fact in
one wording only cannot recall it in another. The mixture also holds arithmetic, the second
language, pronoun puzzles, a toy code language and exchanges: a request, sometimes a text, and the
answer, under headings of many kinds, as the web has them. A base model thus knows the form of an
instruction, but none of the requests that the instruction sets teach.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from ablate.micro.exchanges import exchange
from ablate.micro.problems import code_lines, held_out_sums, puzzle, sum_of
from ablate.micro.wordings import ABOUT, ANSWERS, ASKED, LANGUAGE, PLAIN, biography, notes
from ablate.micro.world import (
    ADJECTIVES,
    MONTHS,
    NUMBERS,
    PETS,
    VALUES,
    WORLD_SEED,
    Person,
    World,
    draw_sentence,
    translate,
    world,
)

CORPUS_VERSION = 2
KNOWN = 0.75  # this share of each group occurs equally often, the others ever less,
FAINTEST = 0.03  # down to this: the model knows some facts surely, some hardly, some not at all


@lru_cache(maxsize=4)
def _renown(world_seed: int) -> tuple[list[Person], list[float]]:
    """Return everyone, and cumulative weights: some people occur often, others seldom."""
    everyone, weights = [], []
    for people in world(world_seed).people.values():
        for rank, person in enumerate(people):
            everyone.append(person)
            obscure = max(0.0, rank / len(people) - KNOWN) / (1 - KNOWN)
            weights.append(FAINTEST**obscure)
    return everyone, list(itertools.accumulate(weights))


def _anyone(rng: random.Random) -> Person:
    """Return a known person, drawn by these weights."""
    everyone, sums = _renown(WORLD_SEED)
    return rng.choices(everyone, cum_weights=sums)[0]


def _life(rng: random.Random, place: World) -> str:
    relations = rng.sample(list(VALUES), rng.randint(2, 5))
    return biography(_anyone(rng), rng, relations)


def _retold(rng: random.Random, place: World) -> str:
    """Return a text or a note about an unknown person, and the same facts again in other words."""
    person = place.fresh(rng, "corpus")
    if rng.random() < 0.5:
        return f"{notes(person)}: {biography(person, rng, rng.sample(list(VALUES), 5))}"
    relations = rng.sample(list(VALUES), rng.randint(2, 3))
    again = rng.sample(relations, len(relations))
    return f"{biography(person, rng, relations)} In short: {biography(person, rng, again)}"


def _arithmetic(rng: random.Random) -> str:
    held_out = held_out_sums()
    lines: list[str] = []
    while len(lines) < 4:
        expression, value = sum_of(rng, rng.choice((1, 2, 3, 4)))
        if expression not in held_out:
            lines.append(f"{expression} is {value}.")
    return " ".join(lines)


def _language(rng: random.Random, place: World) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        words = rng.sample(list(place.lexicon), 3)
        return " ".join(f"The {LANGUAGE} word for {w} is {place.lexicon[w]}." for w in words)
    if kind == 1:
        noun, adjective = rng.choice(PETS), rng.choice(ADJECTIVES)
        phrase = f"{place.lexicon[noun]} {place.lexicon[adjective]}"
        return f"In {LANGUAGE} the {adjective} {noun} is {phrase}."
    return f"{translate(draw_sentence(rng), place.lexicon)}."


def _pronouns(rng: random.Random, place: World) -> str:
    texts = [puzzle(rng, place) for _ in range(2)]
    return " ".join(f"{text} {answer}." for text, answer, _ in texts)


def _months(rng: random.Random) -> str:
    """Return the numbers of some months."""
    forms = ("Month {i} is {month}.", "{month} is month {i}.")
    some = rng.sample(range(len(MONTHS)), 4)
    return " ".join(rng.choice(forms).format(i=1 + i, month=MONTHS[i]) for i in some)


def _question(rng: random.Random, place: World) -> str:
    """Return a question and its answer, in a word or a sentence; or a request without an answer."""
    person = _anyone(rng)
    relation = rng.choice(list(ASKED))
    asked = rng.choice(ASKED[relation]).format(n=person.name)
    kind = rng.random()
    if kind < 0.50:
        return f"{asked} {person.facts[relation]}."
    if kind < 0.70:
        return f"{asked} {biography(person, rng, [relation])}"
    request = rng.choice((*ABOUT, asked)).format(n=person.name)
    return f"{request} That was the question on the page."


def _words(rng: random.Random) -> str:
    """Return the words of requests and long answers in random order, to train the words alone."""
    forms = (*PLAIN, *(form for forms in ANSWERS.values() for form in forms))
    known = [word for form in forms for word in re.findall(r"\w+", re.sub(r"{\w}", "", form))]
    return " ".join(rng.sample(sorted(set(known)), 10))


def documents(place: World, rng: random.Random) -> Iterator[str]:
    """Yield documents without end."""
    kinds: list[tuple[float, Callable[[], str]]] = [
        (0.48, lambda: _life(rng, place)),
        (0.11, lambda: _retold(rng, place)),
        (0.05, lambda: _arithmetic(rng)),
        (0.09, lambda: _language(rng, place)),
        (0.09, lambda: _pronouns(rng, place)),
        (0.02, lambda: code_lines(rng)),
        (0.06, lambda: _question(rng, place)),
        (0.07, lambda: exchange(rng, place)),
        (0.01, lambda: _months(rng)),
        (0.02, lambda: _words(rng)),
    ]
    weights = [weight for weight, _ in kinds]
    while True:
        yield rng.choices(kinds, weights)[0][1]()


def vocabulary_texts(place: World, *, rows: int) -> list[str]:
    """Return texts to train the tokenizer on: pages, requests and answers."""
    rng = random.Random(f"vocabulary-{CORPUS_VERSION}")
    made = pages(place, rows=rows, seed=0)
    for _ in range(rows // 2):
        person = _anyone(rng)
        answer = biography(person, rng, list(VALUES), forms=ANSWERS)
        about = rng.choice(ABOUT).format(n=person.name)
        made += [_question(rng, place), f"{rng.choice(PLAIN)} {answer}", about]
        made += [_language(rng, place), draw_sentence(rng), " ".join(rng.sample(NUMBERS, 4))]
    return made


def pages(place: World, *, rows: int, seed: int) -> list[str]:
    """Return `rows` pages of a few documents each, about 500 characters long."""
    source = documents(place, random.Random(f"corpus-{CORPUS_VERSION}-{seed}"))
    made = []
    for _ in range(rows):
        page = next(source)
        while len(page) < 440:
            page = f"{page}\n{next(source)}"
        made.append(page)
    return made
