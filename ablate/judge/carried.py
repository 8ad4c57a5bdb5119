"""Pairs of answers put to a judge in both orders, its replies kept, and what they come to.

OUT/judgments/replies.jsonl           every reply by the hash of its question and its judge, so that
                                      nothing is asked, or paid, twice, by whatever command
OUT/judgments/answers.jsonl           what runs answered to prompts of a file
OUT/judgments/NAME/judgments.jsonl    one row per pair of answers
OUT/judgments/NAME/request.json       what was asked for

Two equal texts are a tie without a question; so is a pair on which the two orders disagree.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.judge import answers
from ablate.judge.answers import Prompt, Said
from ablate.judge.arms import Pair
from ablate.judge.asked import Judge, Mode, Question, Reply, read_verdict
from ablate.judge.jsonl import append, rows
from ablate.results.files import write
from ablate.results.record import digest
from ablate.results.store import Store

FOLDER, REPLIES, ANSWERS = "judgments", "replies.jsonl", "answers.jsonl"
JUDGMENTS, REQUEST = "judgments.jsonl", "request.json"
CHARACTERS = 4  # a token, roughly


@dataclass(frozen=True, slots=True)
class Contest:
    """The answers of two runs to one prompt."""

    pair: Pair
    prompt: Prompt
    first: str
    second: str

    def questions(self, mode: Mode, *, references: bool) -> list[Question]:
        """Return what is asked: both orders of two answers, or each answer alone."""
        p = self.prompt
        right = p.reference if references and self.pair.baseline_key is not None else None
        texts = (self.first, self.second)
        if mode == "grade":
            orders: Sequence[tuple[str, ...]] = [(text,) for text in texts]
        else:
            orders = [] if self.first == self.second else [texts, texts[::-1]]
        return [Question(mode, p.text, some, right, p.task, p.doc_id) for some in orders]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be judged, and what of it a judge has still to be asked."""

    mode: Mode
    judge: Judge
    contests: list[Contest]
    questions: dict[str, Question]  # by their mark, each once
    asked_by: list[list[str]]  # the marks of every contest's questions
    known: dict[str, Reply]
    file: Path  # of the replies

    @property
    def missing(self) -> list[str]:
        """The marks of the questions without a reply."""
        return [mark for mark in self.questions if mark not in self.known]

    def cost(self) -> str:
        """Return in a line what will be asked."""
        missing = self.missing
        sizes = [sum(map(len, (q.prompt, q.reference or "", *q.answers)))
                 for q in map(self.questions.__getitem__, missing)]  # fmt: skip
        known = len(self.questions) - len(missing)
        equal = sum(not marks for marks in self.asked_by)
        told = [f"{len(self.contests):,} pairs of answers", f"{len(missing):,} requests"]
        told += [f"{known:,} asked before"] * bool(known)
        told += [f"{equal:,} pairs of equal texts, which are ties"] * bool(equal)
        about = f", about {sum(sizes) // CHARACTERS:,} tokens of prompts and answers to read"
        return f"judge {self.judge.name}, {self.mode}: {', '.join(told)}{about * bool(missing)}"


def contests(
    store: Store,
    found: Sequence[Pair],
    *,
    tasks: Sequence[str],
    limit: int | None,
    text: bool,
) -> list[Contest]:
    """Return the recorded answers of pairs of runs to the items of tasks.

    Args:
        store: of the records.
        found: the pairs.
        tasks: those to judge; none: every task with generated answers.
        limit: the first so many items of a task.
        text: whether prompts are wanted as text.

    Raises:
        UserError: no answers, or an item that the two runs of a pair were asked differently.
    """
    wanted = list(tasks) or answers.recorded_tasks(store, found[0].key)
    if not wanted:
        raise UserError(f"{store.folder(found[0].key)}: no task has generated answers; "
                        "--prompts FILE takes prompts of your own")  # fmt: skip
    keys = dict.fromkeys(k for p in found for k in (p.key, p.baseline_key) if k is not None)
    said, asked = {}, {}
    for key in keys:
        said[key], asked[key] = answers.recorded(store, key, wanted, limit)
    prompts: dict[tuple[tuple[str, int, str], ...], list[Prompt]] = {}
    for pair in found:
        if (kind := _kind(asked[pair.key])) not in prompts:
            prompts[kind] = answers.of_task(store, pair.key, asked[pair.key], text=text)
        theirs = asked.get(pair.baseline_key or "", {})
        for place, (hashed, _) in asked[pair.key].items():
            if place in theirs and theirs[place][0] != hashed:
                raise UserError(f"{place[0]}: cells/{pair.key} and cells/{pair.baseline_key} were "
                                "asked in different words")  # fmt: skip
    return [c for pair in found for c in _beside(pair, prompts[_kind(asked[pair.key])], said)]


def _kind(asked: Mapping[tuple[str, int], tuple[str, str]]) -> tuple[tuple[str, int, str], ...]:
    """Return what items were asked, and in which words."""
    return tuple((*place, hashed) for place, (hashed, _) in asked.items())


