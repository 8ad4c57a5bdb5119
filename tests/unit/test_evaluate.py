"""Scores against a direct computation, lm-eval's own evaluation and transformers' own decoding."""

import copy
import inspect
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from sacrebleu.metrics import CHRF
from tokenizers.processors import TemplateProcessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
)

from ablate.config.schema import Dataset, Evaluate, Execution, Model
from ablate.data.rows import Row, Turn
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.evaluate import (
    choices,
    generate,
    harness,
    heldout,
    passes,
    requests,
    shapes,
    static,
    stock_index,
    tasks_index,
)
from ablate.evaluate import live as live_module
from ablate.evaluate.live import LiveLM, TokenMemo
from ablate.evaluate.precision import BF16_MEAN, BF16_MOST, computed_in
from ablate.evaluate.requests import quiet
from ablate.evaluate.scores import standard_error
from ablate.experiment import identity
from ablate.micro import tasks as micro
from ablate.paths import conf_dir
from ablate.roles import NAMES
from tests import reference, toys
from tests.architectures import CONFIGS, TINY, model_of

# Sums of a few log-probabilities in float32, computed with other shapes of the same products.
CLOSE = 1e-4
WORDS = ["fox", "dog", "cap", "ital", "Paris", "lazy", "brown", "quick", "task", "naïve", "times"]


COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: prompt
"""
MULTIPLE = """task: {name}
output_type: multiple_choice
doc_to_target: gold
doc_to_choice: options
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITTEN = """task: {name}
output_type: generate_until
doc_to_target: answer
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: chrf, aggregation: chrf, higher_is_better: true}}]
metadata: {{version: 3.0, task_type: long, side: target, skill: writing, chance: 0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two task files: toy_choice (2 to 4 options of several tokens), toy_writing."""
    root, draws = tmp_path_factory.mktemp("tasks"), random.Random(0)
    rows = {"toy_choice": [], "toy_writing": []}
    for number in range(12):
        prompt = " ".join(draws.choices(WORDS, k=3 + number % 5))
        options = [" ".join(draws.choices(WORDS, k=draws.randint(1, 3))) for _ in range(4)]
        options = options[: 2 + number % 3]
        rows["toy_choice"].append({"prompt": prompt, "options": options, "gold": number % 2})
        rows["toy_writing"].append({"prompt": prompt, "answer": options[0]})
    for (name, items), text in zip(rows.items(), (MULTIPLE, WRITTEN), strict=True):
        data = root / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items))
        (root / f"{name}.yaml").write_text((text + COMMON).format(name=name, data=data))
    return root


