"""Benchmarks with their requests built, once per process.

Rendering prompts costs as much as answering them with a small model, and the hundred cells of a
sweep ask the same questions. A task stays in memory with its requests; another evaluation finds
them built and their last answers cleared away.
"""

import contextlib
import functools
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate import hub
from ablate.config.schema import Evaluate
from ablate.data.jinja import rendered
from ablate.errors import UserError
from ablate.evaluate import chosen, code_eval
from ablate.evaluate.faults import told
from ablate.evaluate.samples import Noted
from ablate.evaluate.tasks_index import Source, find, parts, runs_code, task_names
from ablate.micro import exercises
from ablate.micro import tasks as micro

CUT = "qxcutzv "  # where a message ends that is to be gone on with
FEWSHOT_SEED = 1234  # lm-eval's own default: which examples stand before a question


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What one name of `evaluate.tasks` stands for: lm-eval's tasks, with requests, by name."""

    unit: str
    tasks: dict[str, Any]


def benchmark(name: str, evaluate: Evaluate, chat: Tokenizer | None = None) -> Benchmark:
    """Return the benchmark `name` with the requests that `evaluate` asks for.

    Args:
        name: one of `evaluate.tasks`.
        evaluate: how many items and shots, and how long answers may be.
        chat: the tokenizer whose chat template goes around each prompt; None for prompts as the
            task states them.

    Raises:
        UserError: an unknown task, or its data cannot be had.
    """
    template = None if chat is None else str(chat.chat_template)
    shots = (evaluate.shots(name), evaluate.fewshot_as_multiturn)
    ids = chosen.of(evaluate, name)
    which = (evaluate.limit, tuple(sorted(ids.items())))
    settings = (name, which, shots, evaluate.max_new_tokens, template)
    if settings not in _BUILT:
        with _quiet():
            try:
                tasks = _load(name, run_code=evaluate.run_code)
                if ids and set(tasks) != set(parts(name)):
                    raise other_parts(name, tasks)
                for part, task in tasks.items():
                    own = ids.get(part)
                    if own is not None:
                        chosen.check_ids(evaluate.items, part, own, len(task.eval_docs))
                    _build(task, evaluate, chat, shots=evaluate.shots(name), ids=own)
            except UserError:
                raise
            except Exception as error:  # whatever lm-eval, `datasets` and the hub raise
                raise told(name, error) from error
        _BUILT[settings] = Benchmark(name, tasks)
    return _BUILT[settings]


_BUILT: dict[tuple[Any, ...], Benchmark] = {}


def _load(name: str, *, run_code: bool) -> dict[str, Any]:
    source = find(name)
    if source.kind != "micro":
        hub.unreachable()  # asked once, and not for minutes
    manager, specs = _manager(source)
    # The hub's metric runs programs without a sandbox and asks for a consent that is not given.
    with code_eval.in_place_of_the_hubs() if run_code else contextlib.nullcontext():
        tasks: dict[str, Any] = manager.load(specs)["tasks"]
    if not run_code and any(getattr(task, "UNSAFE_CODE", False) for task in tasks.values()):
        raise runs_code(name)  # a group's, whose files were not read before
    return tasks


def _manager(source: Source) -> tuple[Any, list[str]]:
    """Return lm-eval's manager for a task and what to ask it for."""
    if source.kind == "group":
        return _whole_index(), [source.name]
    if source.kind == "micro":
        own = exercises if source.name in exercises.TASKS else micro
        return _folder_index(str(own.materialise())), [source.name]
    assert source.path is not None
    if source.path.is_dir():
        return _folder_index(str(source.path)), task_names(source.path)
    return _folder_index(None), [str(source.path)]


@functools.cache
def _folder_index(folder: str | None) -> Any:
    return TaskManager(include_path=folder, include_defaults=False)


@functools.cache
def _whole_index() -> Any:
    return TaskManager()  # ten seconds: only groups and tags need it


