"""A folder of broken things, each under the name that the tables of wrong commands give it."""

import datetime
import json
import os
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ablate.paths import conf_dir

MICRO = conf_dir().parent / "ablate" / "micro" / "checkpoints" / "micro_0"
GOOD = [{"instruction": f"Say {i}.", "input": "", "output": f"{i} it is."} for i in range(40)]
ASKED, SAID = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}
DEEP = "[" * 100_000
DIGITS = "9" * 5000
HUGE = "1" + "0" * 400  # no float is so large
CHATML = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make(root: Path) -> None:
    """Make all of it in the empty folder `root`."""
    texts = {**_rows(), **_chats(), **_tables(), **_others()}
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        (root / name).write_bytes(content)
    for name in ("hollow", "folder.jsonl", "folder.csv", "folder.parquet", "pipes"):
        (root / name).mkdir()
    for name in ("pipe.jsonl", "pipe.csv", "pipe.json", "pipe.yaml", "pipe.jinja",
                 "pipes/train.jsonl"):  # fmt: skip
        os.mkfifo(root / name)
    here = Path.cwd()
    os.chdir(root)  # the path of a socket may have 107 characters
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket")
    os.chdir(here)
    (root / "broken_link").symlink_to("nowhere/at/all")
    for name in ("loop", "loop.yaml"):
        (root / name).symlink_to(name)
    _binary(root)
    _saved(root)
    _levels(root)
    _models(root)
    _tasks(root)
    (root / "results" / "cells").mkdir(parents=True)
    cell = root / "damaged" / "cells" / "0123456789abcdef"
    cell.mkdir(parents=True)
    (cell / "record.json").write_text("{")


def _rows() -> dict[str, str | bytes]:
    head = jsonl(GOOD[:2])

    def third(text: str) -> str:
        return head + text + "\n" + jsonl(GOOD[3:])

    def last(**fields: object) -> str:
        return jsonl([*GOOD, {"instruction": "a", "input": "", "output": "b", **fields}])

    weighed = jsonl([row | {"weight": 1} for row in GOOD[:2]])
    return {
        "good.jsonl": jsonl(GOOD),
        "two_formats.jsonl": jsonl([*GOOD, {"messages": [{"role": "user", "content": "Hi."}]}]),
        "few.jsonl": jsonl(GOOD[:2]),
        "empty.jsonl": "",
        "blank.jsonl": "\n \n\t\n",
        "broken.jsonl": jsonl(GOOD[:3]) + '{"instruction": "half\n' + jsonl(GOOD[3:]),
        "truncated.jsonl": jsonl(GOOD[:4])[:-9],
        "digits.jsonl": jsonl(GOOD[:1]) + f'{{"instruction": "a", "output": "b", "n": {DIGITS}}}\n',
        "digits.json": f'[{{"instruction": "a", "output": "b", "n": {DIGITS}}}]',
        "deep.jsonl": jsonl(GOOD[:1]) + DEEP + "\n",
        "deep.json": DEEP,
        "deep_tools.jsonl": jsonl([{"messages": [ASKED, SAID]}])
        + '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
        + f'"tools": {"[" * 150}{"]" * 150}}}\n',
        "surrogate.jsonl": third('{"instruction": "a", "output": "b\\ud800"}'),
        "surrogate_key.jsonl": third('{"instruction": "a", "output": "b", "c\\ud800": 1}'),
        "surrogate_chat.jsonl": jsonl([{"messages": [ASKED, SAID]}] * 2)
        + '{"messages": [{"role": "user", "content": "\\udc00"}, '
        + '{"role": "assistant", "content": "b"}]}\n',
        "nan.jsonl": weighed + '{"instruction": "a", "output": "b", "weight": NaN}',
        "infinite.jsonl": weighed + '{"instruction": "a", "output": "b", "weight": Infinity}',
        "weighty.jsonl": weighed + '{"instruction": "a", "output": "b", "weight": 1e300}',
        "key_twice.jsonl": third('{"instruction": "a", "output": "b", "output": "c"}'),
        "list.jsonl": jsonl([[1, 2]]),
        "number.json": "3",
        "rows_in_object.json": json.dumps({"data": GOOD}),
        "notjson.json": "{",
        "latin.jsonl": b'{"instruction": "caf\xe9", "output": "b"}\n',
        "utf16.jsonl": jsonl(GOOD).encode("utf-16"),
        "nul.jsonl": jsonl(GOOD[:1]).encode() + b"\0\0\0\0\n",
        "column.jsonl": jsonl([{"instruction": "a", "outptu": "b"}] * 9),
        "answerless.jsonl": last(output=""),
        "typed.jsonl": last(output=3),
        "nulls.jsonl": last(output=None),
        "nested.jsonl": last(output=["b"]),
        "objects.jsonl": last(instruction={"a": 1}),
        "long.jsonl": jsonl([row | {"instruction": "word " * 600} for row in GOOD * 2]),
        "data.xyz": "a,b\n",
    }


