"""Ids as transformers gives them, roles by both boundary rules, truncation, counts, the cache."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers, processors

from ablate.config.schema import Dataset, Splits
from ablate.data import cache
from ablate.data import tokenise as module
from ablate.data.pieces import joined
from ablate.data.spans import token_roles
from ablate.data.tokenise import Summary, Tokenised, Tokenizer, summary, tokenise
from ablate.errors import UserError
from ablate.roles import Role
from tests.unit.conftest import byte_level, save

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).resolve().parents[2]
DOLLY = Path(
    os.environ.get("ABLATE_TEST_DOLLY", ROOT.parent / "shared/data/alpagasus_dolly_3k.jsonl")
)
WHOLE = Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0))
LETTERS = "SBYINCTP"  # in the order of `Role`
Make = Callable[..., Path]
TEXTS = [
    "Below is an instruction.",
    " two  spaces, naïve café 漢字 🙂\n\n\ttab",
    "### Response:Paris</s> and <|im_start|>user\nHi<|im_end|>\n",
    "e\u0301 is normalised",
    "",
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def dataset(path: Path, **settings: Any) -> Dataset:
    settings = {"splits": WHOLE, "template": "plain"} | settings
    return Dataset(name="d", source="local", path=str(path), **settings)


def made(data: Dataset, folder: Path, max_length: int = 64, boundary: str = "offset") -> Tokenised:
    return tokenise(
        data, "train", tokenizer=Tokenizer(folder), max_length=max_length, boundary=boundary
    )


def letters(roles: np.ndarray) -> str:
    return "".join(LETTERS[r] for r in roles)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen", "bos"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ids_and_bos_are_those_of_transformers(
    name: str, tokenizer_folders: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(tokenizer_folders[name])
    ours = Tokenizer(tokenizer_folders[name])
    for text in TEXTS:
        bos = [ours.bos] if ours.adds_bos else []
        assert bos + ours.encode(text).ids.tolist() == peer(text).input_ids
        assert ours.encode(text).ids.tolist() == peer(text, add_special_tokens=False).input_ids
        ids = ours.encode(text).ids
        assert ours.decode(ids) == peer.decode(ids, skip_special_tokens=False)
    assert (ours.eos, ours.bos) == (peer.eos_token_id, peer.bos_token_id)
    assert ours.vocab_size == len(peer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_configs_word_on_bos_counts_as_little_as_in_transformers(make_bytes: Make) -> None:
    from transformers import AutoTokenizer

    for says in ({"add_bos_token": True}, {"add_bos_token": False}, {}):
        folder = make_bytes("<s>", "</s>", bos_token="<s>", eos_token="</s>", **says)
        peer, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
        assert ours.adds_bos == (peer("a").input_ids[0] == peer.bos_token_id), says


@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_chat_text_is_that_of_transformers(name: str, tokenizer_folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(tokenizer_folders[name])
    chats = [
        [("user", "Hi"), ("assistant", "Yo")],
        [("system", "Hum."), ("user", " a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    ]
    for chat in chats:
        messages = [{"role": role, "content": content} for role, content in chat]
        text = Tokenizer(tokenizer_folders[name]).chat(messages)
        assert text == peer.apply_chat_template(messages, tokenize=False)


def test_tokens_by_hand(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    """One token a byte; BOS first and never a target; é is two tokens."""
    path = write(tmp_path / "d.jsonl", [{"prompt": "Hé", "completion": "o k"}])
    data = made(dataset(path), tokenizer_folders["bos"])
    assert letters(data.roles) == "S" + "III" + "B" + "CCC" + "C"
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    assert tokenizer.decode(data.ids) == "<s>Hé\no k</s>"
    assert data.counts == {"boilerplate": 1, "instruction": 3, "completion": 4}
    assert data.rg_tokens == pytest.approx(4 / 3)
    assert tokenizer.decode(data.prompt_ids(0)) == "<s>Hé\n"
    assert tokenizer.decode(data.answer_ids(0)) == "o k</s>"


def test_without_bos_the_first_token_is_no_target_but_counts_in_rg(
    make_bytes: Make, tmp_path: Path
) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"prompt": "Hi", "completion": "o"}])
    data = made(dataset(path), folder)
    assert letters(data.roles) == "IIBCC"
    assert data.counts == {"boilerplate": 1, "instruction": 1, "completion": 2}
    assert data.rg_tokens == 1.0


@pytest.mark.parametrize(
    ("merges", "prompt", "answer", "offset", "segment"),
    [
        # the line end before the answer merges with its first letter: by its first visible
        # character the token is the answer's; by counting it is still the prompt's last one
        ([("Ċ", "o")], "Hi", "ok", "II" + "C" + "CC", "II" + "B" + "CC"),
        # ":" and the answer's first letter are one token: the prompt's under both rules
        ([(":", "o")], "Hi:", "ok", "II" + "I" + "CC", "II" + "I" + "CC"),
        # alone the prompt ends in one token (i:), before the answer in i and a token (:o): by
        # offset the straddler is the prompt's; counting (H, i:) makes it the answer's
        ([(":", "o"), ("i", ":")], "Hi:", "ok", "II" + "I" + "CC", "II" + "C" + "CC"),
    ],
)
def test_straddling_tokens_under_both_boundary_rules(
    make_bytes: Make,
    merges: list[tuple[str, str]],
    prompt: str,
    answer: str,
    offset: str,
    segment: str,
) -> None:
    tokenizer = Tokenizer(make_bytes("</s>", merges=merges, eos_token="</s>"))
    joint = "\n" if merges[0][0] == "Ċ" else ""
    pieces = [(prompt, Role.INSTRUCTION), (joint, Role.BOILERPLATE)]
    rendered = joined([*pieces, (answer + "</s>", Role.COMPLETION)], add_bos=False)
    encoded = tokenizer.encode(rendered.text)
    for rule, expected in (("offset", offset), ("segment", segment)):
        roles, _ = token_roles(rendered, encoded, boundary=rule, tokenizer=tokenizer)
        assert letters(roles) == expected, rule


def test_segment_is_stanfords_preprocess_on_every_row(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    """labels[: len(tokenize(prompt))] = IGNORE, on ids of the whole text."""
    rng = np.random.default_rng(0)
    words = ["naïve", "the", "capital", "is", "\n", " ", "2", ":", "isn't", "Response"]
    records = [
        {
            "instruction": "x" + " ".join(rng.choice(words, 6)),
            "output": " ".join(rng.choice(words, 5)) + "y",
        }
        for _ in range(60)
    ]
    path = write(tmp_path / "d.jsonl", records)
    for name in ("llama", "gpt2", "qwen"):
        tokenizer = Tokenizer(tokenizer_folders[name])
        data = made(dataset(path, template="alpaca"), tokenizer_folders[name], 512, "segment")
        for number in range(len(data)):
            ids, roles = data.row(number)
            text = tokenizer.decode(ids[ids != tokenizer.bos] if tokenizer.adds_bos else ids)
            head = text[: text.index("### Response:") + len("### Response:")]
            prompt = len(tokenizer.encode(head).ids) + tokenizer.adds_bos
            assert np.flatnonzero(roles == Role.COMPLETION).tolist() == list(
                range(prompt, len(ids))
            )


def test_both_rules_give_the_same_ids_and_whole_texts(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yo "}] * 3
    path = write(tmp_path / "d.jsonl", [{"messages": chat}])
    data = dataset(path, template="chat")
    one = made(data, tokenizer_folders["qwen"], 512, "offset")
    two = made(data, tokenizer_folders["qwen"], 512, "segment")
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.roles, two.roles)  # special tokens: nothing straddles


def test_a_leak_is_an_error(tokenizer_folders: dict[str, Path]) -> None:
    """Offsets that are off by one token, as a broken tokenizer's would be, are noticed."""
    tokenizer = Tokenizer(tokenizer_folders["bos"])
    rendered = joined([("Hi", Role.INSTRUCTION), ("ok", Role.COMPLETION)], add_bos=False)
    encoded = tokenizer.encode(rendered.text)
    shifted = type(encoded)(encoded.ids, np.roll(encoded.starts, 1), np.roll(encoded.ends, 1))
    shifted.starts[0], shifted.ends[0] = 0, 1
    with pytest.raises(UserError, match="a role leaks"):
        token_roles(rendered, shifted, boundary="offset", tokenizer=tokenizer)


