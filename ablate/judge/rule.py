"""The judge of the micro world: what is right is known there, so that a rule says who is better."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablate.errors import UserError
from ablate.judge.asked import Question, Reply
from ablate.micro import scoring
from ablate.micro.tasks import TASKS, items, version


class RuleJudge:
    """Scores every answer as its micro task does; the higher score is the better answer."""

    name = "rule"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The version of the tasks."""
        return {"kind": "rule", "tasks": version()}

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Yield the reply to every question; equal scores are a tie, also where none is asked for.

        A grade is 1 for the score 0 and 10 for the score 1.
        """
        for number, question in enumerate(questions):
            scores = [_score(question, answer) for answer in question.answers]
            if question.mode == "grade":
                said = f"[[{1 + 9 * scores[0]:.3f}]]"
            elif scores[0] == scores[1]:
                said = "tie"
            else:
                said = "A" if scores[0] > scores[1] else "B"
            yield number, Reply(said, extra={"scores": scores})


def check(tasks: Sequence[str]) -> None:
    """Check that a rule knows what is right in these tasks.

    Raises:
        UserError: it does not.
    """
    known = [name for name, info in TASKS.items() if info.max_new_tokens is not None]
    for name in tasks:
        if name not in known:
            raise UserError(
                f"--judge=rule: knows what is right in {', '.join(known)} alone, not in {name}"
            )


def _score(question: Question, answer: str) -> float:
    doc = items()[question.task][0][question.doc_id]
    metric = TASKS[question.task].metric
    found: Mapping[str, float] = scoring.SCORERS[metric](doc, [answer])
    return found[metric]
