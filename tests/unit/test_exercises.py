"""The benchmarks of products and programs: what they ask, and that right answers score one."""

import json

import pytest
import yaml
from tokenizers import Tokenizer as Micro
from transformers import AutoTokenizer

from ablate.config.schema import Evaluate, Execution
from ablate.evaluate import harness
from ablate.evaluate.tasks_index import find, task_version
from ablate.micro import exercises, instructions, tasks
from ablate.micro.exercises import items, programs_that_print, ran
from ablate.micro.problems import FUNCTIONS, NUMBERS
from tests.architectures import model_of
from tests.unit.test_micro_tasks import CHECKPOINT


@pytest.mark.parametrize("name", exercises.TASKS)
def test_a_target_is_the_whole_of_a_right_answer(name):
    """It fits the tokens allowed, and one that is wrong differs from it."""
    tokenizer = Micro.from_file(str(CHECKPOINT / "tokenizer.json"))
    for item in items()[name]:
        ids = tokenizer.encode(item["target"], add_special_tokens=False).ids
        assert len(ids) + 1 <= exercises.TASKS[name].max_new_tokens
        assert tokenizer.decode(ids).strip() == item["target"]
    assert len({item["prompt"] for item in items()[name]}) == len(items()[name]) >= 45


def test_products_are_right():
    for item in items()["micro_products"]:
        asked = item["prompt"].lower()
        words = [w.strip("?.") for w in asked.split()]
        at = words.index("times")
        value = NUMBERS.index(words[at - 1]) * NUMBERS.index(words[at + 1])
        assert item["target"] == NUMBERS[value]


def test_programs_print_what_their_target_says():
    for item in items()["micro_programs"]:
        program = item["prompt"][item["prompt"].index("let ") :]
        lines = [line for line in program.split("\n") if line.startswith(("let ", "print "))]
        assert ran("\n".join(lines))[0] == int(item["target"])


@pytest.mark.parametrize(
    ("program", "printed", "used"),
    [
        ("let a = 3\nlet b = zum a\nprint b", 3 + FUNCTIONS["zum"], {"3", "zum"}),
        ("let a = 3\nlet b = a + 4\nprint b", 7, {"3", "+"}),
        (" let a = 3 \nprint a\n", 3, {"3"}),
        ("let a = 3\nlet b = zum c\nprint b", None, {"3"}),  # c has no value
        ("let a = 3\nlet b = wat a\nprint b", None, {"3"}),
        ("let a = 3", None, {"3"}),  # prints nothing
        ("let a = 3\nprint a\nprint a", None, {"3"}),
        ("print 7", None, set()),
        ("import os", None, set()),
        ("", None, set()),
    ],
)
def test_the_code_language_is_run_by_its_own_rules(program, printed, used):
    assert ran(program) == (printed, frozenset(used))


def test_a_program_must_add_to_what_was_asked_for():
    doc = {"start": 3, "printed": 7}
    right = "let a = 3\nlet b = a + 4\nprint b"
    plain, other = "let a = 7\nprint a", "let a = 2\nlet b = a + 5\nprint b"
    assert programs_that_print(doc, [[right, plain, other, ""]]) == {"pass@1": 0.25, "pass@4": 1.0}


def test_no_row_asks_for_a_program_that_the_benchmark_asks_for():
    asked = {(item["start"], item["printed"]) for item in items()["micro_writing"]}
    assert len(asked) == 30
    seen = set()
    for part in ("train", "validation", "test"):
        for row in instructions.rows("micro_writing", part, {}):
            printed, used = ran(row["output"])
            (start,) = used - {"+"}
            assert f" {printed}" in row["instruction"]
            assert f" {start}" in row["instruction"]
            seen.add((int(start), printed))
    assert not seen & asked
    assert len(seen) == 70
    for item in items()["micro_writing"]:
        assert programs_that_print(item, [[item["target"]]]) == {"pass@1": 1.0}


def test_the_six_benchmarks_keep_their_version():
    """A score of theirs asked for before is the same score."""
    assert task_version("micro_lives") == f"micro-{tasks.version()}"
    assert task_version("micro_writing") == f"micro-{exercises.version()}"
    assert tasks.version() == "9598fb5a022b"
    assert find("micro_products").kind == "micro"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path))
    return tmp_path


def test_lm_eval_scores_them(cache, tokenizer_folders):
    """Random weights know nothing; eight answers are drawn, and kept, to each item of the last."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folders["llama"])
    asked = Evaluate(name="e", tasks=tuple(exercises.TASKS), limit=3)
    found = harness.score(model_of(), tokenizer, asked, execution=Execution())
    said = {(one.task, one.metric): one for one in found}
    assert set(said) == {
        ("micro_products", "exact_match,answer"), ("micro_programs", "exact_match,answer"),
        ("micro_writing", "pass@1,all"), ("micro_writing", "pass@8,all"),
    }  # fmt: skip
    for one in found:
        assert (one.value, one.n, one.unit, one.side) == (0.0, 3, "fraction", "target")
        assert one.higher_is_better
        assert one.version == exercises.version()
    drawn = json.loads(said["micro_writing", "pass@8,all"].answers[0].output)
    assert len(drawn) == exercises.DRAWN
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (" twelve.", True),
        ("twelve", True),
        ("Twelve.", False),
        (" six. twelve.", False),
        ("", False),
    ],
)
def test_an_answer_is_read_as_gsm8k_reads_it(said, right, cache):
    """By the task's own filter and metric."""
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    folder = exercises.materialise()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = manager.load(["micro_products"])["tasks"]["micro_products"]
    doc = {"prompt": "", "target": "twelve"}
    one = Instance("generate_until", doc, ("", {}), 0)
    one.resps = [said]
    task._instances = [one]
    task.apply_filters()
    (answer,) = one.filtered_resps.values()
    assert (task.process_results(doc, [answer])["exact_match"] == 1.0) == right


def test_the_yaml_has_no_function_that_is_not_there(cache):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    folder = exercises.materialise()
    assert exercises.materialise() == folder
    for name in exercises.TASKS:
        written = yaml.load((folder / f"{name}.yaml").read_text(), Loader=Loader)
        assert written["task"] == name
        for place in (written["custom_dataset"], written.get("process_results")):
            module, _, function = (place or "ablate.micro.exercises.ran").rpartition(".")
            assert hasattr(__import__(module, fromlist=["x"]), function)
