"""What the PLW paper measured beside benchmarks (arXiv 2401.13586, section 5.3), stated exactly.

The paper leaves open which norm, which steps and which decoding it used. Here:

    weight_distance    ||W' - W|| / ||W||, Frobenius norms over all parameters of the base taken
                       together, an adapter's change merged in; `linear` over the decoder's
                       matrices alone, which full tuning and adapters have in common
    prompt_bleu        the model answers training prompts greedily, for at most as long as the
                       longest true answer among them; corpus BLEU (sacrebleu's defaults, 0 to 100)
                       against the answers it was trained on. Rows evenly spaced over the data set
    memorised          share of the characters (letters and digits; dashes are given) of the answers
                       to training prompts that the model's greedy answers have at their place;
                       `whole` is the share of answers that are right from end to end. The MoRA
                       paper's measure on UUID pairs (arXiv 2405.12130, section 3.1): chance is 0.1
    generation_length  mean number of tokens, without the stop token, that it generates greedily on
                       held-out prompts, for at most `evaluate.max_new_tokens` (128); `capped` is
                       the share that did not stop by then
    train_loss_rsd     standard deviation / mean of the per-step training loss over the second half
                       of the steps, where its trend has died down; `all_steps` over all of them

and what LoRA Learns Less (arXiv 2405.09673) measured:

    weight_spectrum    of how high a rank the change of each matrix is: `evaluate.spectrum`
    spectrum_counts    how many of its singular values are above a threshold, as MoRA's figure 5
                       counts them, and how many are not rounding: `evaluate.spectrum`
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sacrebleu
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate.config.schema import Evaluate, Execution
from ablate.data.specials import Stop
from ablate.data.tokenise import Tokenised
from ablate.evaluate import generate
from ablate.evaluate.scores import Items, TaskScore, Unit, finite, standard_error
from ablate.evaluate.shapes import inner
from ablate.evaluate.spectrum import counts, spectrum
from ablate.evaluate.tasks_index import check_measures

NEW_TOKENS = 128
UNITS: dict[tuple[str, str], Unit] = {  # of a measure's metric; every other is a ratio
    ("prompt_bleu", "bleu"): "points", ("memorised", "characters"): "fraction",
    ("memorised", "whole"): "fraction", ("generation_length", "tokens"): "tokens",
    ("generation_length", "capped"): "fraction",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What there is to measure: a trained model, where it came from and what it was trained on."""

    model: nn.Module
    base: Callable[[], nn.Module]  # the untouched base, made when it is needed
    tokenizer: Tokenizer
    train: Tokenised
    heldout: Callable[[], Tokenised]  # the test part, read when it is needed
    losses: Sequence[float]  # per optimizer step
    stop: Stop | None = None  # of the chat template, where that made the rows


@dataclass(frozen=True, slots=True)
class Decoding:
    """How much is generated, from `rows` prompts."""

    rows: int
    max_new: int
    batch_size: int
    batch_tokens: int


def measure(
    names: Sequence[str], subject: Subject, *, evaluate: Evaluate, execution: Execution
) -> list[TaskScore]:
    """Return the scores of the measures `names`; one that does not apply gives none.

    Raises:
        UserError: an unknown measure.
    """
    check_measures(names)
    how = Decoding(
        evaluate.measure_rows,
        evaluate.max_new_tokens or NEW_TOKENS,
        execution.eval_batch_size,
        execution.eval_batch_tokens,
    )
    return [one for name in names for one in MEASURES[name](subject, how)]


