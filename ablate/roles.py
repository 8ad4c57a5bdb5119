"""The role of a token: what part of an example it belongs to.

A role is a small integer so that a tokenised data set is two flat arrays, ids and roles.
The definitions are those of docs/words.md. The numbers are stored in caches: only append.
"""

from collections.abc import Mapping
from enum import IntEnum


class Role(IntEnum):
    """What part of a training example a token belongs to."""

    SPECIAL = 0  # BOS, role tags, terminators of user and system turns, newline after a stop
    BOILERPLATE = 1  # constant template text, and system text a template inserts by itself
    SYSTEM = 2  # system text that came with the row
    INSTRUCTION = 3
    INPUT = 4
    COMPLETION = 5  # the answer and its stop token
    TEXT = 6  # continued pretraining: everything, document ends included
    PAD = 7


class Detail(IntEnum):
    """What a token is within its role, where a masking mode may weigh it apart.

    The numbers are stored in caches: only append.
    """

    NONE = 0
    STOP = 1  # what ends an answer
    GENERATION_PROMPT = 2  # the header that opens an answer
    THINKING = 3  # an answer's reasoning and the tags around it
    TOOL_CALL = 4
    TOOL_RESULT = 5
    TOOLS = 6  # definitions of tools


ROLE_OF: Mapping[Detail, Role] = {
    Detail.STOP: Role.COMPLETION,
    Detail.GENERATION_PROMPT: Role.SPECIAL,
    Detail.THINKING: Role.COMPLETION,
    Detail.TOOL_CALL: Role.COMPLETION,
    Detail.TOOL_RESULT: Role.INPUT,
    Detail.TOOLS: Role.SYSTEM,
}
NAMES: tuple[str, ...] = tuple(role.name.lower() for role in Role)
ANSWERS = frozenset({Role.COMPLETION, Role.TEXT})  # what a model is taught to write
# Roles whose weight a masking mode sets; TEXT is always trained and PAD never.
MASKED_ROLES: tuple[str, ...] = tuple(
    NAMES[role] for role in Role if role not in (Role.TEXT, Role.PAD)
)
DETAILS: tuple[str, ...] = tuple(detail.name.lower() for detail in Detail if detail)
