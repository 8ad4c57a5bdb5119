"""The forms of facts, questions and requests, and the texts that are made of them."""

import random
from collections.abc import Iterable, Mapping

from ablate.micro.world import VALUES, Person

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

# The sentences of the answers that the sets teach: a style that pretraining has not shown.
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
