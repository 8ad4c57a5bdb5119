"""What a judge is asked, in which words, and how its verdict is read; no torch.

Three modes. pairwise: which of two answers is better, A or B (AlpacaEval, arXiv 2305.14387);
three_way: A, B or tie (PandaLM, arXiv 2306.05087); grade: 1 to 10 for a single answer (MT-Bench,
arXiv 2306.05685). A judge returns text, whatever it is; the verdict is read here, in one way for
all judges.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ablate.errors import UserError
from ablate.paths import check_file

Mode = Literal["pairwise", "three_way", "grade"]
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "pairwise": ("A", "B"),
    "three_way": ("A", "B", "tie"),
    "grade": tuple(str(n) for n in range(1, 11)),
}
WORTH = {"A": 1.0, "B": 0.0, "TIE": 0.5, "C": 0.5}  # of a verdict to the answer shown first
_CRITERIA = "Judge how correct, helpful and relevant"
_PAIR = (
    f"{_CRITERIA} two answers to a request are. Their order and their length must not count.\n\n"
    "[Request]\n{prompt}\n\n[Reference answer]\n{reference}\n\n[Answer A]\n{first}\n\n"
    "[Answer B]\n{second}\n\n"
)
PROMPTS: Mapping[str, str] = {
    "pairwise": _PAIR + "Which answer is better? Reply with one letter, A or B.\nVerdict:",
    "three_way": _PAIR + "Which answer is better? Reply with A, B or tie.\nVerdict:",
    "grade": (
        f"{_CRITERIA} an answer to a request is.\n\n[Request]\n{{prompt}}\n\n[Reference answer]\n"
        "{reference}\n\n[Answer]\n{first}\n\n"
        "Reply with a grade from 1, worst, to 10, best, and nothing else.\nGrade:"
    ),
}
_OF_REFERENCE = "[Reference answer]\n{reference}\n\n"
_FIELD = re.compile(r"\{(prompt|reference|first|second)\}")
_NOUNS = "answer|verdict|assistant|output|grade|rating|score"
_LABEL = rf"\W*(?:(?:the |my )?(?:final |better )?(?:{_NOUNS})(?: is)?)?\W*"
_BRACKETS = re.compile(r"\[\[\s{0,9}([^\[\]\s]{1,20})\s{0,9}\]\]")
_SHORT = 200  # characters of a reply that may be nothing but its verdict
_ALONE = {
    "pair": re.compile(rf"{_LABEL}(A|B|tie)\W*", re.IGNORECASE),
    "grade": re.compile(rf"{_LABEL}(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a judge: a prompt and one answer or two, in the order in which they stand."""

    mode: Mode
    prompt: str
    answers: tuple[str, ...]
    reference: str | None = None
    task: str = ""  # with doc_id, what a rule knows the right answer by
    doc_id: int = -1


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said; `text` is None where it could not be asked, and `error` says why."""

    text: str | None
    error: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)  # log-probabilities and the like


class Judge(Protocol):
    """A judge: by what name it is told, what its replies depend on, and how it is asked."""

    name: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that a reply depends on beside the question; replies are kept under it."""

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Yield the number of a question and the reply to it, in any order, as they come."""


def wording(mode: Mode, file: Path | None = None) -> str:
    """Return the prompt of a mode, or that in a file.

    Raises:
        UserError: the file is not there, or lacks a field that the mode needs.
    """
    if file is None:
        return PROMPTS[mode]
    check_file("--prompt", file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"--prompt={file}: cannot be read ({error})") from None
    needed = ("prompt", "first") if mode == "grade" else ("prompt", "first", "second")
    for name in needed:
        if f"{{{name}}}" not in text:
            raise UserError(f"--prompt={file}: has no {{{name}}}, which mode={mode} needs")
    return text


def filled(form: str, question: Question) -> str:
    """Return the text of a question; what an answer says in braces stays what it says."""
    if question.reference is None:
        form = form.replace(_OF_REFERENCE, "")
    first, second = (*question.answers, "")[:2]
    parts = {"prompt": question.prompt, "reference": question.reference or "",
             "first": first, "second": second}  # fmt: skip
    return _FIELD.sub(lambda found: parts[found[1]], form)


def read_verdict(mode: Mode, text: str | None) -> float | None:
    """Return a verdict: 1, a half or 0 for the first answer, or a grade; None: there is none.

    The last [[A]], [[B]], [[C]], [[tie]] or [[7]] counts, as MT-Bench has them; where the last
    brackets hold another word, as [[D]], there is no verdict. Without brackets the whole reply must
    be the verdict, as in "B" or "Answer: B.". A tie counts in every mode of pairs, also where it
    was not offered.
    """
    if text is None:
        return None
    brackets = _BRACKETS.findall(text)
    short = text.strip()
    whole = _ALONE["grade" if mode == "grade" else "pair"]
    alone = whole.fullmatch(short) if len(short) <= _SHORT else None
    said = brackets[-1] if brackets else (alone[1] if alone else "")
    if mode == "grade":
        number = float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else 0.0
        return number if 1 <= number <= 10 else None
    return WORTH.get(said.upper())