ADDS_SPACE = {  # behind a special token; chat template, merges, tokens of the answers by hand
    "newlines": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}",
        [],
        ["b", "i", "g", "<|end|>", "Y", "<|end|>"],
    ),
    "words": (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}",
        [("Ġ", "Y"), ("Ġ", "b"), ("Ġb", "i")],
        [" bi", "g", "<|end|>", " Y", "<|end|>"],
    ),
    "words, no merges": (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}",
        [],
        [" ", "b", "i", "g", "<|end|>", " ", "Y", "<|end|>"],
    ),
}


@pytest.mark.parametrize("name", ADDS_SPACE)
@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("regex", [True, False])
def test_a_space_that_a_tokenizer_adds_behind_special_tokens(
    name: str, trim: bool, regex: bool, tmp_path: Path
) -> None:
    """Byte-level with add_prefix_space, whose trimmed offsets begin a character late there."""
    template, merges, expected = ADDS_SPACE[name]
    backend = byte_level(merges, "<|user|>", "<|assistant|>", "<|end|>")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=regex)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    folder = save(tmp_path / "t", backend, eos_token="<|end|>", chat_template=template)
    said = [("user", "a"), ("assistant", "big"), ("user", "  c"), ("assistant", "Y")]
    chat = [{"role": role, "content": text} for role, text in said]
    data = dataset(write(tmp_path / "d.jsonl", [{"messages": chat}]), template="chat")
    found = made(data, folder, 512)
    tokenizer = Tokenizer(folder)
    assert [tokenizer.decode([i]) for i in found.answer_ids(0)] == expected