def _chats() -> dict[str, str | bytes]:
    def asked(**fields: object) -> list:
        return [{"messages": [ASKED | fields, SAID]}] * 9

    def said(**fields: object) -> list:
        return [{"messages": [ASKED, SAID | fields]}] * 9

    rows = {
        "talk": asked(role="wizard"),
        "role_list": asked(role=["user"]),
        "role_null": asked(role=None),
        "role_number": asked(role=3),
        "role_object": asked(role={"name": "user"}),
        "content_number": asked(content=3),
        "content_parts": asked(content=[{"type": "image", "url": "x"}]),
        "message_number": [{"messages": [3, SAID]}],
        "messages_number": [{"messages": 3}],
        "messages_empty": [{"messages": []}],
        "asks_only": [{"messages": [ASKED]}],
        "answers_only": [{"messages": [SAID]}],
        "says_nothing": asked(content=" "),
        "calls_number": said(tool_calls=3),
        "calls_text": said(tool_calls="{"),
        "tools_number": [row | {"tools": 3} for row in asked()],
        "train_word": said(train="yes"),
        "weight_word": said(weight="much"),
        "weight_list": said(weight=[1]),
        "reasoning_list": said(reasoning_content=["because"]),
        "chat": [{"messages": [ASKED | {"content": f"Say {i}."}, SAID]} for i in range(40)],
    }
    texts = {f"{name}.jsonl": jsonl(found) for name, found in rows.items()}
    return texts | {
        "weight_digits.jsonl": texts["chat.jsonl"].replace('"Ho."', f'"Ho.", "weight": {HUGE}'),
        "latin.jinja": b"{{ messages }} caf\xe9",
        "broken.jinja": "{% for m in messages %}",
        "reversed.jinja": "{% for m in messages | reverse %}{{ m.content }}</s>{% endfor %}",
        "refuses.jinja": "{{ raise_exception('no') }}",
        "endless.jinja": "{% for i in range(1000000000000) %}x{% endfor %}",
        "recursive.jinja": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "empty.jinja": "",
    }  # fmt: skip


def _tables() -> dict[str, str | bytes]:
    good = "a,score\n" + "x,1\ny,2\nx,1.5\ny,2.6\n" * 3
    return {
        "good.csv": good,
        "empty.csv": "",
        "blank.csv": "\n\n",
        "header.csv": "instruction,output,score\n",
        "scoreless.csv": "a,b\n1,2\n",
        "latin.csv": "instruction,output,score\ncaf\xe9,b,1\n".encode("latin-1"),
        "utf16.csv": good.encode("utf-16"),
        "ragged.csv": "instruction,output,score\na,b,1\na,b,2,3\na,b,3\n",
        "quote.csv": 'instruction,output,score\na,"b"c,1\na,"b,1\n',
        "nul.csv": b"instruction,output,score\na\0a,b,1\n\0\0,b,2\n",
        "twice.csv": "instruction,output,output,score\na,b,c,1\na,b,c,2\n",
        "nameless.csv": ",,\na,b,c\n",
        "digits.csv": f"a,score\nx,{DIGITS}\ny,1\n",
        "infinite.csv": "a,score\nx,inf\ny,-inf\nx,nan\n",
        "constant.csv": "a,score\n" + "x,1\ny,1\n" * 6,
        "one_row.csv": "a,score\nx,1\n",
        "one_level.csv": "a,score\n" + "x,1\nx,2\nx,1.5\n" * 3,
        "words.csv": "a,score\nx,good\ny,bad\nx,middling\n",
        "rates_nan.csv": "model,dataset,adapter,rank,lr\nmicro,micro,lora,8,nan\n",
        "rates_word.csv": "model,dataset,adapter,rank,lr\nmicro,micro,lora,8,1e-3\n"
        "micro,micro,lora,many,1e-3\n",
    }


