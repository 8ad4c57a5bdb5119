"""The loss of a cell as two tables over roles, and the canonical form that finds aliases.

Every objective in this project is a ratio of two sums over a batch's target tokens t,

    L = sum_t num[role(t)] * loss_t  /  sum_t den[role(t)]          (per example: / examples)

where `num` is the masking mode at its PLW and completion weight, and `den` is the normaliser:

    weight      den = num                        (Lc + w Lp) / (nc + w np)
    completion  den = 1 for completion tokens    (Lc + w Lp) / nc
    tokens      den = 1 for every target         (Lc + w Lp) / (nc + np)
    nonzero     den = 1 where num > 0            (WIT, arXiv 2507.07817)
    examples    den = 1 per example              (the papers' written sums)

Two cells with the same data are the same run if their tables agree on the roles that occur in it,
after dividing both tables by the largest `den`: such cells are aliases of one run.

A token rule replaces loss_t by a function of the token's own probability or of the model's entropy
there, and leaves `den` as it is (`training.token_rules`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ablate.config.schema import TOKEN_RULES, Cell, Loss, Masking
from ablate.errors import UserError
from ablate.roles import ANSWERS, DETAILS, NAMES, ROLE_OF, Detail, Role

RoleTable = tuple[float, ...]  # one number per role, indexed by `Role`
GATES = {  # by token rule, what the gradient of a token's cross entropy is multiplied by
    "dft": "p", "power": "p", "focal": "focal", "focal_detached": "1 - p", "eaft": "entropy",
}  # fmt: skip


class Counted(Protocol):
    """What an objective's identity depends on in the data: targets by role and detail, answers."""

    @property
    def counts(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def details(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def answers(self) -> int: ...  # noqa: D102
    @property
    def kinds_hash(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What a token's loss is, where that is another function of its probability than -log p."""

    kind: str  # a key of `GATES`
    exponent: float  # above 0
    scope: str = "all"  # completion: on the tokens of `ANSWERS` alone


@dataclass(frozen=True, slots=True)
class Objective:
    """The weighted loss: numerator and divisor weight of a target by its role."""

    num: RoleTable
    den: RoleTable  # all zero under the `examples` normaliser, which divides by rows
    scope: str
    permute: bool = False
    first_header_only: bool = False
    label_smoothing: float = 0.0
    normaliser: str = "weight"
    details: tuple[tuple[Detail, float, float], ...] = ()  # with a num and den of their own
    turns: str | tuple[int, ...] = "all"  # answers left out weigh as instructions do
    token_rule: TokenRule | None = None  # None: a token's loss is its cross entropy

    @property
    def per_example(self) -> bool:
        """Whether the divisor is the number of examples instead of a sum over targets."""
        return not any(self.den)


def objective_of(cell: Cell) -> Objective:
    """Return the objective of `cell`.

    Raises:
        UserError: no token would have a weight (completion weight 0, nothing else weighted).
    """
    return make_objective(cell.masking, cell.plw, cell.completion_weight, cell.loss)


def make_objective(masking: Masking, plw: float, completion_weight: float, loss: Loss) -> Objective:
    """Return the objective of a masking mode at its weights, where there is no cell.

    Raises:
        UserError: no token would have a weight (completion weight 0, nothing else weighted).
    """
    given = {name: plw if w == "plw" else float(w) for name, w in masking.weights.items()}
    num = [given.get(name, 0.0) for name in NAMES]
    num[Role.COMPLETION] *= completion_weight
    num[Role.TEXT] = 1.0
    details = {Detail[name.upper()]: given[name] for name in DETAILS if name in given}
    for detail in details:
        details[detail] *= completion_weight if ROLE_OF[detail] == Role.COMPLETION else 1.0
    if not any([*details.values(), *(w for role, w in enumerate(num) if role != Role.TEXT)]):
        raise UserError(
            f"completion_weight={completion_weight}: nothing is left to train under "
            f"masking={masking.name} plw={plw}; raise completion_weight or plw"
        )
    den = _divisor(tuple(num), loss.normaliser)
    return Objective(
        num=tuple(num),
        den=den,
        scope=loss.scope,
        permute=masking.permute,
        first_header_only=masking.first_header_only,
        label_smoothing=loss.label_smoothing,
        normaliser=loss.normaliser,
        details=tuple(
            (detail, weight, _divisor_of(weight, den[ROLE_OF[detail]], loss.normaliser))
            for detail, weight in details.items()
        ),
        turns=masking.turns,
        token_rule=token_rule_of(loss),
    )


def token_rule_of(loss: Loss) -> TokenRule | None:
    """Return the token rule of a loss; None where it leaves the cross entropy as it is."""
    exponent = loss.token_rule_exponent
    exponent = TOKEN_RULES[loss.token_rule] if exponent is None else exponent
    if loss.token_rule == "none" or exponent == 0:  # anything to the power of 0 is 1
        return None
    return TokenRule(loss.token_rule, exponent, loss.token_rule_scope)


def _divisor_of(weight: float, usual: float, normaliser: str) -> float:
    """Return the divisor weight of a detail whose role's is `usual`."""
    return {"weight": weight, "nonzero": float(weight > 0)}.get(normaliser, usual)


def _divisor(num: RoleTable, normaliser: str) -> RoleTable:
    targets = tuple(float(role != Role.PAD) for role in Role)
    completion = tuple(float(role in (Role.COMPLETION, Role.TEXT)) for role in Role)
    rules: dict[str, RoleTable] = {
        "weight": num,
        "completion": completion,
        "tokens": targets,
        "nonzero": tuple(float(w > 0) for w in num),
        "examples": (0.0,) * len(NAMES),
    }
    return rules[normaliser]


def canonical(objective: Objective, data: Counted) -> dict[str, object]:
    """Return the identity of `objective` on `data`.

    Roles that do not occur are dropped, both tables are divided by the largest divisor weight, and
    a permutation of equal weights is no permutation. Details that do not occur or weigh as their
    role does are dropped as well, and a choice of turns where no row has two answers. A token rule
    is told by what it does to gradients, where it does something. Equal results mean equal
    training.
    """
    counts = data.counts
    present = [role for role in Role if counts.get(role.name.lower(), 0) > 0]
    num = {r.name.lower(): objective.num[r] for r in present}
    den = {r.name.lower(): objective.den[r] for r in present}
    apart = [
        (detail, own, divisor)
        for detail, own, divisor in objective.details
        if data.details.get(detail.name.lower(), 0) > 0
        and (own, divisor) != (objective.num[ROLE_OF[detail]], objective.den[ROLE_OF[detail]])
    ]
    chosen = objective.turns if data.answers > 1 else "all"
    top = max([*den.values(), *(divisor for _, _, divisor in apart)], default=0.0) or 1.0
    told_apart: dict[str, object] = {}
    if apart:
        told_apart["details"] = {
            detail.name.lower(): [_rounded(own / top), _rounded(divisor / top)]
            for detail, own, divisor in apart
        }
    if chosen != "all":
        told_apart["turns"] = chosen if isinstance(chosen, str) else list(chosen)
    if told_apart:
        told_apart["kinds"] = data.kinds_hash
    uniform = not told_apart and len(set(zip(num.values(), den.values(), strict=True))) <= 1
    permute = objective.permute and not uniform
    weighted = {role for role in present if objective.num[role] > 0}
    weighted |= {ROLE_OF[detail] for detail, own, _ in apart if own > 0}
    if chosen != "all" and objective.num[Role.INSTRUCTION] > 0:
        weighted.add(Role.COMPLETION)  # the answers that are left out
    rule = _canonical_rule(objective.token_rule, set(present) if permute else weighted)
    return {
        "num": {name: _rounded(w / top) for name, w in num.items()},
        "den": {name: _rounded(w / top) for name, w in den.items()},
        "scope": objective.scope,
        "permute": permute,
        "first_header_only": objective.first_header_only and counts.get("special", 0) > 0,
        "label_smoothing": objective.label_smoothing,
        **told_apart,
        **({"token_rule": rule} if rule else {}),
    }


def _canonical_rule(rule: TokenRule | None, weighted: set[Role]) -> list[object] | None:
    """Return what a token rule does to gradients, given the roles of tokens that have a weight."""
    if rule is None or (rule.scope == "completion" and not weighted & ANSWERS):
        return None
    scope = rule.scope if weighted - ANSWERS else "all"
    return [GATES[rule.kind], _rounded(rule.exponent), scope]


def _rounded(weight: float) -> float:
    """Return `weight` to 12 digits: its last bits depend on the order of the divisions."""
    return float(f"{weight:.12g}")


def effective_plw(objective: Objective, counts: dict[str, int]) -> float | None:
    """Return the mean weight of the prompt's targets relative to the completion's.

    None where the completion has no weight; 0 for `instruction` at any PLW. The analysis uses this
    instead of the PLW that was asked for.
    """
    prompt = [r for r in Role if r not in (Role.COMPLETION, Role.TEXT, Role.PAD)]
    tokens = sum(counts.get(r.name.lower(), 0) for r in prompt)
    completion = objective.num[Role.COMPLETION]
    if tokens == 0 or completion == 0:
        return 0.0 if tokens == 0 else None
    # Rounded once: the built-in sum of floats is another one from Python 3.12 on.
    total = math.fsum(objective.num[r] * counts.get(r.name.lower(), 0) for r in prompt)
    return total / tokens / completion


def rows_without(turns: str | tuple[int, ...], rows_by_answers: Mapping[str, int]) -> int:
    """Return how many rows have answers, but none that `masking.turns` chooses.

    Args:
        turns: the choice.
        rows_by_answers: number of rows by how many answers they have.
    """
    if isinstance(turns, str):
        return 0
    found = ((int(count), rows) for count, rows in rows_by_answers.items())
    return sum(rows for n, rows in found if n and not any(-n <= turn < n for turn in turns))


def check_turns(masking: Masking, rows_by_answers: Mapping[str, int]) -> None:
    """Raise where no row has an answer that `masking.turns` chooses.

    Raises:
        UserError: nothing that a row answers would be trained.
    """
    counts = {int(count): rows for count, rows in rows_by_answers.items() if int(count)}
    if counts and rows_without(masking.turns, rows_by_answers) == sum(counts.values()):
        have = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
        raise UserError(
            f"masking.turns={list(masking.turns)}: none of the {sum(counts.values()):,} training "
            f"rows has such an answer; they have {have} each, the first is 0 and the last -1"
        )


def supervised(objective: Objective, data: Counted) -> int:
    """Return how many targets of `data` have a weight, whatever turns are chosen."""
    counts = {name: count for name, count in data.counts.items()}
    found = 0
    for detail, own, _ in objective.details:
        count = data.details.get(detail.name.lower(), 0)
        counts[NAMES[ROLE_OF[detail]]] = counts.get(NAMES[ROLE_OF[detail]], 0) - count
        found += count * (own > 0)
    return found + sum(counts.get(NAMES[role], 0) for role in Role if objective.num[role] > 0)