def other_parts(name: str, tasks: Iterable[str]) -> UserError:
    """Return the error of a benchmark whose tasks are not those that `evaluate.items` may name."""
    other = sorted(set(tasks) ^ set(parts(name)))
    return UserError(
        f"evaluate.tasks={name}: not with evaluate.items: lm-eval builds other tasks of it than "
        f"its files name ({', '.join(other[:8])})"
    )


def _build(
    task: Any,
    evaluate: Evaluate,
    chat: Tokenizer | None,
    *,
    shots: int | None,
    ids: Sequence[int] | None,
) -> None:
    """Build the requests of `task` and make lm-eval find them built from now on.

    Where `ids` are given, ascending, those of these items alone. Examples before a question are
    drawn item by item: all up to the last chosen one are built, so that each is asked as it is
    where all are scored.
    """
    if shots is not None and task.config.num_fewshot != 0:
        task.set_config("num_fewshot", shots)  # 0 in a task's file is final
    elif task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    if evaluate.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        limits = {"max_gen_toks": evaluate.max_new_tokens}
        task.set_config("generation_kwargs", limits, update=True)
    task.set_fewshot_seed(FEWSHOT_SEED)
    limit = evaluate.limit if ids is None else ids[-1] + 1
    items = list(task.doc_iterator(limit=limit))
    task.chosen = ids is not None
    if ids is not None:
        items = [items[number] for number in ids]
        if not task.config.num_fewshot:
            task.doc_iterator = lambda **_: iter(items)
    task.build_all_requests(
        limit=limit,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=chat is not None and evaluate.fewshot_as_multiturn,
        chat_template=None if chat is None else chat_template(chat),
    )

    if ids is not None:
        kept = set(ids)
        task._instances = [one for one in task.instances if one.doc_id in kept]
    _pin(task, items)


def _pin(task: Any, items: list[tuple[int, Any]]) -> None:
    """Make lm-eval find requests, items and their rendered fields as they are, answers cleared."""

    noted = Noted(task, items)

    def clear_answers(**_: Any) -> None:
        noted.clear()
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}

    task.build_all_requests = clear_answers
    task.noted, task.process_results = noted, noted.judge
    task.doc_iterator = lambda **_: iter(items)
    own = {id(doc) for _, doc in items}  # they live as long as the task: an id is one item
    task.doc_to_target = _once_per_item(task.doc_to_target, own)
    task.doc_to_choice = _once_per_item(task.doc_to_choice, own)


def _once_per_item(render: Callable[..., Any], own: set[int]) -> Callable[..., Any]:
    known: dict[int, Any] = {}

    def rendered(doc: Any, *rest: Any) -> Any:
        if rest or id(doc) not in own:
            return render(doc, *rest)
        if id(doc) not in known:
            known[id(doc)] = render(doc)
        return known[id(doc)]

    return rendered


def chat_template(tokenizer: Tokenizer) -> Callable[..., str]:
    """Return what renders messages as lm-eval's `HFLM` does, in the world of the training data.

    Its day is fixed, and a system text that the template refuses is left out. Without a generation
    prompt the text ends with the last message, which the answer goes on.
    """
    text = chat_text(tokenizer)

    def cut(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        *before, last = messages
        if not add_generation_prompt:
            last = {**last, "content": last["content"] + CUT}
        whole = text([*before, last], add_generation_prompt=add_generation_prompt)
        said, found, _ = whole.rpartition(CUT.strip())
        if not found:
            return whole
        return said if CUT in whole else said.rstrip()

    def asked(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            return cut(messages, add_generation_prompt)
        except jinja2.TemplateError:
            rest = [message for message in messages if message["role"] != "system"]
            return cut(rest, add_generation_prompt)

    return asked


def chat_text(tokenizer: Tokenizer) -> Callable[..., str]:
    """Return what renders messages by the tokenizer's chat template as training does."""
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return functools.partial(rendered, tokenizer.get_chat_template(), named=named)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars of lm-eval and `datasets`, and lm-eval's notices of defaults."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


quiet = _quiet