def _others() -> dict[str, str | bytes]:
    return {
        "broken.parquet": b"PAR1 nothing of the kind PAR1",
        "text.parquet": "a,score\n1,2\n",
        "broken.arrow": b"ARROW1 nothing",
        "empty.arrow": b"",
        "latin.yaml": b"task: caf\xe9\nprompt: caf\xe9\n",
        "deep.yaml": "prompt: " + "[" * 1200,
        "digits.yaml": f"prompt: {DIGITS}\ntask: {DIGITS}\n",
        "list.yaml": "- a\n- b\n",
        "braces.yaml": "prompt: '{instruction'\n",
        "fields.yaml": "prompt: '{question}'\n",
        "keys.yaml": "prompt: '{instruction}'\npromt: a\n",
        "number.yaml": "prompt: 3\n",
    }


def _binary(root: Path) -> None:
    columns = {name: [row[name] for row in GOOD] for name in ("instruction", "output")}
    table = pa.table(columns)
    pq.write_table(table, root / "good.parquet")
    whole = (root / "good.parquet").read_bytes()
    (root / "truncated.parquet").write_bytes(whole[: len(whole) // 2])
    pq.write_table(table.slice(0, 0), root / "empty.parquet")
    pq.write_table(
        pa.table([columns["instruction"], columns["output"], columns["output"]],
                 names=["instruction", "output", "output"]),
        root / "twice.parquet",
    )  # fmt: skip
    texts = columns["instruction"]
    odd = {
        "nested": [[{"a": [1]}]] * 40,
        "bytes": [b"\xff\xfe"] * 40,
        "dates": [datetime.date(2020, 1, 1)] * 40,
    }
    for name, values in odd.items():
        pq.write_table(pa.table({"instruction": texts, "output": values}), root / f"{name}.parquet")
    kind = pa.string()
    for _ in range(120):
        kind = pa.list_(kind)
    messages = [[ASKED, SAID]] * 4
    deep = pa.table({"messages": messages, "tools": pa.nulls(4, kind)})
    pq.write_table(deep, root / "deep.parquet")
    with (
        pa.OSFile(str(root / "good.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as stream,
    ):
        stream.write_table(table)
    whole = (root / "good.arrow").read_bytes()
    (root / "truncated.arrow").write_bytes(whole[: len(whole) // 2])


def _saved(root: Path) -> None:
    """Folders as `datasets` saves them."""
    for name, text in {
        "dict_broken": "{",
        "dict_list": "[]",
        "dict_empty": "",
        "dict_number": '{"splits": 3}',
        "dict_deep": DEEP,
        "dict_latin": b'{"splits": ["caf\xe9"]}',
        "dict_lost": '{"splits": ["train"]}',
        "dict_good": '{"splits": ["train", "test"]}',
    }.items():
        (root / name).mkdir()
        content = text if isinstance(text, bytes) else text.encode()
        (root / name / "dataset_dict.json").write_bytes(content)
    for name, text in {
        "state_broken": "{",
        "state_list": "[]",
        "state_empty": "",
        "state_typed": '{"_data_files": [3]}',
        "state_deep": DEEP,
        "state_digits": f'{{"_data_files": {DIGITS}}}',
        "state_outside": '{"_data_files": [{"filename": ["x"]}]}',
        "state_none": '{"_data_files": []}',
        "state_pipe": '{"_data_files": [{"filename": "pipe.arrow"}]}',
    }.items():
        (root / name).mkdir()
        (root / name / "state.json").write_text(text)
    os.mkfifo(root / "state_pipe" / "pipe.arrow")


def _levels(root: Path) -> None:
    folder = root / "levels" / "masking"
    folder.mkdir(parents=True)
    for name, text in {
        "broken": "a: [1\n",
        "deep": "a: " + "[" * 1200,
        "latin": b"a: caf\xe9\n",
        "digits": f"permute: {DIGITS}\n",
        "twice": "permute: true\npermute: false\n",
        "surrogate": 'permute: "\\ud800"\n',
    }.items():
        content = text if isinstance(text, bytes) else text.encode()
        (folder / f"{name}.yaml").write_bytes(content)
    for name in ("pipe", "folder", "aliases", "long"):  # wrong whichever level is chosen
        (root / f"levels_{name}" / "masking").mkdir(parents=True)
    os.mkfifo(root / "levels_pipe" / "masking" / "pipe.yaml")
    (root / "levels_folder" / "masking" / "folder.yaml").mkdir()
    (root / "levels_aliases" / "masking" / "aliases.yaml").write_text(_bomb())
    (root / "levels_long" / "masking" / "long.yaml").write_text("a: 1\n" * 250_000)


def _bomb() -> str:
    """A small YAML text that is a billion entries long when its aliases are written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return "\n".join(lines) + "\n"


def _model(root: Path, name: str, **files: str | bytes) -> Path:
    """Copy the micro model, with some of its files written anew."""
    folder = Path(shutil.copytree(MICRO, root / name))
    for file, text in files.items():
        content = text if isinstance(text, bytes) else text.encode()
        (folder / FILES[file]).write_bytes(content)
    return folder


FILES = {
    "config": "config.json",
    "weights": "model.safetensors",
    "index": "model.safetensors.index.json",
    "words": "tokenizer.json",
    "settings": "tokenizer_config.json",
    "chat": "chat_template.jinja",
}


def _header(text: str) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + b"\0" * 64


def _models(root: Path) -> None:
    config = json.loads((MICRO / "config.json").read_text())
    words = json.loads((MICRO / "tokenizer_config.json").read_text())
    weights = (MICRO / "model.safetensors").read_bytes()

    def changed(**more: object) -> str:
        return json.dumps(config | more)

    t5 = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    stopless = {k: v for k, v in words.items() if k != "eos_token"}
    shape = {"dtype": "F32", "shape": ["a", -1], "data_offsets": [0, 4]}
    for name, files in {
        "t5": {"config": changed(**t5)},
        "bert": {"config": changed(architectures=["BertForMaskedLM"], model_type="bert")},
        "config_broken": {"config": "{"},
        "config_list": {"config": "[]"},
        "config_empty": {"config": ""},
        "config_latin": {"config": b'{"a": "caf\xe9"}'},
        "config_deep": {"config": DEEP},
        "config_digits": {"config": f'{{"vocab_size": {DIGITS}}}'},
        "config_typed": {"config": changed(vocab_size="many")},
        "config_negative": {"config": changed(vocab_size=-5)},
        "config_architectures": {"config": changed(architectures={"a": 1})},
        "weights_broken": {"weights": b"nothing of the kind"},
        "weights_empty": {"weights": b""},
        "weights_truncated": {"weights": weights[: len(weights) // 2]},
        "weights_deep": {"weights": _header(DEEP)},
        "weights_typed": {"weights": _header(json.dumps({"model.layers.0.q.weight": shape}))},
        "index_broken": {"index": "{"},
        "index_list": {"index": "[]"},
        "index_typed": {"index": '{"weight_map": {"a": 3}}'},
        "index_lost": {"index": '{"weight_map": {"a": "lost.safetensors"}}'},
        "words_broken": {"words": "{"},
        "words_empty": {"words": ""},
        "words_latin": {"words": b'{"a": "caf\xe9"}'},
        "words_deep": {"words": DEEP},
        "words_settings": {"settings": "{"},
        "words_list": {"settings": "[]"},
        "words_latin_settings": {"settings": b'{"a": "caf\xe9"}'},
        "words_deep_settings": {"settings": DEEP},
        "words_typed": {"settings": json.dumps(words | {"eos_token": 3})},
        "words_no_stop": {"settings": json.dumps(stopless)},
        "chat_latin": {"chat": b"{{ messages }} caf\xe9"},
        "mute": {"settings": json.dumps(words | {"chat_template": None})},
        "chat_typed": {"settings": json.dumps(words | {"chat_template": [3]})},
        "chat": {"chat": CHATML},
    }.items():
        _model(root, name, **files)
    for name, file in {
        "untold": "config", "wordless": "words", "weightless": "weights",
        "config_pipe": "config", "weights_pipe": "weights", "words_pipe": "words",
    }.items():  # fmt: skip
        lost = _model(root, name) / FILES[file]
        lost.unlink()
        if name.endswith("pipe"):
            os.mkfifo(lost)


def _tasks(root: Path) -> None:
    folder, other = root / "tasks", root / "tasks_with_pipe"
    folder.mkdir()
    other.mkdir()
    for name, text in {
        "broken": "task: [",
        "itself": "task: a\ninclude: itself.yaml\n",
        "lost": "task: a\ninclude: nowhere.yaml\n",
        "included": "task: a\ninclude: [3]\n",
        "pipe_in": "task: a\ninclude: pipe.yaml\n",
        "aliases": f"task: a\n{_bomb()}",
        "tagged": "task: !!python/object/apply:os.system ['true']\n",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    os.mkfifo(folder / "pipe.yaml")
    os.mkfifo(other / "pipe.yaml")
