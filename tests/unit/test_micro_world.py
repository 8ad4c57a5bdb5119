"""The micro world and its pretraining text: determinism, disjoint groups, many wordings."""

import random
import time

import pytest

from ablate.micro import corpus, exchanges, problems, wordings
from ablate.micro.world import NUMBERS, RELATIONS, VALUES, translate, world


@pytest.fixture(scope="module")
def some_pages() -> list[str]:
    return corpus.pages(world(), rows=8000, seed=0)


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    world.cache_clear()
    first = world(7)
    world.cache_clear()
    assert world(7) == first
    assert world(8) != first


def test_no_name_is_in_two_groups_or_spare():
    place = world()
    names = [person.name for people in place.people.values() for person in people]
    assert len(names) == len(set(names))
    assert not set(names) & {f"{first} {last}" for first, last in place.spare_names}


def test_fresh_people_of_different_parts_share_no_name():
    place, rng = world(), random.Random(0)
    parts = ("train", "validation", "test", "benchmark", "corpus")
    drawn = {part: {place.fresh(rng, part).name for _ in range(400)} for part in parts}
    for part in parts:
        others = set().union(*(names for other, names in drawn.items() if other != part))
        assert not drawn[part] & others


def test_a_sentence_is_translated_word_by_word_in_the_new_order():
    lexicon = {"old": "A", "dog": "B", "sees": "C", "red": "D", "cat": "E"}
    assert translate("the old dog sees the red cat", lexicon) == "B A E D C"


def test_the_second_language_has_a_word_for_each_word():
    words = list(world().lexicon.values())
    assert len(words) == len(set(words))


def test_pages_are_the_same_again_and_take_seconds(some_pages):
    started = time.process_time()
    assert corpus.pages(world(), rows=8000, seed=0) == some_pages
    assert time.process_time() - started < 10
    assert corpus.pages(world(), rows=50, seed=1) != some_pages[:50]


def test_every_fact_is_told_in_at_least_three_wordings(some_pages):
    text = " ".join(some_pages)
    for person in world().people["source"][:20]:
        for relation in RELATIONS:
            told = (
                wordings.fact_sentence(person, relation, f) for f in wordings.SENTENCES[relation]
            )
            assert sum(sentence in text for sentence in told) >= 3


def test_no_page_tells_a_wrong_fact_about_a_known_person(some_pages):
    text = " ".join(some_pages)
    for person in world().people["asked"][:20]:
        wrong = [value for value in VALUES["home"] if value != person.facts["home"]]
        assert not any(f"The home of {person.name} is {value}." in text for value in wrong)


def test_exchanges_ask_nothing_that_instructions_or_benchmarks_ask():
    rng, place = random.Random(5), world()
    made = [exchanges.exchange(rng, place) for _ in range(3000)]
    text = "\n".join(made)
    assert all(any(heading in one for heading in exchanges.ANSWER_HEADINGS) for one in made)
    assert not any(request in text for request in wordings.PLAIN)
    for group in ("source", "asked", "validation", "test"):
        assert not any(person.name in text for person in place.people[group])
    people = place.people["tune"]
    for relation, forms in wordings.QUESTIONS.items():
        asked = [form.format(n=person.name) for form in forms for person in people]
        assert not any(f"\n{question}\n" in text for question in asked), relation


def _value(expression: str) -> int:
    left, *rest = expression.split()
    total = NUMBERS.index(left)
    for sign, word in zip(rest[::2], rest[1::2], strict=True):
        total += NUMBERS.index(word) * (1 if sign == "plus" else -1)
    return total


def test_sums_are_right_and_benchmark_sums_are_in_no_page(some_pages):
    held_out = problems.held_out_sums()
    assert all(NUMBERS[_value(expression)] == value for expression, value in held_out.items())
    told = {
        expression
        for page in some_pages
        for line in page.replace("\n", " ").split(". ")
        if " is " in line
        for expression in [line.split(" is ")[0]]
    }
    assert any("plus" in expression for expression in told)
    assert not told & set(held_out)


def test_benchmark_sentences_are_translated_in_no_page(some_pages):
    text = " ".join(some_pages)
    assert not any(f"{english} is " in text for english in problems.held_out_sentences())


def test_a_puzzle_is_answered_by_who_was_given_the_thing_last():
    rng = random.Random(3)
    for _ in range(200):
        text, right, wrong = problems.puzzle(rng, world())
        thing = text.split("The ")[-1].split(" is now")[0]
        woman = right if right in world().women else wrong
        man = wrong if woman == right else right
        holder = woman if f"She had a {thing}." in text else man
        for sentence in text.split(". "):
            if sentence.startswith("She gave") and sentence.endswith(thing):
                holder = man
            if sentence.startswith("He gave") and sentence.endswith(thing):
                holder = woman
        assert holder == right
