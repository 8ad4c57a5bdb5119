"""One error rate for all decisions of a campaign, however many there will be.

Decision k = 1, 2, ... may err by accepting with a probability of alpha times its share. The first
`expected` decisions share a half of alpha evenly, the next `expected` a quarter, the next an
eighth, and so on: the shares of an endless campaign sum to 1. What an accepted decision had is
passed on to the next that is opened (the fallback procedure: Wiens and Dmitrienko 2005, J.
Biopharm. Stat. 15(6); online: Tian and Ramdas 2021, Stat. Methods Med. Res. 30(4)). Nothing comes
back from a decision that rejects: it was stopped because it would hardly have accepted.

Then the chance of any false accept is at most alpha. Up to the first one all that was passed on
came from decisions with a true effect, so the rates at which decisions without one are taken sum to
at most alpha; the union bound does the rest, however decisions depend on each other.
"""

from collections.abc import Iterable

from analysis.errors import AnalysisError


def share(decision: int, expected: int) -> float:
    """Return the share of alpha that a decision has of its own.

    Args:
        decision: its number, from 1.
        expected: how many decisions are expected, see the module's docstring.

    Raises:
        AnalysisError: a number below 1.
    """
    if decision < 1 or expected < 1:
        raise AnalysisError(f"decision={decision} expected={expected}: must be at least 1")
    return 0.5 ** ((decision - 1) // expected + 1) / expected


def rate(alpha: float, decision: int, expected: int, passed_on: Iterable[float] = ()) -> float:
    """Return the error rate of a decision.

    Args:
        alpha: of the campaign.
        decision: its number, from 1.
        expected: how many decisions are expected.
        passed_on: rates of accepted decisions that no other has got yet.
    """
    return alpha * share(decision, expected) + sum(passed_on)