def weight_distance(model: nn.Module, base: nn.Module) -> dict[str, tuple[float, int]]:
    """Return the relative distance over all parameters and over decoder matrices; their numbers.

    Tied parameters count once. The model is not touched: adapters are merged in copies of layers.
    """
    before = dict(base.named_parameters())
    squares: dict[str, list[tuple[float, float]]] = {"all": [], "linear": []}
    for name, weight in merged_parameters(model):
        old = before[name].detach().to(weight.device).double()
        pair = float(((weight.double() - old) ** 2).sum()), float((old**2).sum())
        squares["all"].append(pair)
        if weight.ndim == 2 and _in_a_block(name):
            squares["linear"].append(pair)
    return {
        which: (float(np.sqrt(sum(d for d, _ in pairs) / sum(w for _, w in pairs))), len(pairs))
        for which, pairs in squares.items()
        if pairs
    }


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the base model's parameters by name, as they are with the adapter merged in."""
    core = inner(model)
    adapted = {n: m for n, m in core.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, parameter in core.named_parameters():
        if not any(name.startswith(f"{prefix}.") for prefix in adapted):
            yield name, parameter.detach()
    for prefix, layer in adapted.items():
        merged = copy.deepcopy(layer).float()  # in 16 bits merging would round the change
        merged.merge()
        for name, parameter in merged.get_base_layer().named_parameters():
            yield f"{prefix}.{name}", parameter.detach()


def changes(model: nn.Module, base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what was added to each matrix of the decoder's layers, in fp64, an adapter merged."""
    before = dict(base.named_parameters())
    for name, weight in merged_parameters(model):
        if weight.ndim == 2 and _in_a_block(name):
            yield name, weight.double() - before[name].detach().to(weight.device).double()


def relative_deviation(values: Sequence[float]) -> float | None:
    """Return standard deviation / mean (n - 1 in the divisor); None for fewer than two values."""
    if len(values) < 2:
        return None
    return finite(float(np.std(values, ddof=1) / np.mean(values)))


def _in_a_block(name: str) -> bool:
    """Whether a parameter belongs to one of the decoder's numbered layers."""
    return any(part.isdigit() for part in name.split("."))


def _weight_distance(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    for which, (value, count) in weight_distance(subject.model, subject.base()).items():
        metric = "relative" if which == "all" else f"relative_{which}"
        yield _made("weight_distance", metric, value, n=count)


def _weight_spectrum(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    for metric, (value, count) in spectrum(changes(subject.model, subject.base())).items():
        yield _made("weight_spectrum", metric, value, n=count)


def _spectrum_counts(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    base = subject.base()
    sizes = {name: float(w.detach().double().norm()) for name, w in base.named_parameters()}
    for metric, values in counts(changes(subject.model, base), sizes).items():
        items = tuple(enumerate(values))
        mean = float(np.mean(values))
        yield _made("spectrum_counts", metric, mean, n=len(values), items=items)


def _train_loss_rsd(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    half = subject.losses[len(subject.losses) // 2 :]
    for metric, values in (("second_half", half), ("all_steps", subject.losses)):
        value = relative_deviation(values)
        if value is not None:
            yield _made("train_loss_rsd", metric, value, n=len(values))


def _prompt_bleu(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    rows, texts, wanted = _recited(subject, how)
    if not rows:
        return
    value = sacrebleu.corpus_bleu(texts, [wanted], force=True).score
    single = [sacrebleu.sentence_bleu(t, [w]).score for t, w in zip(texts, wanted, strict=True)]
    items = tuple(zip(rows, single, strict=True))
    yield _made("prompt_bleu", "bleu", value, n=len(rows), items=items)


def _memorised(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    rows, texts, wanted = _recited(subject, how)
    if not rows:
        return
    shares = [right_characters(text, truth) for text, truth in zip(texts, wanted, strict=True)]
    items = tuple(zip(rows, shares, strict=True))
    yield _made("memorised", "characters", float(np.mean(shares)), n=len(rows), items=items)
    whole = [float(t.strip() == w.strip()) for t, w in zip(texts, wanted, strict=True)]
    yield _made("memorised", "whole", float(np.mean(whole)), n=len(rows))


def right_characters(said: str, truth: str) -> float:
    """Return the share of the letters and digits of `truth` that `said` has at their place."""
    said, truth = said.strip(), truth.strip()
    places = [i for i, character in enumerate(truth) if character.isalnum()]
    right = [i for i in places if said[i : i + 1] == truth[i]]
    return len(right) / len(places) if places else 0.0


def _recited(subject: Subject, how: Decoding) -> tuple[list[int], list[str], list[str]]:
    """Return training rows, what the model answers to their prompts, and their true answers."""
    rows = answered_rows(subject.train, how.rows)
    if not rows:
        return [], [], []
    truths = [subject.train.answer_ids(row) for row in rows]
    longest = _within_positions(subject, subject.train, rows, max(map(len, truths)))
    said = _answers(subject, subject.train, rows, replace(how, max_new=longest))
    texts = [subject.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    wanted = [subject.tokenizer.decode(ids, skip_special_tokens=True) for ids in truths]
    return rows, texts, wanted


def _generation_length(subject: Subject, how: Decoding) -> Iterator[TaskScore]:
    heldout = subject.heldout()
    rows = answered_rows(heldout, how.rows)
    if not rows:
        return
    how = replace(how, max_new=_within_positions(subject, heldout, rows, how.max_new))
    lengths = [len(ids) for ids in _answers(subject, heldout, rows, how)]
    items = tuple((row, float(length)) for row, length in zip(rows, lengths, strict=True))
    yield _made("generation_length", "tokens", float(np.mean(lengths)), n=len(rows), items=items)
    capped = float(np.mean([length >= how.max_new for length in lengths]))
    yield _made("generation_length", "capped", capped, n=len(rows))


def answered_rows(tokenised: Tokenised, count: int) -> list[int]:
    """Return up to `count` rows that have a completion, evenly spaced; none for plain text."""
    rows = [i for i in range(len(tokenised)) if len(tokenised.answer_ids(i))]
    if len(rows) <= count:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]


def _within_positions(subject: Subject, tokenised: Tokenised, rows: list[int], wish: int) -> int:
    """Return how many of `wish` new tokens fit behind every prompt."""
    positions = getattr(inner(subject.model).config, "max_position_embeddings", None)
    longest = max(len(tokenised.prompt_ids(row)) for row in rows)
    return wish if positions is None else max(1, min(wish, positions - longest))


def _answers(
    subject: Subject, tokenised: Tokenised, rows: list[int], how: Decoding
) -> list[list[int]]:
    """Return the tokens generated on the prompts of `rows`, without the stop token."""
    prompts = [tokenised.prompt_ids(row).tolist() for row in rows]
    training = subject.model.training
    subject.model.eval()
    said = generate.answers(
        subject.model,
        prompts,
        stops=_ends(subject),
        max_new=how.max_new,
        batch_size=how.batch_size,
        batch_tokens=how.batch_tokens,
    )
    subject.model.train(training)
    return said


def _ends(subject: Subject) -> generate.Ends:
    """Return what ends an answer: the stop that training has learnt, and the end of text."""
    stop, eos = subject.stop, subject.tokenizer.eos_token_id
    ids = dict.fromkeys(i for i in (*(stop.ids if stop else ()), eos) if i is not None)
    words = stop.strings if stop and not stop.ids else ()
    return generate.Ends(tuple(ids), words, subject.tokenizer.batch_decode)


def _made(name: str, metric: str, value: float, *, n: int, items: Items = ()) -> TaskScore:
    return TaskScore(
        asked=name,
        task=name,
        metric=metric,
        value=finite(value),
        unit=UNITS.get((name, metric), "ratio"),
        n=n,
        version="1",
        task_type="measure",
        skill=name,
        se=standard_error([score for _, score in items]),
        items=items,
    )


MEASURES: dict[str, Callable[[Subject, Decoding], Iterator[TaskScore]]] = {
    "weight_distance": _weight_distance,
    "weight_spectrum": _weight_spectrum,
    "spectrum_counts": _spectrum_counts,
    "prompt_bleu": _prompt_bleu,
    "memorised": _memorised,
    "generation_length": _generation_length,
    "train_loss_rsd": _train_loss_rsd,
}