@pytest.fixture(scope="module")
def docs(folder):
    lines = (folder / "toy_choice.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def asking(*tasks, **settings):
    return Evaluate(name="toy", tasks=tuple(map(str, tasks)), **settings)


def scored(model, tokenizer, evaluate, **settings):
    execution = Execution(eval_batch_size=settings.pop("batch", 4))
    return harness.score(model, tokenizer, evaluate, execution=execution, **settings)


def naive_loglikelihood(model, context, answer):
    """Summed log-probability of `answer` and whether each of its tokens is the likeliest."""
    logits_LV = model(torch.tensor([context + answer])).logits[0].double()
    logp_LV = logits_LV.log_softmax(-1)[len(context) - 1 : -1]
    total = sum(float(logp_LV[t, token]) for t, token in enumerate(answer))
    return total, logp_LV.argmax(-1).tolist() == answer


# -- the harness --------------------------------------------------------------------------------


def test_item_scores_are_those_of_the_log_likelihoods(model, tokenizer, folder, docs):
    expected = []
    for doc in docs:
        context = tokenizer(doc["prompt"])["input_ids"]
        options = [tokenizer(f"{doc['prompt']} {option}")["input_ids"] for option in doc["options"]]
        found = [naive_loglikelihood(model, context, ids[len(context) :])[0] for ids in options]
        second, best = sorted(dict(zip(doc["options"], found, strict=True)).values())[-2:]
        # Different options are further apart than rounding moves either; equal ones tie exactly.
        assert best - second > 2 * CLOSE
        expected.append(float(np.argmax(found) == doc["gold"]))
    found = scored(model, tokenizer, asking(folder / "toy_choice.yaml"))[0]
    assert [doc for doc, _ in found.items] == list(range(len(docs)))
    assert [score for _, score in found.items] == expected
    assert 0 < sum(expected) < len(docs)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.se == pytest.approx(np.std(expected, ddof=1) / math.sqrt(len(docs)))
    assert (found.n, found.metric, found.higher_is_better) == (12, "acc", True)


def test_equals_lm_evals_own_evaluation(model, tokenizer, folder):
    names = ["toy_choice", "toy_writing"]
    with quiet():
        tasks = TaskManager(include_path=str(folder), include_defaults=False).load(names)["tasks"]
        peer = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
        theirs = evaluator.evaluate(peer, {"tasks": tasks}, limit=10, bootstrap_iters=0)
    ours = scored(model, tokenizer, asking(folder, limit=10))
    assert [(s.task, s.metric) for s in ours] == [
        ("toy_choice", "acc"), ("toy_choice", "acc_norm"), ("toy_writing", "chrf"),
    ]  # fmt: skip
    for one in ours:
        assert one.value == pytest.approx(theirs["results"][one.task][f"{one.metric},none"])
        assert one.n == 10
    for one in ours[:2]:
        answers = [sample[one.metric] for sample in theirs["samples"]["toy_choice"]]
        assert [score for _, score in one.items] == answers
    chrf = [
        CHRF().sentence_score(sample["filtered_resps"][0], [sample["target"]]).score
        for sample in theirs["samples"]["toy_writing"]
    ]
    assert [score for _, score in ours[2].items] == pytest.approx(chrf)
    assert max(chrf) > min(chrf)


def test_built_requests_serve_again_and_hold_no_old_answers(model, tokenizer, folder):
    evaluate = asking(folder)
    first = scored(model, tokenizer, evaluate)
    other = scored(model_of(seed=1), tokenizer, evaluate)
    again = scored(model, tokenizer, evaluate)
    assert first == again
    assert first[0].items != other[0].items
    benchmark = harness.prepare(evaluate)[0]
    assert benchmark is harness.prepare(evaluate)[0]
    assert {len(i.resps) for task in benchmark.tasks.values() for i in task.instances} == {1}


def test_a_second_model_is_asked_what_was_made_for_the_first(model, tokenizer, folder, monkeypatch):
    def again(*_, **__):
        raise AssertionError("made again")

    evaluate = asking(folder)
    first = scored(model, tokenizer, evaluate)
    monkeypatch.setattr(type(tokenizer), "encode", again)
    monkeypatch.setattr(evaluator, "hash_string", again)  # of every document, as JSON
    assert scored(model, tokenizer, evaluate) == first
    assert scored(model_of(seed=1), tokenizer, evaluate) != first


def test_a_metric_that_reads_lm_evals_samples_has_them(model, tokenizer, folder):
    text = (WRITTEN + COMMON).format(name="bare", data=folder / "toy_writing.jsonl")
    (folder / "bare.yaml").write_text(
        text.replace("metric: chrf, aggregation: chrf", "metric: bypass")
    )
    try:
        (found,) = scored(model, tokenizer, asking(folder / "bare.yaml"))
    finally:
        (folder / "bare.yaml").unlink()
    assert (found.metric, found.n, len(found.answers)) == ("bypass", 12, 12)


def test_batch_size_changes_nothing(model, tokenizer, folder):
    one, many = (scored(model, tokenizer, asking(folder), batch=size) for size in (1, 64))
    assert [s.items for s in one] == [s.items for s in many]


def test_random_state_and_mode_are_left_alone(model, tokenizer, folder):
    model.train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    scored(model, tokenizer, asking(folder))
    assert model.training
    model.eval()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_sampled_answers_come_from_the_seed_alone(model, tokenizer, folder):
    def items(seed):
        return scored(model, tokenizer, asking(folder / "sampled.yaml"), seed=seed)[0].items

    text = WRITTEN.replace("do_sample: false", "do_sample: true, temperature: 1.0")
    written = (text + COMMON).format(name="sampled", data=folder / "toy_writing.jsonl")
    (folder / "sampled.yaml").write_text(written)
    try:
        torch.rand(1)
        assert items(seed=1) == items(seed=1) != items(seed=2)
    finally:
        (folder / "sampled.yaml").unlink()


def test_the_micro_tasks_say_of_themselves_what_their_table_says(model, tokenizer):
    prepared = harness.prepare(asking(*micro.TASKS, limit=2))
    for bench in prepared:
        (task,) = bench.tasks.values()
        about, info = harness._metadata(bench.unit, task), micro.TASKS[bench.unit]
        found = (about["task_type"], about["side"], about["skill"])
        assert found == (info.task_type, info.side, info.skill)
        assert harness._chance(task, info.metric) == info.chance
        assert about["version"] == micro.version()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
def test_an_adapter_is_scored_unmerged_as_it_would_be_merged(tokenizer, folder):
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(model_of(), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(40)  # enough to change answers
    live = scored(adapted, tokenizer, asking(folder))
    untouched = scored(model_of(), tokenizer, asking(folder))
    assert [s.items for s in live] != [s.items for s in untouched]
    merged = scored(adapted.merge_and_unload(), tokenizer, asking(folder))
    assert [s.items for s in live] == [s.items for s in merged]


def test_metadata_is_the_tasks_own_or_follows_from_its_kind(model, tokenizer, folder):
    choice, _, writing = scored(model, tokenizer, asking(folder, limit=6))
    assert (choice.task_type, choice.side, choice.skill) == ("mc", "both", "toy_choice")
    assert choice.chance == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4] * 2))
    assert (writing.task_type, writing.side, writing.skill) == ("long", "target", "writing")
    assert (writing.version, writing.chance) == ("3.0", 0.0)
    assert choice.asked == writing.asked == str(folder)


def test_settings_reach_the_task(model, tokenizer, folder):
    path = folder / "toy_writing.yaml"
    short = harness.prepare(asking(path, limit=5, max_new_tokens=3))[0].tasks["toy_writing"]
    assert len(short.instances) == 5
    assert {i.args[1]["max_gen_toks"] for i in short.instances} == {3}
    shots = harness.prepare(asking(path, num_fewshot=2))[0].tasks["toy_writing"]
    assert all(i.args[0].count("\n\n") == 2 for i in shots.instances)
    assert shots is not short


