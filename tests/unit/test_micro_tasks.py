"""The micro benchmarks: balanced answers, one-token options, right scores, the same bytes."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

import ablate.micro
from ablate.micro import corpus, scoring, tasks, tokenizer
from ablate.micro.world import world

CHECKPOINT = Path(ablate.micro.__file__).parent / "checkpoints" / "micro_0"
CHOICE = [name for name, info in tasks.TASKS.items() if info.task_type == "mc"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def micro_tokenizer() -> Tokenizer:
    return tokenizer.train_tokenizer(corpus.vocabulary_texts(world(), rows=5000))


def test_files_are_written_once_and_the_same_again(cache, tmp_path_factory, monkeypatch):
    folder = tasks.materialise()
    first = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.jsonl")}
    stamp = folder.stat().st_mtime_ns
    assert tasks.materialise() == folder
    assert folder.stat().st_mtime_ns == stamp
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path_factory.mktemp("other")))
    tasks.items.cache_clear()
    tasks.contents.cache_clear()
    again = tasks.materialise()
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*.jsonl")} == first
    assert not list(cache.rglob(".draft-*"))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_thousand_items_and_shots_that_are_none_of_them(name):
    test, shots = tasks.items()[name]
    assert len(test) == tasks.ITEMS
    assert len(shots) == tasks.SHOTS
    prompts = Counter(item["prompt"] for item in test)
    assert len(prompts) > 0.99 * tasks.ITEMS
    assert not set(prompts) & {shot["prompt"] for shot in shots}


@pytest.mark.parametrize("name", CHOICE)
def test_positions_of_the_answer_are_balanced(name):
    test, _ = tasks.items()[name]
    options = len(test[0]["choices"])
    counts = Counter(item["answer"] for item in test)
    assert 1 / options == tasks.TASKS[name].chance
    assert min(counts.values()) > 0.8 * tasks.ITEMS / options
    assert all(len(set(item["choices"])) == options for item in test)


@pytest.mark.parametrize("name", CHOICE)
def test_every_option_is_one_token(name, micro_tokenizer):
    delimiter = " " if tasks.TASKS[name].side == "source" else ""
    for item in tasks.items()[name][0][:100]:
        context = micro_tokenizer.encode(item["prompt"]).ids
        for option in item["choices"]:
            whole = micro_tokenizer.encode(item["prompt"] + delimiter + option).ids
            assert whole[:-1] == context


@pytest.mark.parametrize("name", tasks.TASKS)
def test_prompts_are_short(name, micro_tokenizer):
    longest = max(len(micro_tokenizer.encode(i["prompt"]).ids) for i in tasks.items()[name][0])
    assert longest < (60 if tasks.TASKS[name].task_type == "mc" else 70)


@pytest.mark.parametrize("name", ["micro_translation", "micro_lives"])
def test_the_target_fits_the_tokens_allowed_and_scores_one(name, micro_tokenizer):
    score = {"micro_translation": scoring.sentence_chrf, "micro_lives": scoring.facts_stated}[name]
    allowed = tasks.TASKS[name].max_new_tokens
    for item in tasks.items()[name][0][:50]:
        ids = micro_tokenizer.encode(item["target"], add_special_tokens=False).ids
        assert len(ids) + 1 <= allowed
        assert list(score(item, [micro_tokenizer.decode(ids)]).values()) == [pytest.approx(1.0)]


def test_the_first_half_of_the_knowledge_items_asks_each_fact_once():
    for name in ("micro_knowledge", "micro_questions"):
        first = [tuple(item["triple"]) for item in tasks.items()[name][0][:500]]
        assert len(set(first)) == 500


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Ana Bor lives in Osta. She keeps a dog.", 1.0),
        ("She keeps a dog. The home of Ana Bor is Osta.", 1.0),
        ("Ana Bor lives in Osta.", 0.5),
        ("Ana Bor lives in Osmi. She keeps a dog.", 0.5),
        ("Ana Bor lives in Osta. She keeps a dog. She keeps a cat.", 2 / 3),
        ("Ana Hol lives in Osta. Ana Hol keeps a dog.", 0.0),
        ("Osta dog", 0.0),
        ("", 0.0),
    ],
)
def test_statements_are_scored_against_the_facts(said, score):
    doc = {"name": "Ana Bor", "facts": {"home": "Osta", "pet": "dog"}}
    assert scoring.facts_stated(doc, [said])["facts"] == pytest.approx(score)


def test_chrf_is_sacrebleus():
    from sacrebleu import sentence_chrf

    doc = {"target": "kano rulo tivi."}
    peer = sentence_chrf("kano ruka", ["kano rulo tivi."]).score / 100
    assert scoring.sentence_chrf(doc, [" kano ruka\nmore"])["chrf"] == pytest.approx(peer)


def test_the_yaml_says_what_the_table_says(cache):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    folder = tasks.materialise()
    for name, info in tasks.TASKS.items():
        written = yaml.load((folder / f"{name}.yaml").read_text(), Loader=Loader)
        assert written["task"] == name
        assert written["metadata"]["task_type"] == info.task_type
        assert written["metadata"]["version"] == tasks.version()
        lines = (folder / name / "test.jsonl").read_text().splitlines()
        assert len(lines) == tasks.ITEMS
        assert json.loads(lines[0]) == tasks.items()[name][0][0]


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_reads_the_tasks(cache):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks.materialise()), include_defaults=False)
    loaded = manager.load_task_or_group(["micro_questions", "micro_lives"])
    found = {str(name): task for name, task in loaded.items()}
    questions = found["micro_questions"]
    first = next(iter(questions.test_docs()))
    assert questions.doc_to_text(first).endswith("\nAnswer:\n")
    assert questions.doc_to_choice(first)[questions.doc_to_target(first)] == first["target"]
    assert len(list(found["micro_lives"].fewshot_docs())) == tasks.SHOTS