def test_truncation_drops_only_rows_that_lose_their_whole_completion(
    make_bytes: Make, tmp_path: Path
) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    records = [
        {"prompt": "abcdef", "completion": "gh"},  # 6 + 1 + 2 + 1 = 10 tokens: fits
        {"prompt": "abcdefgh", "completion": "ij"},  # 12: cut after "i"
        {"prompt": "abcdefghi", "completion": "jk"},  # the completion would start at 10
        {"prompt": "abcdefghijkl", "completion": "m"},
    ]
    data = made(dataset(write(tmp_path / "d.jsonl", records)), folder, max_length=10)
    assert data.rows_in == 4
    assert data.dropped == {module.NO_ANSWER_LEFT: 2}
    assert data.summary.truncated == 1
    assert sorted(data.lengths.tolist()) == [10, 10]
    assert sorted(letters(data.row(i)[1]) for i in (0, 1)) == ["IIIIIIBCCC", "IIIIIIIIBC"]
    assert data.rg_tokens == pytest.approx((3 + 1) / (6 + 8))
    assert data.rg_before_truncation == pytest.approx((3 + 3 + 3 + 2) / (6 + 8 + 9 + 12))


def test_nothing_left_is_an_error(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"prompt": "a" * 20, "completion": "b"}])
    with pytest.raises(UserError, match=r"train.max_length=10: no row .* is left .*1 for"):
        made(dataset(path), folder, max_length=10)