def test_prompts_may_go_through_the_chat_template(tokenizer, folder, docs):
    bench = harness.prepare(asking(folder / "toy_choice.yaml"), tokenizer, chat=True)[0]
    prompts = {i.doc_id: i.args[0] for i in bench.tasks["toy_choice"].instances}
    assert prompts[0] == f"<s>[INST] {docs[0]['prompt']} [/INST]"


def test_shots_of_a_chat_are_turns_unless_asked_otherwise(tokenizer, folder):
    path = folder / "toy_writing.yaml"

    def first(**settings):
        asked = asking(path, num_fewshot=2, **settings)
        (task,) = harness.prepare(asked, tokenizer, chat=True)[0].tasks.values()
        return task.instances[0].args[0]

    assert first().count("[INST]") == 3
    assert first(fewshot_as_multiturn=False).count("[INST]") == 1


def asked_of(wanted, dataset, model):
    """What of an untouched base's cell the keys of its scores are made of."""
    train = SimpleNamespace(max_length=256, boundary="offset")
    about = {"adapter": None, "train": train, "base_precision": "fp32", "is_base": True}
    return SimpleNamespace(evaluate=wanted, dataset=dataset, model=model, **about)


def units_of(cell):
    memo = identity.Memo()
    asked = identity._asked(cell, None, memo)
    return identity.Identity("a run", asked, None, None, None, (cell, {}, memo)).units


def test_how_chat_prompts_are_made_is_in_the_score_key_of_chats_alone():
    def units(template, **settings):
        dataset = Dataset(name="d", source="local", path="d.jsonl", template=template)
        model = Model(name="m", source="local", path="m")
        wanted = asking("micro_lives", heldout=(), **settings)
        return units_of(asked_of(wanted, dataset, model))

    assert units("alpaca") == units("plain") == units("alpaca", fewshot_as_multiturn=False)
    keys = {units("alpaca"), units("chat"), units("chat", fewshot_as_multiturn=False)}
    assert len(keys) == 3
    old = identity.digest(
        ["a run", "task", "micro_lives", [f"micro-{micro.version()}"] + [None] * 3 + [False]]
    )
    assert units("alpaca")[0].key == old


def test_a_system_text_that_the_template_refuses_is_left_out_and_the_day_is_fixed(make_bytes):
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}{{ strftime_now('%Y') }}"
    )
    folder = make_bytes("</s>", eos_token="</s>", chat_template=template)
    render = requests.chat_template(AutoTokenizer.from_pretrained(folder))
    said = [{"role": "system", "content": "Hm"}, {"role": "user", "content": "Hi"}]
    assert render(said) == "user: Hi</s>2024"


BOS_CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}" + (
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def bos_folder(tokenizer_folders, tmp_path):
    """A tokenizer that adds BOS, with a chat template that writes none."""
    folder = shutil.copytree(tokenizer_folders["llama"], tmp_path / "bos")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "chat_template": BOS_CHATML,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


