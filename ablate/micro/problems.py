"""Things to work out: sums, pronoun puzzles and programs, and what the benchmarks hold back."""

import random
from collections.abc import Mapping
from functools import lru_cache

from ablate.micro.world import NUMBERS, PETS, VALUES, WORLD_SEED, World, draw_sentence

HELD_OUT = 1100
VARIABLES = tuple("abcdefgh")
FUNCTIONS = {
    f"{a}{b}": 3 * i + j for i, a in enumerate("zuvex") for j, b in enumerate(("ip", "um", "ot"))
}


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


def code_lines(rng: random.Random) -> str:
    """Return a short program of the toy code language and what it prints."""
    name, other = rng.sample(VARIABLES, 2)
    a, b = rng.randrange(10), rng.randrange(10)
    lines = [f"let {name} = {a}", f"let {other} = {name} + {b}", f"print {other}", f"> {a + b}"]
    return "\n".join(lines)


def draw_product(rng: random.Random) -> str:
    """Return a fact of the new arithmetic, multiplication, which pretraining never mentions."""
    return product_fact(rng.randrange(5), rng.randrange(5))


def product_fact(a: int, b: int) -> str:
    """Return one such fact; both numbers are below 5."""
    return f"{NUMBERS[a]} times {NUMBERS[b]} is {NUMBERS[a * b]}."


@lru_cache(maxsize=4)
def held_out_outputs(seed: int = WORLD_SEED) -> tuple[tuple[int, int], ...]:
    """Return the starts and printed numbers that no row on writing programs asks for.

    Three of the ten numbers that an addition to each of the ten starts can print.
    """
    rng = random.Random(f"outputs-{seed}")
    pairs = [(start, sorted(rng.sample(range(10), 3))) for start in range(10)]
    return tuple((start, start + added) for start, some in pairs for added in some)


def draw_code(rng: random.Random) -> str:
    """Return a program that calls one of the new functions, whose meaning is to be inferred."""
    name, shift = rng.choice(list(FUNCTIONS.items()))
    start, a, b = rng.randrange(10), *rng.sample(VARIABLES, 2)
    return f"let {a} = {start}\nlet {b} = {name} {a}\nprint {b}\n> {start + shift}"
