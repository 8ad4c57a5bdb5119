"""The small world behind the embedded default: people, their facts, numbers and a second language.

Everything is drawn from one seed. A fact is a triple (entity, relation, value); entities are people
named by a first and a last name, so that a name is a pair of common words and a fact has to be
remembered for the pair. People come in groups that never mix:

    source      in pretraining only; their facts are the source-knowledge benchmark
    tune        in pretraining and in the instruction sets
    asked       in pretraining only; the question-answering benchmark asks about them
    validation  in pretraining and in the validation rows of the instruction sets
    test        in pretraining and in the test rows of the instruction sets
    fresh       never in pretraining: drawn on demand for texts that state the facts themselves
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

WORLD_SEED = 1873
GROUPS: Mapping[str, int] = {
    "source": 120,
    "tune": 120,
    "asked": 120,
    "validation": 20,
    "test": 20,
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRADES = _words(
    "baker weaver potter miner sailor farmer tailor hunter singer writer "
    "dancer painter driver smith cook nurse judge guard clerk monk"
)
PETS = _words("dog cat goat horse duck hen pig cow fox crow frog bee ram hare wolf bear")
FOODS = _words(
    "bread soup rice plums beans fish cheese honey apples pears nuts eggs corn cake milk tea"
)
MONTHS = _words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")
VALUES: Mapping[str, tuple[str, ...]] = {
    "home": tuple(
        a + b for a in ("Os", "Var", "Tel", "Mor", "Kel") for b in ("ta", "dun", "mi", "gar")
    ),
    "trade": TRADES,
    "pet": PETS,
    "food": FOODS,
    "month": MONTHS,
}
RELATIONS = tuple(VALUES)
ADJECTIVES = _words("red old small big sad wise black white young happy")
VERBS = _words("sees finds follows hears likes fears helps chases calls wants")
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
)


Triple = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Person:
    """A person: a name, a gender and one value for each relation."""

    first: str
    last: str
    female: bool
    facts: Mapping[str, str]

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first} {self.last}"

    @property
    def pronoun(self) -> str:
        """The pronoun that opens a sentence."""
        return "She" if self.female else "He"

    @property
    def possessive(self) -> str:
        """The possessive pronoun that opens a sentence."""
        return "Her" if self.female else "His"

    @property
    def triples(self) -> tuple[Triple, ...]:
        """Every fact as (entity, relation, value)."""
        return tuple((self.name, relation, value) for relation, value in self.facts.items())


@dataclass(frozen=True, slots=True)
class World:
    """The facts of the world: names, people by group and the second language's words."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    lasts: tuple[str, ...]
    people: Mapping[str, tuple[Person, ...]]
    spare_names: tuple[tuple[str, str], ...]
    lexicon: Mapping[str, str]

    def fresh(self, rng: random.Random, part: str) -> Person:
        """Return a new person whose name no other part and no pretraining text uses."""
        parts = ("train", "validation", "test", "benchmark", "corpus")
        first, last = rng.choice(self.spare_names[parts.index(part) :: len(parts)])
        return _person(rng, first, last, female=first in self.women)


def _syllables(rng: random.Random, starts: str, ends: str, n: int) -> list[str]:
    """Return `n` distinct words, each one start and one end of the space-separated lists."""
    words = [a + b for a in starts.split() for b in ends.split()]
    return rng.sample(words, n)


def _person(rng: random.Random, first: str, last: str, *, female: bool) -> Person:
    facts = {relation: rng.choice(VALUES[relation]) for relation in RELATIONS}
    return Person(first, last, female, facts)


def _lexicon(rng: random.Random) -> dict[str, str]:
    """Return the second language's word for each English noun, adjective and verb."""
    syllables = _words("ka no ru lo ti me pu sha vi do")
    words = [a + b for a in syllables for b in syllables if a != b]
    english = [*PETS, *ADJECTIVES, *VERBS]
    return dict(zip(english, rng.sample(words, len(english)), strict=True))


@lru_cache(maxsize=4)
def world(seed: int = WORLD_SEED) -> World:
    """Return the world of `seed`: the same objects for the same seed."""
    rng = random.Random(f"world-{seed}")
    starts = "Ba Be Da Do Fa Ga Ha Jo Ka La Li Ma Mi Na Pe Ra Ro Sa Ta Va"
    women = tuple(_syllables(rng, starts, "na ra li sa", 24))
    men = tuple(_syllables(rng, starts, "ko rim don bo", 24))
    lasts = tuple(
        _syllables(
            rng,
            "Hol Mar Ster Win Bor Cal Dun Fen Gil Lor Pen Tor Har Kel Var",
            "man ley wick ford well",
            72,
        )
    )
    names = [(first, last) for first in (*women, *men) for last in lasts]
    rng.shuffle(names)
    people: dict[str, tuple[Person, ...]] = {}
    for group, size in GROUPS.items():
        chosen, names = names[:size], names[size:]
        people[group] = tuple(_person(rng, f, last, female=f in women) for f, last in chosen)
    return World(women, men, lasts, people, tuple(names), _lexicon(rng))


def translate(sentence: str, lexicon: Mapping[str, str]) -> str:
    """Return the second language's sentence: no articles, adjectives after nouns, verb at the end.

    Args:
        sentence: "the ADJECTIVE NOUN VERB the ADJECTIVE NOUN".
        lexicon: the word for each English word.
    """
    _, adjective, noun, verb, _, adjective_2, noun_2 = sentence.split()
    order = (noun, adjective, noun_2, adjective_2, verb)
    return " ".join(lexicon[word] for word in order)


def draw_sentence(rng: random.Random) -> str:
    """Return a random English sentence that `translate` understands."""
    a, b = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES)
    return f"the {a} {rng.choice(PETS)} {rng.choice(VERBS)} the {b} {rng.choice(PETS)}"
