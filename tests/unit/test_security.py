"""What others made - models, records, tables - runs no code here and reaches no other file.

docs/security.md names these tests; each fails without the line that it guards.
"""

import base64
import builtins
import hashlib
import json
import os
import pickle
import re
import shutil
from types import SimpleNamespace

import jinja2
import numpy as np
import pandas as pd
import pytest

from ablate import paths
from ablate.adapters import weights
from ablate.commands import token_page
from ablate.data.backend import transformers_tokenizer
from ablate.data.jinja import compiled
from ablate.errors import UserError
from ablate.evaluate import tasks_index
from ablate.experiment import upkeep
from ablate.experiment.request import plan_grid
from ablate.models import folders, load
from ablate.pilots import ray as pilots_ray
from ablate.results import every_eval_ever, seal
from ablate.results.record import RECORD, digest
from ablate.results.store import Store
from analysis.engine.formula import design, parse
from analysis.report.build import build
from tests.stored import fill, put

MICRO = paths.conf_dir().parent / "ablate" / "micro" / "checkpoints" / "micro_0"
OWN_CODE = "import pathlib; pathlib.Path({marker!r}).write_text('ran')\nclass Evil: pass\n"


class Bomb:
    """What writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def model(tmp_path):
    """A model folder with code of its own, which transformers offers to run."""
    folder = tmp_path / "model"
    shutil.copytree(MICRO, folder)
    (folder / "evil.py").write_text(OWN_CODE.format(marker=str(tmp_path / "marker")))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qx0zv"}
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Qx0zv", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("read", [load._read, transformers_tokenizer])
def test_code_in_a_model_folder_is_not_run_and_nobody_is_asked(read, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # whoever sits there would consent
    with pytest.raises(UserError, match=r"model\.path="):
        read(model)
    assert not (tmp_path / "marker").exists()


def test_weights_are_read_from_safetensors_alone(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MICRO, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(UserError, match="alone is not read"):
        folders.weight_files(folder)
    with pytest.raises(UserError, match="safetensors"):
        load._read(folder)
    (tmp_path / "shard.bin").write_bytes(b"")
    for name in ("../shard.bin", "shard.bin", "../model.safetensors"):
        index = {"weight_map": {"a": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"which is no \.safetensors file beside it"):
            folders.weight_files(folder)
    assert not (tmp_path / "marker").exists()


def test_an_adapter_is_read_from_safetensors_alone(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    monkeypatch.setattr(weights, "changes_base", lambda _: False)
    monkeypatch.setattr(weights.registry, "method", lambda _: SimpleNamespace(adapts=True))
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors here"):
        weights.load(None, tmp_path, SimpleNamespace(adapter=None), streams=None)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "."])
def test_a_record_names_no_file_outside_of_its_folder(name, tmp_path):
    folder = tmp_path / "cells" / "k"
    folder.mkdir(parents=True)
    outside = tmp_path / "cells" / "outside"
    outside.write_text("mine")
    fill(folder, "k")
    found = outside.stat()
    mark = {"bytes": found.st_size, "changed_us": 0, "sha256": hashlib.sha256(b"mine").hexdigest()}
    body = json.loads((folder / RECORD).read_text()) | {"schema": 3}
    own = {"files": {name: mark}, "sha256": digest(body | {"files": {name: mark}})}
    (folder / RECORD).write_text(json.dumps(body | {"seal": own}))
    record, fault = seal.read(folder, "k")
    assert record is None
    assert "is not below it" in fault
    assert outside.stat().st_mtime_ns == found.st_mtime_ns


def test_links_in_the_records_of_others_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    put(theirs, "a")
    folder = put(theirs, "b")
    (folder / "weights").mkdir()
    (folder / "weights" / "x").symlink_to(secret)
    told = list(upkeep.merge(ours, [theirs]))
    assert Store(ours).present() == ["a"]
    assert any("weights/x is a link: not taken" in line for line in told)


@pytest.mark.parametrize("words", ["..", ".", "", "a/b", "../../x", "/x", "a\\b", "\0"])
def test_words_of_a_record_are_the_name_of_one_folder(words, tmp_path):
    name = every_eval_ever._folder_name(words)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name == every_eval_ever._folder_name(name)
    assert every_eval_ever._folder_name("Qwen2.5-0.5B") == "Qwen2.5-0.5B"


def test_names_of_columns_and_levels_run_nothing(tmp_path):
    marker = tmp_path / "marker"
    code = f"__import__('os').mkdir('{marker}')"
    names = [code, f"I({code})", "a.__class__", "{code}", "<script>alert(1)</script>", "</svg><b>"]
    draws = np.random.default_rng(0)
    table = pd.DataFrame({name: draws.normal(size=60) for name in names})
    table["level"] = draws.choice(["<script>alert(2)</script>", '"onload="x', "=1+1"], 60)
    table["score"] = draws.normal(size=60)
    for name in names:
        design(parse(f"score ~ `{name}`", table.columns), table)
    table.to_csv(tmp_path / "t.csv", index=False)
    page = build(tmp_path / "t.csv", tmp_path / "report").read_text()
    assert not marker.exists()
    # The explorer's data, which no browser runs, its program, and that of the page.
    assert len(re.findall(r"<script", page)) == 3
    assert page.count('<script type="application/octet-stream"') == 1
    assert "</svg><b>" not in page
    assert_two_scripts_may_run(page)


def assert_two_scripts_may_run(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    own = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy.startswith("default-src 'none'")
    assert f"script-src {own};" in policy
    assert page.index("Content-Security-Policy") < page.index("<style")


def test_the_page_of_tokens_may_run_no_script(monkeypatch):
    look = SimpleNamespace(title="<script>", examples=[], roles=[])
    monkeypatch.setattr(token_page, "look", lambda *_: look)
    monkeypatch.setattr(token_page, "facts", lambda _: [("<script>", "<script>")])
    page = token_page.html(None, 1)
    assert "<script>" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in page


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({}, {"include_dashboard": False}),
        ({"init": {"include_dashboard": True}}, {"include_dashboard": True}),
        ({"address": "auto"}, {}),
    ],
)
def test_a_cluster_of_its_own_has_no_dashboard(settings, given, monkeypatch, tmp_path):
    asked = {}

    def init(**more):
        asked.update(more)
        raise RuntimeError("far enough")

    monkeypatch.setattr(pilots_ray, "engine", lambda: SimpleNamespace(init=init))
    usual = {"address": None, "num_cpus": 1, "num_gpus": 0, "init": None}
    with pytest.raises(UserError, match="far enough"):
        pilots_ray.run(tmp_path / "order", 1, usual | settings)
    assert {k: v for k, v in asked.items() if k == "include_dashboard"} == given


def test_a_chat_template_reaches_no_python(tmp_path):
    for template in (
        "{{ messages.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% for x in range(10000000) %}{% endfor %}",
        "{{ messages.append(1) }}",
    ):
        with pytest.raises((jinja2.sandbox.SecurityError, jinja2.UndefinedError, OverflowError)):
            compiled(template).render(messages=[], tools=None)
    with pytest.raises(TypeError, match="no loader"):
        compiled("{% include '/etc/hostname' %}").render(messages=[])


def test_a_task_file_is_checked_without_its_functions(tmp_path):
    (tmp_path / "evil.py").write_text(OWN_CODE.format(marker=str(tmp_path / "marker")))
    file = tmp_path / "task.yaml"
    file.write_text("task: t\ndoc_to_text: !function evil.Evil\n")
    assert tasks_index.task_settings(file)["doc_to_text"] == "evil.Evil"
    tasks_index.check_tasks([str(file)])
    file.write_text("task: !!python/object/apply:os.mkdir ['marker']\n")
    with pytest.raises(UserError, match="not a task file"):
        tasks_index._read(file)
    assert not (tmp_path / "marker").exists()


def test_the_sweeper_cannot_be_replaced():
    with pytest.raises(UserError, match="cannot be replaced"):
        plan_grid(["hydra.sweeper._target_=os.system", "evaluate=none"])
