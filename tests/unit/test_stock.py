"""Item by item what stock lm-eval says: `simple_evaluate` and `HFLM` at batch sizes 1 and 64.

The tasks are files that the test writes, the models tiny random ones far from uniform predictions,
the tokenizers real ones trained here. Metrics must be equal exactly; log-likelihoods are sums of a
few float32 log-probabilities from other shapes of the same products.
"""

import copy
import json
import random
from functools import cache

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ablate.config.schema import Evaluate, Execution
from ablate.evaluate import harness
from ablate.evaluate.requests import quiet
from ablate.micro import tasks as micro
from ablate.paths import conf_dir

CLOSE = 1e-4
WINDOW = 96  # positions of the models
WORDS = ["fox", "dog", "cap", "ital", "Paris", "lazy", "brown", "quick", "task", "naïve", "times"]
SHOTS = {"num_fewshot": 2, "fewshot_split": "train"}
CHOICE = {
    "output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "options",
    "doc_to_target": "gold",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "exact_match")],
}  # fmt: skip
WRITTEN = {
    "output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": "answer",
    "generation_kwargs": {"until": ["q"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match"}, {"metric": "chrf"}, {"metric": "bleu"}],
}  # fmt: skip
ROLLING = {
    "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
    "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}  # fmt: skip
LAST_WORD = {
    "output_type": "loglikelihood", "doc_to_text": "prompt", "doc_to_target": " {{answer}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}  # fmt: skip
FILTERS = [
    {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": kind}]}
    for name, pattern, kind in (("word", "(\\w+)", "take_first"), ("last", "(\\S)$", "take_first"))
]
TASKS = {
    "t_choice": CHOICE,
    "t_choice_shots": CHOICE | SHOTS,
    "t_repeated": CHOICE | {"doc_to_choice": "{{options + options}}"},
    "t_repeated_prompts": CHOICE | {"doc_to_text": "Which?"},
    "t_no_delimiter": CHOICE | {"target_delimiter": "", "doc_to_text": "{{prompt}}:\n"},
    "t_no_prompt": CHOICE | {"doc_to_text": ""},
    "t_information": CHOICE | {"metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]},
    "t_two_inputs": CHOICE
    | {
        "doc_to_text": "gold",
        "doc_to_choice": "{{[prompt + ' a', prompt + ' an']}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "t_two_inputs_shots": CHOICE
    | SHOTS
    | {
        "doc_to_text": "gold",
        "doc_to_choice": "{{[prompt + ' a', prompt + ' an']}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "t_described": CHOICE | SHOTS | {"description": "Answer in a word.\n"},
    "t_begun": CHOICE | SHOTS | {"gen_prefix": "The answer is"},
    "t_long_choice": CHOICE | {"doc_to_text": "{{text}}"},
    "t_long_shots": CHOICE | SHOTS | {"num_fewshot": 5},
    "t_written": WRITTEN,
    "t_written_shots": WRITTEN | SHOTS,
    "t_written_begun": WRITTEN | SHOTS | {"gen_prefix": "So:"},
    "t_written_long": WRITTEN | {"doc_to_text": "{{text}}"},
    "t_written_freely": WRITTEN
    | {"generation_kwargs": {"until": [], "max_gen_toks": 20}, "filter_list": FILTERS},
    "t_rolling": ROLLING,
    "t_last_word": LAST_WORD,
    "t_last_word_shots": LAST_WORD | SHOTS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of task files with their items, made up at random."""
    root, draws = tmp_path_factory.mktemp("tasks"), random.Random(0)

    def item(number):
        options = [" ".join(draws.choices(WORDS, k=draws.randint(1, 3))) for _ in range(4)]
        return {
            "prompt": " ".join(draws.choices(WORDS, k=3 + number % 5)),
            "options": options[: 2 + number % 3],
            "gold": number % 2,
            "answer": options[0],
            "text": " ".join(draws.choices(WORDS, k=(4, 40, 100, 17, 1, 60, 200, 9)[number])),
        }

    for part in ("train", "test"):
        lines = [json.dumps(item(number)) + "\n" for number in range(8)]
        (root / f"{part}.jsonl").write_text("".join(lines))
    files = {part: str(root / f"{part}.jsonl") for part in ("train", "test")}
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    for name, task in TASKS.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}))
    return root


@cache
def tokenizer_of(folder):
    return AutoTokenizer.from_pretrained(folder)


@cache
def model_of(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def stock(model, tokenizer, names, *, batch, chat, include, **settings):
    """What lm-eval says by itself, as its users call it."""
    with quiet():
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch),
            tasks=list(names),
            task_manager=TaskManager(include_path=str(include), include_defaults=False),
            apply_chat_template=chat,
            bootstrap_iters=0,
            **settings,
        )


def compare(ours, theirs):
    """Check every metric, item score and answer of `ours` against lm-eval's results."""
    assert {s.task for s in ours} == set(theirs["results"])
    for one in ours:
        metric, _, chain = one.metric.partition(",")
        chain = chain or "none"
        value = theirs["results"][one.task][f"{metric},{chain}"]
        assert one.of == theirs["n-samples"][one.task]["original"]
        rough = "perplexity" in metric or metric == "bits_per_byte"
        assert one.value == (pytest.approx(value, rel=CLOSE) if rough else value), one.task
        for sample in theirs["samples"][one.task]:
            if sample["filter"] != chain:
                continue
            doc, first = sample["doc_id"], [r[0] for r in sample["resps"]]
            scores = dict(one.items)
            if isinstance(sample[metric], int | float) and "perplexity" not in metric:
                assert scores[doc] == sample[metric], (one.task, metric, doc)
            said = one.answers[doc]
            assert sample["prompt_hash"].startswith(said.prompt_hash), (one.task, doc)
            if isinstance(first[0], str):
                assert said.output == first[0], (one.task, doc)
            else:
                found = [r[0] if isinstance(r, tuple) else r for r in first]
                assert said.loglikelihoods == pytest.approx(found, abs=CLOSE), (one.task, doc)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_tasks_of_files(kind, chat, batch, folder, tokenizer_folders):
    tokenizer = tokenizer_of(tokenizer_folders[kind])
    model = model_of(tokenizer)
    theirs = stock(model, tokenizer, TASKS, batch=batch, chat=chat, include=folder)
    asked = Evaluate(name="toy", tasks=(str(folder),))
    ours = harness.score(
        model, tokenizer, asked, execution=Execution(eval_batch_size=batch), chat=chat
    )
    compare(ours, theirs)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_micro_tasks(batch):
    """The micro world's own tasks on a shipped checkpoint, as its studies ask them."""
    folder = conf_dir().parent / "ablate" / "micro" / "checkpoints" / "micro_0"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = tuple(micro.TASKS)
    theirs = stock(
        model, tokenizer, names, batch=batch, chat=False, include=micro.materialise(), limit=6
    )
    ours = harness.score(
        model,
        tokenizer,
        Evaluate(name="toy", tasks=names, limit=6),
        execution=Execution(eval_batch_size=batch),
    )
    compare(ours, theirs)
