"""What could be trained but not scored, or not with the trained tokens, is refused beforehand."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import yaml

from ablate import app
from ablate.config.schema import Dataset, Evaluate, Model
from ablate.errors import UserError
from ablate.evaluate import preflight
from ablate.evaluate.scoring import Wanted
from ablate.experiment.identity import Unit
from ablate.paths import conf_dir

pytestmark = pytest.mark.usefixtures("own_cache")
TASK = {
    "task": "swallow", "dataset_path": "json", "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": "Say {{q}}", "doc_to_target": 0,
    "target_delimiter": "", "metric_list": [{"metric": "acc"}],
}  # fmt: skip
MICRO = conf_dir().parent / "ablate" / "micro" / "checkpoints" / "micro_0"


@pytest.fixture
def wanted(tmp_path):
    """A task file with some options, asked of a micro checkpoint, and rows to train on."""

    def make(options):
        (tmp_path / "q.jsonl").write_text(json.dumps({"q": "Hello"}) + "\n")
        rows = [{"prompt": f"Say {i}", "completion": "Fine."} for i in range(20)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(tmp_path / "q.jsonl")}}
        task = TASK | {"dataset_kwargs": files, "doc_to_choice": options}
        path = tmp_path / f"swallow{len(options[0])}.yaml"
        path.write_text(yaml.safe_dump(task))
        dataset = Dataset(
            name="d", source="local", path=str(tmp_path / "rows.jsonl"), template="plain"
        )
        cell = SimpleNamespace(
            evaluate=Evaluate(name="e", tasks=(str(path),)),
            dataset=dataset,
            model=Model(name="m", source="local", path=str(MICRO)),
        )
        unit = Unit("task", str(path), "key")
        return [Wanted(cell, unit, SimpleNamespace(folder=MICRO))]

    return make


def test_what_is_sound_passes(wanted):
    preflight.check(wanted([" yes", " no"]) * 3)


def test_an_answer_without_a_token_of_its_own_is_refused_in_one_line(wanted):
    said = r"evaluate.tasks=.*swallow1.yaml: item 0: the answer 'd' has no token"
    with pytest.raises(UserError, match=said) as error:
        preflight.check(wanted(["d", " no"]))
    assert "\n" not in str(error.value)


def test_a_task_whose_data_cannot_be_had_is_refused(wanted, tmp_path):
    asked = wanted([" yes", " no"])
    (tmp_path / "q.jsonl").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        preflight.check(asked)


@pytest.mark.parametrize("other", ["rows", "prompts"])
def test_other_tokens_in_scoring_are_refused(other, wanted, monkeypatch):
    """As if transformers built another tokenizer than the one that cut the rows."""
    real = preflight.load_tokenizer
    word = "Fine" if other == "rows" else "Hello"

    def differs(folder, template):
        tokenizer = type(real(folder, template)).from_pretrained(folder)

        class Other(type(tokenizer)):
            def __call__(self, text, **settings):
                changed = text.replace(word, word.lower()) if isinstance(text, str) else text
                return super().__call__(changed, **settings)

        tokenizer.__class__ = Other
        return tokenizer

    monkeypatch.setattr(preflight, "load_tokenizer", differs)
    setting = "dataset.path" if other == "rows" else "evaluate.tasks"
    with pytest.raises(UserError, match=rf"^{setting}=.*: training and scoring cut its text"):
        preflight.check(wanted([" yes", " no"]))


def test_a_question_that_scoring_asks_otherwise_is_refused(wanted, monkeypatch):
    """As if scoring gave the chat template other messages than training."""
    (one,) = wanted([" yes", " no"])
    one.cell.dataset = dataclasses.replace(one.cell.dataset, template="chat")
    preflight.check([one])
    real = preflight.chat_template
    other = [{"role": "user", "content": "Say nothing"}]
    monkeypatch.setattr(preflight, "chat_template", lambda t: lambda messages: real(t)(other))
    said = r"dataset.path=.*line 1: .* asks its question otherwise in scoring .* near '0"
    with pytest.raises(UserError, match=said):
        preflight.check([one])


def test_a_run_is_refused_before_anything_is_trained(wanted, tmp_path, capsys):
    """The command line: exit status 2, one line, no cell."""
    (one,) = wanted(["d", " no"])
    shutil.copytree(MICRO, tmp_path / "model")
    status = app.main(
        [
            "-m", "hydra/launcher=basic", "single=true", "dataset=local",
            f"dataset.path={tmp_path / 'rows.jsonl'}", "dataset.template=plain", "model=local",
            f"model.path={tmp_path / 'model'}", "adapter=lora", "rank=2", "train.lr=1e-3",
            "train.max_steps=1", f"evaluate.tasks=[{one.unit.name}]", "execution.device=cpu",
            f"out={tmp_path / 'o'}", "report=false",
        ]
    )  # fmt: skip
    assert status == 2
    assert "has no token of its own" in capsys.readouterr().err
    assert not list((tmp_path / "o" / "cells").glob("*"))
