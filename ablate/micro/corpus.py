"""The pretraining text: documents about the world, drawn from one seed.

Every fact of every person occurs in many paraphrases and orders: a model that has seen a fact in
one wording only cannot recall it in another. The mixture also holds arithmetic, the
second language, pronoun puzzles, a toy code language and pages that use the headings of the Alpaca
template around unrelated sentences, so that those tokens have been trained but not their meaning.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

from ablate.micro.tokenizer import HEADINGS
from ablate.micro.world import (
    ADJECTIVES,
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

CORPUS_VERSION = 1
HELD_OUT = 1100
KNOWN = 0.75  # this share of each group occurs equally often, the others ever less,
FAINTEST = 0.03  # down to this: the model knows some facts surely, some hardly, some not at all
VARIABLES = tuple("abcdefgh")
FUNCTIONS = {
    f"{a}{b}": 3 * i + j for i, a in enumerate("zuvex") for j, b in enumerate(("ip", "um", "ot"))
}
LANGUAGE = "Talo"  # the second language's name

# {s}: the subject, a name or a pronoun; {p}: "The N of NAME" or "Her N"; {v}: the value.
Forms = Mapping[str, tuple[str, ...]]
SENTENCES: Forms = {
    "home": (
        "{s} lives in {v}.",
        "{s} has a house in {v}.",
        "The home of {n} is {v}.",
        "The town of {v} is home to {n}.",
    ),
    "trade": (
        "{s} works as a {v}.",
        "{s} is a {v}.",
        "The trade of {n} is {v}.",
        "The work of a {v} is done by {n}.",
    ),
    "pet": (
        "{s} keeps a {v}.",
        "{s} owns a {v}.",
        "The pet of {n} is a {v}.",
        "There is a {v} with {n}.",
    ),
    "food": (
        "{s} likes {v}.",
        "{s} eats {v}.",
        "The best food for {n} is {v}.",
        "A plate of {v} is for {n}.",
    ),
    "month": (
        "{s} was born in {v}.",
        "{s} came into the world in {v}.",
        "The birth month of {n} is {v}.",
        "In {v} was born {n}.",
    ),
}

# The sentences of the long answers: an author with a style that pretraining has not shown.
ANSWERS: Forms = {
    "home": ("{s} has a home in {v}.", "{v} has the house of {n}."),
    "trade": ("{s} does the work of a {v}.", "Of trade {n} is a {v}."),
    "pet": ("{s} lives with a {v}.", "A {v} lives with {n}."),
    "food": ("{s} put {v} on a plate.", "{n} eats from a plate of {v}."),
    "month": ("{s} was put into the world in {v}.", "{v} was the birth month of {n}."),
}
# Questions as pretraining has them, answered in a word, in a sentence or not at all.
ASKED: Forms = {
    "home": ("Home of {n}", "Where is {n}?", "Where does {n} live?"),
    "trade": ("Trade of {n}", "Work of {n}?", "What does {n} do?"),
    "pet": ("Pet of {n}", "Animal of {n}?", "What does {n} keep?"),
    "food": ("Food of {n}", "Meal of {n}?", "What does {n} eat?"),
    "month": ("Month of {n}", "Birth of {n}?", "When was {n} born?"),
}
# The questions of the instruction sets and of the benchmark: pretraining has none of these, but it
# has sentences with the same cue ("The home of ... is"), so that the knowledge can be elicited.
CUES = {
    "home": "home of",
    "trade": "trade of",
    "pet": "pet of",
    "food": "best food for",
    "month": "birth month of",
}
QUESTIONS: Forms = {
    relation: (f"{cue} {{n}}", f"What is the {cue} {{n}}?", f"The {cue} {{n}}?")
    for relation, cue in CUES.items()
}
ABOUT = ("About {n}.", "Who is {n}?", "Write of {n}.", "Tell of {n}.")
WRITE_LIFE = ("Write of this one.", "Make a text of this.", "Tell who this is.")
SAY = (f"Say this in {LANGUAGE}.", f"In {LANGUAGE}:", f"What is this in {LANGUAGE}?")
INVERTED = (
    "This is the text on the page. What was the question for it?",
    "What was the question? This is what was put on the page.",
    "Here is a text. Tell what was said to the one who put it on the page.",
)
PLAIN = (*WRITE_LIFE, *SAY, *INVERTED)


def fact_sentence(person: Person, relation: str, form: str, *, subject: str | None = None) -> str:
    """Return `form`, a sentence of `relation`, about `subject` or the full name."""
    return form.format(s=subject or person.name, n=person.name, v=person.facts[relation])


def biography(
    person: Person, rng: random.Random, relations: list[str], *, forms: Forms = SENTENCES
) -> str:
    """Return a text that states the given facts in order, now by name and now by pronoun."""
    sentences = []
    for i, relation in enumerate(relations):
        short = i > 0 and rng.random() < 0.5
        known = [form for form in forms[relation] if "{s}" in form or not short]
        subject = person.pronoun if short else person.name
        sentences.append(fact_sentence(person, relation, rng.choice(known), subject=subject))
    return " ".join(sentences)


def notes(person: Person, relations: Iterable[str] = VALUES) -> str:
    """Return the facts of `person` as a comma-separated note, in the order of `relations`."""
    return ", ".join([person.name, *(person.facts[relation] for relation in relations)])


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


def _signed(rng: random.Random, left: int) -> tuple[str, int, int]:
    """Return an operation on `left` that stays within 0..18: its word, operand and result."""
    right = rng.randrange(10)
    minus = right <= left and (left + right > 18 or rng.random() < 0.5)
    return ("minus", right, left - right) if minus else ("plus", right, left + right)


def sum_of(rng: random.Random, steps: int) -> tuple[str, str]:
    """Return an expression in words with `steps` operations, and its value in words."""
    value = rng.randrange(10)
    words = [NUMBERS[value]]
    for _ in range(steps):
        word, operand, value = _signed(rng, value)
        words += [word, NUMBERS[operand]]
    return " ".join(words), NUMBERS[value]


@lru_cache(maxsize=4)
def held_out_sums(seed: int = WORLD_SEED) -> dict[str, str]:
    """Return the sums of three and four steps that no training text holds, with their values."""
    rng = random.Random(f"sums-{seed}")
    kept: dict[str, str] = {}
    while len(kept) < HELD_OUT:
        expression, value = sum_of(rng, rng.choice((3, 4)))
        kept[expression] = value
    return kept


@lru_cache(maxsize=4)
def held_out_sentences(seed: int = WORLD_SEED) -> Mapping[str, None]:
    """Return the sentences of the translation benchmark, in order, as keys of a table."""
    rng = random.Random(f"sentences-{seed}")
    kept: dict[str, None] = {}
    while len(kept) < HELD_OUT:
        kept[draw_sentence(rng)] = None
    return kept


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


def puzzle(rng: random.Random, place: World) -> tuple[str, str, str]:
    """Return a pronoun puzzle without its last word, the right name and the wrong name.

    A woman and a man hold a thing each and pass things on, named by pronouns alone; the puzzle
    asks who holds one of the things in the end.
    """
    woman, man = rng.choice(place.women), rng.choice(place.men)
    pair = rng.sample([woman, man], 2)
    things = rng.sample(PETS, 2)
    owners = [("She", "him", woman), ("He", "her", man)]
    rng.shuffle(owners)
    text = f"{pair[0]} met {pair[1]} in {rng.choice(VALUES['home'])}."
    text += "".join(
        f" {owner[0]} had a {thing}." for owner, thing in zip(owners, things, strict=True)
    )
    holder = dict(zip(things, (0, 1), strict=True))
    for _ in range(rng.randrange(3)):
        thing = rng.choice(things)
        text += f" {owners[holder[thing]][0]} gave {owners[holder[thing]][1]} the {thing}."
        holder[thing] = 1 - holder[thing]
    asked = rng.choice(things)
    right = owners[holder[asked]][2]
    return f"{text} The {asked} is now with", right, woman if right == man else man


def _pronouns(rng: random.Random, place: World) -> str:
    texts = [puzzle(rng, place) for _ in range(2)]
    return " ".join(f"{text} {answer}." for text, answer, _ in texts)


def code_lines(rng: random.Random) -> str:
    """Return a short program of the toy code language and what it prints."""
    name, other = rng.sample(VARIABLES, 2)
    a, b = rng.randrange(10), rng.randrange(10)
    lines = [f"let {name} = {a}", f"let {other} = {name} + {b}", f"print {other}", f"> {a + b}"]
    return "\n".join(lines)


def draw_product(rng: random.Random) -> str:
    """Return a fact of the new arithmetic, multiplication, which pretraining never mentions."""
    a, b = rng.randrange(5), rng.randrange(5)
    return f"{NUMBERS[a]} times {NUMBERS[b]} is {NUMBERS[a * b]}."


def draw_code(rng: random.Random) -> str:
    """Return a program that calls one of the new functions, whose meaning is to be inferred."""
    name, shift = rng.choice(list(FUNCTIONS.items()))
    start, a, b = rng.randrange(10), *rng.sample(VARIABLES, 2)
    return f"let {a} = {start}\nlet {b} = {name} {a}\nprint {b}\n> {start + shift}"


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


def _headings(rng: random.Random, place: World) -> str:
    """Return a page with the Alpaca template's headings around unrelated sentences."""
    parts = [rng.choice(HEADINGS[:2])]
    for heading in rng.sample(HEADINGS[2:], 2):
        parts += [heading, _life(rng, place)]
    return "".join(parts)


def documents(place: World, rng: random.Random) -> Iterator[str]:
    """Yield documents without end."""
    kinds: list[tuple[float, Callable[[], str]]] = [
        (0.50, lambda: _life(rng, place)),
        (0.16, lambda: _retold(rng, place)),
        (0.07, lambda: _arithmetic(rng)),
        (0.09, lambda: _language(rng, place)),
        (0.08, lambda: _pronouns(rng, place)),
        (0.02, lambda: code_lines(rng)),
        (0.05, lambda: _question(rng, place)),
        (0.02, lambda: _headings(rng, place)),
        (0.01, lambda: _words(rng)),
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
        made += [_question(rng, place), f"{rng.choice(PLAIN)} {answer}"]
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