IN_PARTS = {  # templates for images: what a turn says is a list, of which they show the texts
    "each part": "{% for m in messages %}{{ m.role + ':' }}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{{ '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    "the first part": "{% for m in messages %}{{ m.role + ':' + m.content[0]['text'] + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    "the system's text apart": "{% for m in messages %}{{ m.role + ':' }}"
    "{% if m.role == 'system' %}{{ m.content | trim }}{% else %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}"
    "{% endif %}{{ '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
}


@pytest.mark.parametrize("name", IN_PARTS)
def test_templates_that_take_parts_alone_are_asked_as_they_are_trained(name, make_bytes):
    """Beside transformers, which is given the parts."""
    folder = make_bytes("<end>", eos_token="<end>", chat_template=IN_PARTS[name])
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    said = [("system", "Hum."), ("user", "Say: a?"), ("assistant", "b</think>")]
    parts = {"user": "instruction", "assistant": "completion", "system": "system"}
    rows = Row(turns=tuple(Turn(role, ((parts[role], text),)) for role, text in said))
    chat = Dataset(name="", source="local", path="d", template="chat")
    found = render(rows, chat, ours)
    own = {"system"} if "apart" in name else set()
    given = [
        {"role": r, "content": t if r in own else [{"type": "text", "text": t}]} for r, t in said
    ]
    assert found.text == theirs.apply_chat_template(given, tokenize=False)
    asked = [{"role": role, "content": text} for role, text in said[:-1]]
    prompt = requests.chat_template(theirs)(asked)
    settings = {"tokenize": False, "add_generation_prompt": True}
    assert prompt == theirs.apply_chat_template(given[:-1], **settings)
    assert found.text == prompt + "b</think><end>\n"
    assert live_module.chat_stop_of(theirs) == ours.chat_stop
    assert ours.chat_stop.text == "<end>"


def live(model, tokenizer, **settings):
    return LiveLM(model, tokenizer, batch_size=2, memo=TokenMemo(), **settings)


def test_a_prompt_has_the_ids_that_training_gave_it(bos_folder, tokenizer_folders, model):
    """Chat and plain text, with and without a BOS of the tokenizer's and of the template's."""
    said = [("user", "Name  the capital\n"), ("assistant", "Paris, naïve"), ("user", " a fox? ")]
    messages = [{"role": role, "content": text} for role, text in said]
    parts = {"user": "instruction", "assistant": "completion"}
    turns = tuple(Turn(role, ((parts[role], text),)) for role, text in said)
    row = Row(turns=(*turns, Turn("assistant", (("completion", "Yes"),))))
    for folder in (bos_folder, tokenizer_folders["llama"], tokenizer_folders["qwen"]):
        tokenizer, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
        for template in ("chat", "plain"):
            rendered = render(
                row, Dataset(name="", source="local", path="d", template=template), ours
            )
            cut = rendered.text.rindex("Yes")
            prompt = rendered.text[:cut].rstrip(" ")
            trained = [ours.bos] * rendered.add_bos + ours.encode(prompt).ids.tolist()
            if template == "chat":
                asked = requests.chat_template(tokenizer)(messages)
                assert asked == prompt
            lm = live(model, tokenizer, chat=template == "chat")
            assert lm.tok_encode(prompt) == trained
            ids_BL, mask_BL = lm.tok_batch_encode([prompt, prompt[9:]])
            assert ids_BL[0][mask_BL[0] == 1].tolist() == trained


def test_no_eos_stands_behind_a_prompt(make_bytes, model):
    folder = make_bytes("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=special
    )
    assert tokenizer("ab").input_ids[-1] == tokenizer.eos_token_id
    found = live(model, tokenizer)._encode_pair("ab", " cd")
    bare = tokenizer("ab cd", add_special_tokens=False).input_ids
    assert found == ([tokenizer.bos_token_id, *bare[:2]], bare[2:])


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("short", [True, False])
def test_generation_ends_at_the_chat_templates_stop(short, special, make_bytes, monkeypatch):
    """The stop that training learnt, whatever eos_token says, special or not."""
    names = ("<|eos|>", *(["<|im_end|>"] if special else []))
    template = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>\n' }}{% endfor %}"
    folder = make_bytes(*names, eos_token="<|eos|>", chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not special:
        tokenizer.add_tokens(["<|im_end|>"])
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = LlamaConfig(**TINY | {"vocab_size": len(tokenizer), "eos_token_id": None})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    prompts = ["user:Hi<|im_end|>\n", "user:Hello, you<|im_end|>\n"]
    asked = [
        Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": 9}), 0) for p in prompts
    ]
    ids = tokenizer(prompts[0]).input_ids
    free = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[
        0, len(ids) :
    ].tolist()
    at = next(t for t in range(1, 9) if free[t] not in free[:t])
    head = model.lm_head.weight.data  # the token said then is from now on the stop
    head[[free[at], stop]] = head[[stop, free[at]]]
    monkeypatch.setattr(live_module, "short_ways", lambda model: short)
    said = live(model, tokenizer, chat=True).generate_until(asked)
    assert said[0] == tokenizer.decode(free[:at])
    assert live(model, tokenizer, chat=False).generate_until(asked)[0] != said[0]


def test_an_answer_swallowed_by_its_prompt_is_refused_in_one_line(make_bytes, model):
    folder = make_bytes("</s>", eos_token="</s>", merges=[("q", "u")])
    lm = live(model, AutoTokenizer.from_pretrained(folder))
    requests_ = [Instance("loglikelihood", {}, ("Say q", answer), 0) for answer in ("u", " no")]
    with pytest.raises(UserError, match="'u' has no token of its own behind 'Say q'") as error:
        lm.loglikelihood(requests_)
    assert "\n" not in str(error.value)


def test_no_task_no_score(model, tokenizer):
    assert scored(model, tokenizer, asking()) == []


def test_a_task_whose_data_is_missing_is_one_line(folder, tmp_path):
    text = (MULTIPLE + COMMON).format(name="lost", data=tmp_path / "nowhere.jsonl")
    (tmp_path / "lost.yaml").write_text(text)
    with pytest.raises(UserError, match=r"evaluate.tasks=.*lost.yaml: cannot be loaded") as error:
        harness.prepare(asking(tmp_path / "lost.yaml"))
    assert "\n" not in str(error.value)


FAULTS = {  # what is wrong in a task file, and what the message says
    "doc_to_target: '{{ 7 }}'": "its doc_to_target is 7 in the first item, which has 2 choices",
    "doc_to_choice: ['', 'b']": "its doc_to_choice has an empty text in the first item",
    "doc_to_text: '{{ q.nope.nope }}'": r"its doc_to_text fails \(UndefinedError: .*'nope'\)",
    "metric_list: [{metric: acuracy}]": "metric_list=acuracy: .*Did you mean 'acc",
    "test_split: tset": "its test_split is 'tset', which its data does not have",
    "test_split: nothing\ndataset_path: nobody/nothing": r"\(.*nobody/nothing.*; the hub cannot be",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_in_a_task_file_is_named(fault, tmp_path):
    """The hub has to do with the last one only."""
    (tmp_path / "q.jsonl").write_text('{"q": "a", "opts": ["a", "b"], "gold": 1}\n' * 2)
    task = {
        "task": "wrong",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": "opts",
        "doc_to_target": "gold",
    }
    text = yaml.safe_dump(task | yaml.safe_load(fault))
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(UserError, match=f"evaluate.tasks=.*wrong.yaml: .*{FAULTS[fault]}") as error:
        harness.prepare(asking(tmp_path / "wrong.yaml"))
    assert ("hub" in str(error.value)) == ("nobody" in fault)
    assert "\n" not in str(error.value)


def test_a_later_item_that_cannot_be_asked_is_named(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"q": {"a": {"b": "x"}}}\n{"q": {"a": null}}\n')
    text = (
        "task: late\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{ q.a.b }}'\ndoc_to_target: x\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'q.jsonl'}}}}}\n"
    )
    (tmp_path / "late.yaml").write_text(text)
    with pytest.raises(UserError, match=r"late.yaml: its doc_to_text fails \(UndefinedError"):
        harness.prepare(asking(tmp_path / "late.yaml"))


# -- the short ways -----------------------------------------------------------------------------


def test_every_checked_architecture_is_compared_here():
    assert set(CONFIGS) == set(shapes.CHECKED)


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_contexts_equal_one_sequence_at_a_time(name):
    model, draws = model_of(name), np.random.default_rng(0)
    assert shapes.short_ways(model)
    pairs = []
    for size in (9, 1, 5):  # the third has more continuations than a row holds
        context = draws.integers(3, 512, size).tolist()
        count = 3 if size != 5 else choices.MOST_ANSWERS + 2
        pairs += [(context, draws.integers(3, 512, 1 + i % 4).tolist()) for i in range(count)]
    likeliest = int(model(torch.tensor([pairs[0][0]])).logits[0, -1].argmax())
    pairs.append((pairs[0][0], [likeliest]))
    found = choices.loglikelihoods(model, pairs, batch_size=2)
    expected = [naive_loglikelihood(model, *pair) for pair in pairs]
    assert [total for total, _ in found] == pytest.approx([t for t, _ in expected], abs=CLOSE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[-1][1]


def test_the_same_answer_twice_is_a_tie_to_the_last_digit(model):
    draws = random.Random(2)
    context, *answers = (draws.choices(range(3, 512), k=size) for size in (30, 5, 4, 5, 2))
    again = [answers[i] for i in draws.choices(range(4), k=60)]
    found = choices.loglikelihoods(model, [(context, answer) for answer in again], batch_size=4)
    for answer in answers:
        assert len({f for a, f in zip(again, found, strict=True) if a == answer}) == 1
    expected = [naive_loglikelihood(model, context, answer)[0] for answer in again]
    assert [f for f, _ in found] == pytest.approx(expected, abs=CLOSE)


def asked_at_random(seed=0, most=40):
    draws = random.Random(seed)
    contexts = [draws.choices(range(3, 500), k=draws.randint(3, most)) for _ in range(30)]
    answers = [draws.choices(range(3, 500), k=draws.randint(1, 6)) for _ in range(120)]
    return [(contexts[i // 4], answer) for i, answer in enumerate(answers)]


def token_errors(found, expected, pairs):
    sizes = np.array([len(answer) for _, answer in pairs])
    return np.abs(np.array([x for x, _ in found]) - [x for x, _ in expected]) / sizes


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_likelihoods_are_as_near_as_those_of_a_model_in_bf16(name):
    model, pairs = model_of(name), asked_at_random()
    exact = [naive_loglikelihood(model, *pair) for pair in pairs]
    lowered = copy.deepcopy(model)
    for parameter in lowered.parameters():  # as from_pretrained has it: buffers stay
        parameter.data = parameter.data.bfloat16()
    plain = [naive_loglikelihood(lowered, *pair) for pair in pairs]
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with computed_in(model, "bf16"):
        ours = choices.loglikelihoods(model, pairs, batch_size=16)
        other = choices.loglikelihoods(model, pairs, batch_size=3)
    error, theirs = token_errors(ours, exact, pairs), token_errors(plain, exact, pairs)
    assert error.mean() < 1.3 * theirs.mean() < BF16_MEAN
    assert error.max() < BF16_MOST
    assert token_errors(ours, other, pairs).mean() < BF16_MEAN / 10  # what a batch does
    after = model.state_dict()
    assert all(torch.equal(after[n], p) and after[n].dtype == p.dtype for n, p in before.items())


def test_bf16_likelihoods_of_the_micro_model_are_within_the_stated_bounds():
    folder = conf_dir().parent / "ablate/micro/checkpoints/micro_0"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    lm, pairs = live(model, tokenizer), []
    for bench in harness.prepare(asking("micro_knowledge", "micro_questions", limit=40)):
        for request in bench.tasks[bench.unit].instances:
            context, whole = lm.tok_encode(request.args[0]), lm.tok_encode("".join(request.args))
            pairs.append((context, whole[len(context) :]))
    exact = choices.loglikelihoods(model, pairs, batch_size=16)
    with computed_in(model, "bf16"):
        error = token_errors(choices.loglikelihoods(model, pairs, batch_size=16), exact, pairs)
    assert 0.001 < error.mean() < BF16_MEAN
    assert error.max() < BF16_MOST


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
@pytest.mark.parametrize("short", [True, False])
def test_bf16_reaches_every_way_of_scoring_and_leaves_an_adapter_alone(
    short, tokenizer, folder, monkeypatch
):
    monkeypatch.setattr(live_module, "short_ways", lambda model: short)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted, seen = get_peft_model(model_of(), config), set()
    head = adapted.get_output_embeddings()
    head.register_forward_hook(lambda module, args, made: seen.add((made.dtype, kinds())))

    def kinds():
        parameters = adapted.named_parameters()
        return tuple(sorted({("lora" in name, str(p.dtype)) for name, p in parameters}))

    with computed_in(adapted, "bf16"):
        scored(adapted, tokenizer, asking(folder, limit=2))
    assert seen == {(torch.bfloat16, ((False, "torch.bfloat16"), (True, "torch.float32")))}
    assert {p.dtype for p in adapted.parameters()} == {torch.float32}
    with computed_in(adapted, "fp32"):
        scored(adapted, tokenizer, asking(folder, limit=2))
    assert {dtype for dtype, _ in seen} == {torch.bfloat16, torch.float32}


def test_bf16_is_in_the_key_of_what_a_model_computes_and_in_no_other():
    model = Model(name="m", source="local", path="m")
    dataset = Dataset(name="d", source="local", path="d.jsonl")

    def keys(precision):
        wanted = asking("micro_lives", heldout=(), precision=precision)
        cell = asked_of(wanted, dataset, model)
        return {u.name: u.key for u in units_of(cell)}

    old = identity.digest(
        ["a run", "task", "micro_lives", [f"micro-{micro.version()}"] + [None] * 3 + [False]]
    )
    assert keys("fp32") == {"micro_lives": old}
    assert keys("bf16") != keys("fp32")


@pytest.mark.parametrize("every", [1, 3, 8])  # 8 is a GPU's way
@pytest.mark.parametrize("name", [*CONFIGS, "eager"])
def test_greedy_decoding_equals_transformers(name, every, monkeypatch):
    monkeypatch.setitem(generate.LOOK_EVERY, "cpu", every)
    monkeypatch.setattr(static, "ROOM", 5)  # grows on the way
    model, draws = model_of(name.replace("eager", "LlamaForCausalLM")), np.random.default_rng(0)
    if name == "eager":
        model.set_attn_implementation("eager")
    prompts = [draws.integers(3, 512, size).tolist() for size in (2, 11, 7, 5, 3)]
    free = [_by_generate(model, prompt, [2]) for prompt in prompts]
    stops = [2, free[0][4], free[1][1]]  # rows end at different steps
    found = generate.answers(model, prompts, stops=stops, max_new=16, batch_size=3)
    assert found == [_by_generate(model, prompt, stops) for prompt in prompts]
    assert len({len(tokens) for tokens in found}) > 1


@pytest.mark.parametrize("every", [1, 8])
def test_decoding_hands_on_what_was_read_under_the_name_that_the_model_has_for_it(every):
    """transformers 5.24 says `cache` for past_key_values, and 5.40 takes the old name no more."""
    model, ids = model_of(), torch.tensor([[0, 5, 6, 7], [9, 8, 7, 6]])
    asked, ends = {"max_new": 12, "look_every": every}, generate.Ends((511,))
    expected = generate.greedy(model, ids, (ids > 0).long(), ends=ends, **asked)
    plain = type(model)

    class Renamed(plain):
        def forward(self, cache=None, **given):
            assert "past_key_values" not in given
            if "past_key_values" not in inspect.signature(plain.forward).parameters:
                return super().forward(cache=cache, **given)
            made = super().forward(past_key_values=cache, **given)
            return SimpleNamespace(logits=made.logits, cache=made.past_key_values)

    model.__class__ = Renamed
    found = generate.greedy(model, ids, (ids > 0).long(), ends=ends, **asked)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("item", "_local_scalar_dense", "nonzero")
        return func(*args, **(kwargs or {}))


def test_decoding_waits_for_the_device_every_eighth_token_alone():
    model, ids = model_of(), torch.tensor([[0, 5, 6, 7], [9, 8, 7, 6]])
    mask = (ids > 0).long()

    def waits(max_new, every):
        with Waits() as waited:
            ends = generate.Ends((511,))
            generate.greedy(model, ids, mask, max_new=max_new, ends=ends, look_every=every)
        return waited.count

    assert waits(64, every=8) - waits(32, every=8) == 4
    assert waits(64, every=1) - waits(32, every=1) >= 32


def shapes_of(model):
    """A list that fills with the shapes of the ids that `model` and its head are given."""
    seen = {"ids": [], "head": []}
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen["ids"].append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, made: seen["head"].append(tuple(made.shape))
    )
    return seen


def test_batches_keep_to_their_budget_of_tokens_and_give_the_same_numbers():
    model, pairs = model_of(), asked_at_random(most=60)
    whole = choices.loglikelihoods(model, pairs, batch_size=64)
    seen = shapes_of(model)
    found = choices.loglikelihoods(model, pairs, batch_size=64, batch_tokens=200)
    assert max(rows * length for rows, length in seen["ids"]) <= 200
    assert len(seen["ids"]) > 5
    assert [x for x, _ in found] == pytest.approx([x for x, _ in whole], abs=CLOSE)
    assert list(passes.batches([3, 9, 5, 300], rows=2, tokens=20)) == [[3], [1, 2], [0]]


def test_the_head_sees_scored_positions_alone(monkeypatch):
    model, pairs = model_of(), asked_at_random()
    seen = shapes_of(model)
    choices.loglikelihoods(model, pairs, batch_size=64)
    assert sum(rows * length for rows, length, _ in seen["head"]) == sum(len(a) for _, a in pairs)
    rows, model = toys.examples(7), toys.llama()
    monkeypatch.setattr(heldout, "WHOLE", {})
    seen = shapes_of(model)
    heldout.losses(model, toys.tokenised(rows), batch_size=3)
    assert sum(b * n for b, n, _ in seen["head"]) == sum(len(ids) - 1 for ids, _ in rows)


def test_generation_keeps_to_its_budget_of_tokens(tokenizer, folder):
    model = model_of()
    whole = scored(model, tokenizer, asking(folder / "toy_writing.yaml"), batch=12)
    seen = shapes_of(model)
    lm_budget = Execution(eval_batch_size=12, eval_batch_tokens=100)
    found = harness.score(
        model, tokenizer, asking(folder / "toy_writing.yaml"), execution=lm_budget
    )
    assert [s.items for s in found] == [s.items for s in whole]
    assert max(rows * (length + 12) for rows, length in seen["ids"] if length > 1) <= 100


@pytest.mark.parametrize("budget", [2**15, 300])
def test_one_request_that_is_too_long_leaves_the_others_their_short_way(
    budget, model, tokenizer, monkeypatch
):
    taken = []
    whole = choices.loglikelihoods
    monkeypatch.setattr(
        choices, "loglikelihoods", lambda m, pairs, **k: taken.extend(pairs) or whole(m, pairs, **k)
    )
    pairs = asked_at_random()[:9]
    pairs[4:4] = [([7] * 126, [5, 9, 6]), ([8] * 150, [5, 9])]  # of 128 positions
    requests_ = [((f"{n}", "x"), *pair) for n, pair in enumerate(pairs)]
    ours = live(model, tokenizer, batch_tokens=budget)._loglikelihood_tokens(requests_)
    assert len(taken) == 9
    peer = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    theirs = peer._loglikelihood_tokens(requests_, disable_tqdm=True)
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], abs=CLOSE)
    assert [x for _, x in ours] == [x for _, x in theirs]


def _by_generate(model, prompt, stops):
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=0,
    )
    tokens = made[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens[-1] in stops else tokens


def test_other_architectures_take_the_long_way(tokenizer, folder):
    config = Gemma2Config(**TINY, head_dim=8, sliding_window=4, layer_types=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gemma = AutoModelForCausalLM.from_config(config).eval()
    assert not shapes.short_ways(gemma)
    prompts = [[5, 9, 30, 31, 7, 90], [8, 9]]
    found = generate.answers(gemma, prompts, stops=[2], max_new=6, batch_size=2)
    assert all(len(tokens) == 6 for tokens in found)
    assert found[1] == _by_generate(gemma, prompts[1], [2])[:6]
    assert len(scored(gemma, tokenizer, asking(folder))) == 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
def test_a_window_or_a_learnt_prefix_takes_the_long_way():
    prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    assert not shapes.short_ways(get_peft_model(model_of(), prompts))
    assert not shapes.short_ways(AutoModelForCausalLM.from_config(MistralConfig(**TINY)))


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("micro_knowlege", "Did you mean 'micro_knowledge'"),
        ("arc_chalenge", "Did you mean 'arc_challenge'"),
        ("./no_such_file.yaml", "no such file or folder"),
        ("{empty}/", "no YAML file with a `task:` name"),
        ("{empty}/broken.yaml", "not a task file"),
    ],
)
def test_a_wrong_task_is_one_line(name, said, tmp_path, monkeypatch):
    monkeypatch.setattr(stock_index, "index", lambda: {"arc_challenge": "a.yaml", "mmlu": []})
    if name.endswith("broken.yaml"):
        (tmp_path / "broken.yaml").write_text("task: [unclosed\nother: {")
    with pytest.raises(UserError, match=r"^evaluate.tasks=") as error:
        tasks_index.check_tasks(["micro_lives", name.format(empty=tmp_path)])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_measure_is_one_line():
    with pytest.raises(UserError, match="Did you mean 'prompt_bleu'"):
        tasks_index.check_measures(["weight_distance", "promt_bleu"])


def test_names_lead_where_they_should(folder, monkeypatch):
    monkeypatch.setattr(stock_index, "index", lambda: {"piqa": "piqa/piqa.yaml", "mmlu": []})
    kinds = [tasks_index.find(name).kind for name in ("micro_lives", str(folder), "piqa", "mmlu")]
    assert kinds == ["micro", "path", "task", "group"]
    assert tasks_index.task_names(folder) == ["toy_choice", "toy_writing"]
    assert tasks_index.known_tasks()[0].startswith("micro_")
    assert "mmlu" in tasks_index.known_tasks()


def test_a_score_key_holds_a_task_files_content_and_not_its_place(tmp_path):
    def key(path):
        asked = Evaluate(name="mine", tasks=(str(path),))
        [(kind, name, rest)] = identity._benchmarks(asked, [False])
        assert name == str(path)  # by which it is loaded
        return identity.digest(["a run", kind, *rest])

    for folder in ("one", "two", "other"):
        (tmp_path / folder).mkdir()
        text = "task: mine\n" + ("# more\n" if folder == "other" else "")
        (tmp_path / folder / "mine.yaml").write_text(text)
    paths = [tmp_path / folder / "mine.yaml" for folder in ("one", "two", "other")]
    here, moved, changed = map(key, paths)
    assert here == moved
    assert here != changed
    (tmp_path / "deep").mkdir()
    copied = shutil.copytree(tmp_path / "one", tmp_path / "deep" / "one")
    assert key(copied) == key(tmp_path / "one") != here


def test_a_task_files_version_is_its_content_and_that_of_what_it_names(tmp_path, monkeypatch):
    (tmp_path / "tasks" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    task = (
        "include: base.yml\ntask: mine\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: from_here.jsonl, train: ['rows/*.jsonl']}}\n"
    )
    files = {
        "tasks/mine.yaml": task, "tasks/base.yml": "test_split: test\n", "tasks/utils.py": "1",
        "from_here.jsonl": "1", "tasks/rows/a.jsonl": "1", "tasks/rows/b.jsonl": "1",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def version():
        tasks_index._files_hash.cache_clear()
        return tasks_index.task_version("tasks/mine.yaml")

    first = version()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n# more\n")
        assert version() != first, name
        (tmp_path / name).write_text(text)
    for name in ("tasks/other.yaml", "tasks/results/cells/record.json", "notes.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("task: another\n")
    assert version() == first


def test_names_are_checked_without_torch():
    code = (
        "import sys; from ablate.evaluate import tasks_index as t; "
        "t.check_tasks(['micro_lives']); t.check_measures(['prompt_bleu']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_the_kept_list_of_stock_names_is_lm_evals(own_cache):
    stock_index.index.cache_clear()
    theirs = TaskManager()
    assert set(stock_index.index()) == set(theirs.all_tasks)
    loaded = tasks_index.find("arc_challenge").path
    assert loaded == theirs.task_index["arc_challenge"].yaml_path
    assert not any(name.startswith(tasks_index.OURS) for name in theirs.all_tasks)


# -- levels -------------------------------------------------------------------------------------


def levels():
    found = {}
    for path in sorted((conf_dir() / "evaluate").glob("*.yaml")):
        found[path.stem] = yaml.safe_load(path.read_text())
    return found


def test_levels_name_themselves_and_what_exists():
    for name, level in levels().items():
        assert level["name"] == name
        tasks_index.check_measures(level.get("measures", []))
        if name.startswith("micro"):
            tasks_index.check_tasks(level["tasks"])


def test_the_papers_benchmarks_are_those_of_its_table():
    level = levels()["plw_paper"]
    choice = {"arc_challenge", "piqa", "truthfulqa_mc2", "winogrande"}
    assert choice | {"truthfulqa_gen"} < set(level["tasks"])
    assert len([task for task in level["tasks"] if task.startswith("wmt")]) == 6
    assert len(level["tasks"]) == 11
    others = {"memorised", "weight_spectrum", "spectrum_counts"}
    assert set(level["measures"]) == set(tasks_index.MEASURES) - others


# -- held-out loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [0, 2**26])
def test_heldout_losses_equal_the_naive_ones(whole, monkeypatch):
    monkeypatch.setitem(heldout.WHOLE, "cpu", whole)
    rows, model = toys.examples(7), toys.llama(torch.float64)
    found = heldout.losses(model, toys.tokenised(rows), batch_size=3)
    expected = {}
    for ids, roles in rows:
        with torch.no_grad():
            losses = reference.token_losses(model, ids)
        for role, loss in list(zip(roles, losses, strict=True))[1:]:
            total, count = expected.get(NAMES[role], (0.0, 0))
            expected[NAMES[role]] = (total + float(loss), count + 1)
    assert {role: count for role, (_, count) in found.items()} == {
        role: count for role, (_, count) in expected.items()
    }
    for role, (total, _) in expected.items():
        assert found[role][0] == pytest.approx(total, rel=1e-5), role


def test_heldout_scores_are_means_of_the_first_rows_in_any_batch():
    rows, model = toys.examples(7), toys.llama(torch.float64)
    evaluate = Evaluate(name="toy", heldout_rows=5)
    parts = toys.tokenised(rows)
    one, many = (
        heldout.score(model, parts, "test", evaluate, execution=Execution(eval_batch_size=size))
        for size in (1, 5)
    )
    sums = heldout.losses(model, toys.tokenised(rows[:5]))
    assert {s.metric: s.value for s in one} == pytest.approx(
        {f"loss_{role}": total / count for role, (total, count) in sums.items()}
    )
    for a, b in zip(one, many, strict=True):
        assert (a.task, a.metric, a.n) == (b.task, b.metric, b.n)
        assert a.value == pytest.approx(b.value, rel=1e-6)
        assert (a.task, a.task_type, a.higher_is_better) == ("heldout_test", "heldout", False)
    assert [s.metric for s in one].count("loss_completion") == 1


def test_equal_rows_have_equal_scores_and_no_error():
    rows, model = toys.examples(1) * 3, toys.llama(torch.float64)
    found = heldout.score(
        model, toys.tokenised(rows), "test", Evaluate(name="toy"), execution=Execution()
    )
    for one in found:
        assert [score for _, score in one.items] == pytest.approx([one.value] * 3)
        assert one.se == pytest.approx(0, abs=1e-9)


def test_the_error_of_one_item_is_unknown():
    assert standard_error([1.0]) is None
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