def test_text_rows_are_text_to_their_end(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"text": "abc"}, {"text": "defghijkl"}])
    data = made(dataset(path), folder, max_length=8)
    assert sorted(letters(data.row(i)[1]) for i in (0, 1)) == ["TTTT", "TTTTTTTT"]
    assert data.counts == {"text": 3 + 7}
    assert data.rg_tokens is None


def test_the_cache_gives_back_what_was_made(
    make_bytes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"prompt": "abc", "completion": "d"}])
    first = made(dataset(path), folder)

    def never(*_: object) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_make", never)
        second = made(dataset(path), folder)
    for name in ("ids", "roles", "starts"):
        one, two = getattr(first, name), getattr(second, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert first.summary == second.summary
    assert (first.ids.dtype, first.roles.dtype, first.starts.dtype) == (
        np.dtype("int32"),
        np.dtype("uint8"),
        np.dtype("int64"),
    )


def test_the_key_holds_all_that_decides_the_result(make_bytes: Make, tmp_path: Path) -> None:
    folder, other = (
        make_bytes("</s>", eos_token="</s>"),
        make_bytes("<e>", "</s>", eos_token="</s>"),
    )
    path = write(tmp_path / "d.jsonl", [{"prompt": "abc", "completion": "d"}] * 4)
    base = dataset(path)
    hashes = [
        made(base, folder).content_hash,
        made(base, other).content_hash,
        made(dataset(path, template="alpaca"), folder, 512).content_hash,
        made(dataset(path, max_rows=3), folder).content_hash,
        made(base, folder, max_length=8).content_hash,
    ]
    hashes.append(made(base, folder, max_length=5).content_hash)
    write(path, [{"prompt": "abc", "completion": "e"}] * 4)
    hashes.append(made(base, folder).content_hash)
    # "a row longer than 8" changes nothing here: 3 + 1 + 1 + 1 tokens
    assert hashes[4] == hashes[0]
    assert len(set(hashes)) == 6
    # where the file lies and what the level is called change nothing
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(path.read_bytes())
    keys = {
        cache.key(Dataset(name=n, source="local", path=str(p)), "train", "t", {})
        for n, p in (("a", path), ("b", moved))
    }
    assert len(keys) == 1


def test_a_damaged_entry_is_made_again(make_bytes: Make, tmp_path: Path) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"prompt": "abc", "completion": "d"}])
    first = made(dataset(path), folder)
    entries = sorted((tmp_path / "cache" / "tokens").glob("*.npy"))
    assert len(entries) == 5  # no weights: all are 1
    before = first.ids.copy()
    for entry in entries:
        whole = entry.read_bytes()
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        for broken in (b"", whole[:100], whole[:-1], changed, None):
            entry.unlink()  # a file that is mapped is replaced, never written to
            if broken is not None:
                entry.write_bytes(broken)
            again = made(dataset(path), folder)
            np.testing.assert_array_equal(before, again.ids)
            assert entry.read_bytes() == whole


def test_the_summary_is_that_of_the_tokens_and_reads_neither_rows_nor_tokenizer_when_warm(
    make_bytes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"prompt": "abc", "completion": "de"}] * 3)

    def asked() -> Summary:
        return summary(
            dataset(path),
            "train",
            model_folder=folder,
            chat_template=None,
            max_length=64,
            boundary="offset",
        )

    found = asked()
    assert found == made(dataset(path), folder).summary
    assert found.rows == 3
    assert found.tokens == 3 * 7
    assert found.mean_length == 7.0
    assert found.largest_id < Tokenizer(folder).vocab_size
    assert json.loads(json.dumps(found.counts)) == {
        "boilerplate": 3,
        "instruction": 6,
        "completion": 9,
    }
    with monkeypatch.context() as warm:
        for name in ("Tokenizer", "load"):
            warm.setattr(f"ablate.data.tokenise.{name}", None)
        assert asked() == found
    # a changed file is seen
    write(path, [{"prompt": "abc", "completion": "de"}] * 5)
    assert asked().rows == 5