def contests_of_file(
    store: Store, found: Sequence[Pair], prompts: Sequence[Prompt], *, max_new: int
) -> list[Contest]:
    """Return the answers of pairs of runs to the prompts of a file; they are generated here.

    Raises:
        UserError: the file has no reference answers though these are the baseline, or weights were
            not kept.
    """
    if any(p.baseline_key is None for p in found) and any(p.reference is None for p in prompts):
        raise UserError("--prompts: a row has no reference answer (output, reference or answer); "
                        "--baseline takes runs instead")  # fmt: skip
    keys = list(dict.fromkeys(k for p in found for k in (p.key, p.baseline_key) if k is not None))
    answers.kept_weights(store, keys)
    kept = store.out / FOLDER / ANSWERS
    said = {k: answers.generated(store, k, prompts, max_new=max_new, kept=kept) for k in keys}
    return [c for pair in found for c in _beside(pair, prompts, said)]


def _beside(pair: Pair, prompts: Sequence[Prompt], said: Mapping[str, Said]) -> list[Contest]:
    found = []
    for prompt in prompts:
        place = (prompt.task, prompt.doc_id)
        other = (
            prompt.reference if pair.baseline_key is None else said[pair.baseline_key].get(place)
        )
        if other is not None:
            found.append(Contest(pair, prompt, said[pair.key][place].strip(), other.strip()))
    return found


def planned(
    store: Store, judge: Judge, mode: Mode, some: list[Contest], *, references: bool
) -> Plan:
    """Return what a judge is to be asked about contests; replies that are kept are known."""
    file = store.out / FOLDER / REPLIES
    identity, questions, asked_by = dict(judge.identity), {}, []
    for contest in some:
        marks = []
        for question in contest.questions(mode, references=references):
            mark = digest({"judge": identity, "question": asdict(question)})
            questions[mark] = question
            marks.append(mark)
        asked_by.append(marks)
    known = {
        str(row["id"]): Reply(row.get("reply"), extra=row.get("extra") or {})
        for row in rows(file) if row.get("id") in questions
    }  # fmt: skip
    return Plan(mode, judge, some, questions, asked_by, known, file)


def carried_out(plan: Plan) -> tuple[list[dict[str, Any]], int]:
    """Ask what is missing, every reply written as it comes; return the judgments, and the failures.

    Raises:
        UserError: the judge cannot be asked at all; the replies that came are kept.
    """
    missing, failed = plan.missing, 0
    said = dict(plan.known)
    for number, reply in plan.judge.ask([plan.questions[mark] for mark in missing]):
        mark = missing[number]
        said[mark] = reply
        if reply.text is None:
            failed += 1
            continue
        about = {"id": mark, "judge": plan.judge.name, "reply": reply.text}
        append(plan.file, [about | ({"extra": dict(reply.extra)} if reply.extra else {})])
    found = [
        _judgment(plan, contest, [said[mark] for mark in marks])
        for contest, marks in zip(plan.contests, plan.asked_by, strict=True)
    ]
    return found, failed


def _judgment(plan: Plan, contest: Contest, replies: Sequence[Reply]) -> dict[str, Any]:
    pair, prompt = contest.pair, contest.prompt
    read = [read_verdict(plan.mode, reply.text) for reply in replies]
    row: dict[str, Any] = {
        "judge": plan.judge.name, "mode": plan.mode, "task": prompt.task, "doc_id": prompt.doc_id,
        "item": f"{prompt.task}:{prompt.doc_id}", "arm": pair.arm, "baseline": pair.baseline,
        "seed": pair.seed, "run": pair.key, "baseline_run": pair.baseline_key,
        "length": len(contest.first), "length_baseline": len(contest.second),
        "replies": [reply.text for reply in replies],
        "errors": [reply.error for reply in replies if reply.error],
    }  # fmt: skip
    if plan.mode == "grade":
        return row | {"grade": read[0], "grade_baseline": read[1]}
    return row | compared(read)


def compared(read: Sequence[float | None]) -> dict[str, Any]:
    """Return what two verdicts on one pair come to; none: the texts are equal.

    Args:
        read: the worth of the answer shown first, with the arm's first and with the baseline's.
    """
    if not read:
        return {"preference": 0.5, "identical": True, "consistent": True, "first_shown": 0,
                "decided": 0}  # fmt: skip
    first, second = read
    if first is None or second is None:
        return {"preference": None, "identical": False, "consistent": False, "first_shown": 0,
                "decided": 0}  # fmt: skip
    consistent = first == 1 - second
    return {
        "preference": first if consistent else 0.5,
        "identical": False,
        "consistent": consistent,
        "first_shown": int(first == 1) + int(second == 1),
        "decided": int(first != 0.5) + int(second != 0.5),
    }


def written(folder: Path, found: Sequence[Mapping[str, Any]], request: Mapping[str, Any]) -> None:
    """Write judgments and what was asked for, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    write(folder / JUDGMENTS, lines.encode(errors="replace"))
    write(folder / REQUEST, json.dumps(request, indent=1).encode())
