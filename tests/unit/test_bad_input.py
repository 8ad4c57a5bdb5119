"""Every kind of bad input: one clear line, exit status 2, nothing trained, nothing lost."""

import json
import re
import shutil

import pytest

from ablate import cli
from ablate.paths import conf_dir

GOOD = [{"instruction": f"Say {i}.", "input": "", "output": f"{i} it is."} for i in range(40)]
BASE = ["evaluate=none", "train.lr=1e-3", "train.max_steps=1"]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of broken things, by name."""
    root = tmp_path_factory.mktemp("inputs")
    micro = conf_dir().parent / "ablate" / "micro" / "checkpoints" / "micro_0"
    texts = {
        "good.jsonl": jsonl(GOOD),
        "empty.jsonl": "",
        "broken.jsonl": jsonl(GOOD[:3]) + '{"instruction": "half\n' + jsonl(GOOD[3:]),
        "column.jsonl": jsonl([{"instruction": "a", "outptu": "b"}] * 9),
        "answerless.jsonl": jsonl([*GOOD, {"instruction": "a", "input": "", "output": ""}]),
        "typed.jsonl": jsonl([*GOOD, {"instruction": "a", "input": "", "output": 3}]),
        "talk.jsonl": jsonl([{"messages": [{"role": "wizard", "content": "a"}]}] * 9),
        "long.jsonl": jsonl([row | {"instruction": "word " * 600} for row in GOOD * 2]),
        "data.xyz": "a,b\n",
        "good.csv": "a,score\n" + "x,1\ny,2\nx,1.5\ny,2.6\n" * 3,
        "notjson.json": "{",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    (root / "hollow").mkdir()
    for name in ("t5", "untold", "wordless", "weightless", "encoder"):
        shutil.copytree(micro, root / name)
    settings = json.loads((micro / "config.json").read_text())
    t5 = settings | {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    (root / "t5" / "config.json").write_text(json.dumps(t5))
    bert = settings | {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    (root / "encoder" / "config.json").write_text(json.dumps(bert))
    (root / "untold" / "config.json").unlink()
    (root / "wordless" / "tokenizer.json").unlink()
    (root / "weightless" / "model.safetensors").unlink()
    return root


def local(name):
    return ["dataset=local", f"dataset.path={{files}}/{name}"]


CASES = {
    "masking level": (["masking=instructoin"], "instruction"),
    "adapter level": (["adapter=lorra"], "lora"),
    "two letters the wrong way round": (["adapter=lroa"], "Did you mean 'lora'?"),
    "own model, source forgotten": (["model.path=./mine"], "write model=local beside it"),
    "own data, source forgotten": (["dataset.path=./mine.jsonl"], "write dataset=local beside it"),
    "no row left for validation": (["dataset.splits.train=[0,1]"], r"an empty part as \[1, 1\]"),
    "dataset level": (["dataset=mikro"], "micro"),
    "model level": (["model=micro_9"], "micro_"),
    "evaluate level": (["evaluate=nothing"], "none"),
    "study": (["study=plww"], "plw"),
    "scale of a study": (["study=plw", "scale=huge"], "paper"),
    "negative PLW": (["plw=-0.1"], r"plw=-0.1.*\[0, 1\]"),
    "PLW above one": (["plw=0,1.5"], r"plw=1.5.*\[0, 1\]"),
    "PLW in words": (["plw=some"], "plw=some.*number"),
    "completion weight": (["completion_weight=2"], r"\[0, 1\]"),
    "nothing to train": (["completion_weight=0"], "nothing is left to train"),
    "null where all is meant": (["placement.layers=null"], "placement.layers=null: must be all"),
    "rank zero": (["rank=0"], "at least 1"),
    "rank larger than a matrix": (["rank=4,4096"], "4096.*at most 64"),
    "fractional rank": (["rank=2.5"], "whole number"),
    "negative seed": (["seed=-1"], "seed=-1"),
    "learning rate": (["train.lr=-1"], "train.lr=-1"),
    "learning rate in words": (["train.lr=fast"], "train.lr=fast.*number"),
    "no epochs": (["train.epochs=0"], "above 0, at most 10000"),
    "no batch": (["train.batch_size=0"], "at least 1"),
    "short rows": (["train.max_length=4"], "at least 8"),
    "warm-up": (["train.warmup_ratio=2"], r"\[0, 1\)"),
    "schedule": (["train.schedule=cosin"], "cosine"),
    "optimizer": (["optimizer=adamm"], "adamw"),
    "optimizer rule": (["optimizer.kind=adamm"], "adamw"),
    "init": (["init=pisa"], "pissa"),
    "init without a LoRA": (["init=pissa", "adapter=mora", "train.lr=1e-3"], "init.*mora"),
    "optimizer on another method": (
        ["optimizer=lora_fa", "adapter=dora", "train.lr=1e-3"],
        "optimizer.*dora",
    ),
    "regulariser": (["regulariser=klm"], "kl"),
    "base precision": (["base_precision=int4"], "nf4"),
    "layer": (["placement.layers=[7]"], "3 layers"),
    "placement of no adapter": (["adapter=full", "placement=mlp"], "placement=mlp"),
    "precision": (["train.precision=fp8"], "bf16"),
    "clipping": (["train.clip=-1"], "positive"),
    "betas": (["train.betas=[0.9]"], "2 values"),
    "boundary": (["train.boundary=word"], "offset"),
    "normaliser": (["loss.normaliser=wieght"], "weight"),
    "scope": (["loss.scope=global"], "batch"),
    "smoothing": (["loss.label_smoothing=1"], r"\[0, 1\)"),
    "scope with packing": (
        ["loss.scope=microbatch", "execution.layout=packed"],
        "microbatch.*packed",
    ),
    "unknown setting": (["learning_rate=0.1"], "learning_rate"),
    "misspelt setting": (["train.epoch=1"], "train.epochs"),
    "no override": (["plw"], "key=value"),
    "two lines": (["plw=0\nseed=1"], "not an override; write key=value in one line"),
    "secret in a cell": (["dataset.subset=${oc.env:HOME}"], "refused"),
    "embeddings": (["embeddings=freezed"], "frozen"),
    "adapter option": (["adapter.options.dropout=2"], r"\[0, 1\)"),
    "unknown adapter option": (["+adapter.options.dropuot=0.1"], "dropout"),
    "adapted module": (["placement.modules=[q_porj]"], "q_proj"),
    "splits that overlap": (["dataset.splits.test=[0.5,1.0]"], "once only"),
    "no rows wanted": (["dataset.max_rows=0"], "positive"),
    "no path": (["dataset=local"], "dataset.path"),
    "missing file": (local("nowhere.jsonl"), "nowhere.jsonl"),
    "file type": (local("data.xyz"), "xyz"),
    "empty file": (local("empty.jsonl"), "empty|no row"),
    "broken JSON line": (local("broken.jsonl"), "line 4"),
    "broken JSON": (local("notjson.json"), "notjson.json"),
    "missing column": (local("column.jsonl"), "output"),
    "row without a completion": (local("answerless.jsonl"), "completion|output|answer"),
    "wrong type": (local("typed.jsonl"), "output"),
    "unknown speaker": ([*local("talk.jsonl"), "dataset.template=chat"], "wizard"),
    "folder without data": (local("hollow"), "hollow"),
    "nothing left after truncation": ([*local("long.jsonl"), "train.max_length=64"], "max_length"),
    "missing model": (["model=local", "model.path={files}/nowhere"], "nowhere"),
    "encoder-decoder": (["model=local", "model.path={files}/t5"], "causal"),
    "encoder": (["model=local", "model.path={files}/encoder"], "causal"),
    "no config.json": (["model=local", "model.path={files}/untold"], "config.json"),
    "no tokenizer": (["model=local", "model.path={files}/wordless"], "tokenizer.json"),
    "no weights": (["model=local", "model.path={files}/weightless"], "safetensors"),
    "too few positions": (
        [*local("long.jsonl"), "train.max_length=4096"],
        "max_length.*512 positions",
    ),
    "unknown task": (["evaluate.tasks=[micro_knowlege]"], "micro_knowledge"),
    "missing task file": (["evaluate.tasks=[{files}/task.yaml]"], "task.yaml"),
    "unknown measure": (["evaluate.measures=[weight_distanec]"], "weight_distance"),
    "no items": (["evaluate.limit=0"], "positive"),
    "device": (["execution.device=tpu"], "cuda"),
    "no threads": (["execution.threads=0"], "at least 1"),
    "a grid about the command": (["out=a,b"], "one value"),
    "equals sign": (["dataset.path=d/x=1/t.jsonl"], r"write \"dataset.path='d/x=1/t.jsonl'\"$"),
}
# About the command as a whole: every verb that composes cells checks them.
COMMAND = {
    "switch": (["retry_failed=foo"], "retry_failed=foo.*true or false"),
    "number for a switch": (["skip_illegal=1"], "skip_illegal=1.*true or false"),
    "a launched job's setting": (["bundle=foo"], "bundle=foo.*left out"),
    "another verb's setting": (["pretrain.hidden_size=8"], "pretrain.hidden_size=8.*pretrain"),
    "sweeper": (["hydra.sweeper=foo"], "hydra.sweeper=foo.*hydra/launcher"),
    "launcher": (["hydra/launcher=foo"], "hydra/launcher=foo: not one of .*joblib"),
    "launcher's setting": (["hydra.launcher.n_jobs=foo"], "n_jobs"),
    "no workers": (["hydra.launcher.n_jobs=0"], "n_jobs"),
    "folder below a file": (["out={files}/good.jsonl/x"], "good.jsonl is no folder"),
    "folder that is a file": (["out={files}/good.jsonl"], "good.jsonl is no folder"),
    "no folder": (["out="], "out=: must be a folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_status_2(case, files, tmp_path, capsys):
    words, expected = CASES[case]
    words = [word.format(files=files) if "{files}" in word else word for word in words]
    out = [] if case == "a grid about the command" else [f"out={tmp_path / 'out'}"]
    refused(["sweep", *BASE, *out, *words], expected, capsys)
    assert not list(tmp_path.rglob("record.json"))


def refused(words, expected, capsys):
    """Check that a command is refused, in one line."""
    assert cli.main(words) == 2, words
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert told.startswith("ablate: ")
    assert re.search(expected, told.strip()), told


@pytest.mark.parametrize("verb", ["sweep", "run", "plan", "tokens", "tune"])
def test_every_verb_checks_what_is_about_the_command(verb, files, tmp_path, capsys):
    for words, expected in COMMAND.values():
        words = [f"out={tmp_path}/out", *(word.format(files=files) for word in words)]
        refused([verb, *BASE, *words], expected, capsys)
    assert not list(tmp_path.iterdir())


PRETRAIN = {
    **dict.fromkeys(["hidden_size=abc", "vocab_size=2.5", "num_hidden_layers=null"], "whole"),
    **dict.fromkeys(["hidden_size=-1", "num_attention_heads=0"], "at least 1"),
    **dict.fromkeys(["vocab_size=0", "vocab_size=-5"], "at least 269"),
    **dict.fromkeys(["hidden_size=65", "hidden_size=12"], "a multiple of 8"),
    **dict.fromkeys(["initializer_range=0", "initializer_range=7"], r"in \(0, 1\]"),
    "initializer_range=inf": "finite",
    "vocab_size=1000000000000": "parameters; at most",
    "max_position_embeddings=64": "train.max_length=256: must be at most",
    "hidden_size=64,128": "one value",
    "hidden_sise=64": "pretrain.hidden_sise=64: no such setting. Did you mean",
}


@pytest.mark.parametrize("word", PRETRAIN)
def test_the_shape_of_a_base_model_is_checked_first(word, tmp_path, capsys):
    refused(["pretrain", f"pretrain.{word}", f"out={tmp_path}/a/b"], PRETRAIN[word], capsys)
    assert not list(tmp_path.iterdir())


def test_a_pretraining_that_is_refused_leaves_nothing_behind(files, tmp_path, capsys):
    out = f"out={tmp_path}/a/b"
    rows = [word.format(files=files) for word in local("good.jsonl")]
    for words, expected in [
        ([*rows, "pretrain.vocab_size=270"], "pretrain.vocab_size=270: these rows need at least"),
        (["dataset=local", "dataset.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["report=false"], "report=false: is of no use"),
        ([f"out={files}/good.jsonl/x"], "good.jsonl is no folder"),
    ]:
        refused(["pretrain", out, *words], expected, capsys)
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written(files, tmp_path, capsys):
    for page in (tmp_path, tmp_path / "nowhere" / "x.html", files / "good.jsonl" / "x.html"):
        refused(["tokens", f"--html={page}"], "--html=.*: must be a file in a folder", capsys)
    refused(["report", f"{files}/good.csv", "--out", f"{files}/good.csv/x"], "out=.*csv/x", capsys)
    assert not list(tmp_path.iterdir())


def test_bad_verbs_folders_and_tables(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "scoreless.csv").write_text("a,b\n1,2\n")
    for words, expected in [
        (["swep"], "sweep"),
        (["--config-dir=conf", "plan"], "--config-dir=conf: options stand behind a verb: run"),
        (["run", "plw=0,1", *BASE], "one cell"),
        (["tokens", "masking=none,special"], "one cell is taken here, not 2"),
        (["reproduce", "plw", "study=quick"], "study=quick: the study is named first"),
        (["reproduce", "plw", "scale=smoke", "scale=huge"], "scale=huge: not one of"),
        (["plan", "--format", "xml"], "json"),
        (["status", str(tmp_path)], "no sweep"),
        (["report", str(tmp_path / "nowhere.csv")], "no such table"),
        (["report", str(tmp_path / "empty.csv")], "empty"),
        (["report", str(tmp_path / "scoreless.csv")], "score"),
        (["reproduce"], "name the study"),
        (["reproduce", "../study/plw"], "study=../study/plw: must be a name"),
        (["plan", "masking=none,../masking/none"], "masking=../masking/none: must be a name"),
        (["plan", "adapter=lora/x"], "adapter=lora/x: must be a name"),
        (["plan", "out='a\tb'"], "has a control character in it"),
        (["plan", *BASE, "evaluate.tasks=[/]"], "evaluate.tasks=/: holds more than 100,000 files"),
        (["plan", *BASE, "evaluate.tasks=[/dev/zero]"], "neither a file nor a folder"),
    ]:
        assert cli.main(words) == 2, words
        told = capsys.readouterr().err.strip()
        assert told.count("\n") == 0
        assert expected in told


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["sweep", *BASE, f"out={tmp_path / 'file' / 'out'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_disk_too_small_for_the_records(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    assert cli.main(["sweep", *BASE, f"out={tmp_path / 'out'}"]) == 2
    assert "MB are needed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("record.json"))


def test_the_good_rows_are_accepted(files, tmp_path):
    """What the cases break is otherwise right: the same request with good rows is a plan."""
    words = [word.format(files=files) for word in local("good.jsonl")]
    assert cli.main(["plan", *BASE, *words, f"out={tmp_path / 'out'}"]) == 0