JOB = """
import sys
from ablate.config.schema import Dataset, Splits
from ablate.data.tokenise import Tokenizer, tokenise
splits = Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0))
data = Dataset(name="d", source="local", path=sys.argv[1], template="plain", splits=splits)
found = tokenise(data, "train", tokenizer=Tokenizer(sys.argv[2]), max_length=64, boundary="offset")
print(found.content_hash, len(found), "torch" in sys.modules)
"""


def test_processes_that_make_the_same_entry_at_once_agree(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Four at once, none importing torch; the folder holds the entry and nothing else."""
    records = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(3000)]
    path = write(tmp_path / "d.jsonl", records)
    command = [sys.executable, "-c", JOB, str(path), str(tokenizer_folders["bos"])]
    jobs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    said = {job.communicate(timeout=100)[0].strip() for job in jobs}
    assert {job.returncode for job in jobs} == {0}
    assert said == {f"{made(dataset(path), tokenizer_folders['bos']).content_hash} 3000 False"}
    names = sorted(p.suffix for p in (tmp_path / "cache" / "tokens").iterdir())
    assert names == [".json", *[".npy"] * 5]


def test_an_unwritable_cache_is_one_line(
    make_bytes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bytes("</s>", eos_token="</s>")
    path = write(tmp_path / "d.jsonl", [{"prompt": "abc", "completion": "d"}])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens").write_text("in the way")
    with pytest.raises(UserError, match=r"ABLATE_CACHE=.*cannot be written"):
        made(dataset(path), folder)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen"])
@pytest.mark.parametrize("boundary", ["offset", "segment"])
def test_every_role_of_any_text_decodes_to_what_the_row_says(
    name: str, boundary: str, tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    pool = [*"ab user\n\t #:é漢🙂<>|{}'\"%", "instruction", "### Input:", "12"]
    records = [
        {key: "".join(rng.choice(pool, 8)) + "." for key in ("instruction", "input", "output")}
        for _ in range(80)
    ]
    for record in records:  # no token can straddle white space on both sides of a visible letter
        record["output"] = "z" + record["output"]
    template = "chat" if name == "qwen" else "alpaca"
    path = write(tmp_path / "d.jsonl", records)
    data = made(dataset(path, template=template), tokenizer_folders[name], 2048, boundary)
    tokenizer = Tokenizer(tokenizer_folders[name])
    wanted = {_bare(r["output"] + tokenizer.stop) for r in records}
    whole = {_bare(tokenizer.decode(data.answer_ids(i))) for i in range(len(data))}
    straddled = {a for a in whole - wanted if not any(w.endswith(a) for w in wanted)}
    assert not straddled
    assert math.isclose(data.summary.tokens, data.lengths.sum())


def _bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.skipif(not DOLLY.is_file(), reason="the real data set is not on this machine")
def test_real_english_in_three_parts(tokenizer_folders: dict[str, Path]) -> None:
    splits = Splits(train=(0.0, 0.6), validation=(0.6, 0.9), test=(0.9, 1.0))
    data = Dataset(name="dolly", source="local", path=str(DOLLY), template="chat", splits=splits)
    tokenizer = Tokenizer(tokenizer_folders["qwen"])
    found = {
        part: tokenise(data, part, tokenizer=tokenizer, max_length=1024, boundary="offset")
        for part in ("train", "validation", "test")
    }
    assert [f.rows_in for f in found.values()] == [1798, 898, 300]
    assert sum(f.rows_in for f in found.values()) == 2996
    for part in found.values():
        assert part.counts["completion"] > part.counts["instruction"]
        assert len(part) + sum(part.dropped.values()) == part.rows_in
    # 43.83 and 68.08 words (arXiv 2405.14394, Table 5) have about the ratio of their tokens
    assert found["train"].rg_before_truncation == pytest.approx(68.08 / 43.83, rel=0.15)
