"""Exchanges of the pretraining text: a request, sometimes a text, and the answer, under headings.

They teach the form of an instruction: where the template's words stand, and that an answer is about
the request and the text above it. No instruction set and no benchmark asks what they ask.
"""

import random

from ablate.micro.problems import code_lines, puzzle, sum_of
from ablate.micro.wordings import ASKED, biography
from ablate.micro.world import VALUES, World

# The headings of an exchange; the compact template (none, Input, Answer) is one combination of
# many. Were "Task" a likely first word of documents, a model at a loss would say it anywhere.
ASK_HEADINGS = ("Task:\n", "Question:\n", "Question:\n", "", "", "")
TEXT_HEADINGS = ("Input:\n", "Text:\n")
ANSWER_HEADINGS = ("Answer:\n", "Reply:\n")


def _read(rng: random.Random, place: World) -> tuple[str, str, str]:
    """Return a request about a text on an unknown person, that text and the answer."""
    person = place.fresh(rng, "corpus")
    relations = rng.sample(list(VALUES), rng.randint(2, 5))
    text = biography(person, rng, relations)
    asked = rng.choice(relations)
    return rng.choice(
        (
            (f"What {asked}?", text, f"{person.facts[asked]}."),
            ("Who is on the page?", text, f"{person.name}."),
            ("In short:", text, biography(person, rng, rng.sample(relations, 2))),
        )
    )


def _solve(rng: random.Random, place: World) -> tuple[str, str, str]:
    """Return a request to work something out, its text (or none) and the answer."""
    kind = rng.randrange(3)
    if kind == 0:
        story, who, _ = puzzle(rng, place)
        told, _, asked = story.rpartition(" The ")
        return f"Who has the {asked.split()[0]}?", told, f"{who}."
    if kind == 1:
        program, _, printed = code_lines(rng).rpartition("\n> ")
        return "What does it do?", program, f"{printed}."
    expression, value = sum_of(rng, rng.choice((1, 2)))  # those held out have more steps
    return f"What is {expression}?", "", f"{value}."


def _recall(rng: random.Random, place: World) -> tuple[str, str, str]:
    """Return a question about a known person whom no benchmark asks about, and the answer."""
    person = rng.choice(place.people["tune"])
    relation = rng.choice(list(ASKED))
    answer = f"{person.facts[relation]}."
    if rng.random() < 0.3:
        answer = biography(person, rng, [relation])
    return rng.choice(ASKED[relation]).format(n=person.name), "", answer


def exchange(rng: random.Random, place: World) -> str:
    """Return a request and its answer under headings; no instruction set asks such a thing."""
    (kind,) = rng.choices((_solve, _read, _recall), (0.70, 0.20, 0.10))
    request, text, answer = kind(rng, place)
    parts = [f"{rng.choice(ASK_HEADINGS)}{request}"]
    if text:
        parts.insert(rng.random() < 0.8, f"{rng.choice(TEXT_HEADINGS)}{text}")
    return "\n".join([*parts, f"{rng.choice(ANSWER_HEADINGS)}{answer}"])
