"""The program `ablate`: hands the words behind a verb to it.

Exit status: 0 success, 1 some cells failed (the rest are recorded), 2 the request was wrong.
"""

import sys
from collections.abc import Sequence

from ablate.commands import (
    compare,
    completion,
    decide,
    doctor,
    export,
    init,
    judge,
    plan,
    pretrain,
    report,
    reproduce,
    run,
    status,
    store,
    sweep,
    tokens,
    tune,
    verify,
)
from ablate.commands.completing import ANSWER, answers
from ablate.commands.help import topic
from ablate.commands.verb import HELP
from ablate.errors import LeaseLost, UserError, halted, nearest, refuse
from ablate.terminal import unbroken
from ablate.version import __version__

# The verbs by what they are for, in the order in which one meets them.
PURPOSES = {
    "begin": (init, doctor, completion),
    "before anything trains": (tokens, plan),
    "train and score": (run, sweep, decide, status, tune, reproduce, pretrain),
    "read the results": (report, compare, judge),
    "keep and hand on": (export, verify, store),
}
VERBS = {module.VERB.name: module.VERB for some in PURPOSES.values() for module in some}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb and return the exit status; output that nobody reads is no error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with unbroken():
        try:
            return _main(words)
        except UserError as error:
            return refuse(error)
        except OSError as error:  # a file or a disk that verbs need; what is recorded stays
            return refuse(f"{error.filename or 'the disk'}: {error.strerror or error}")
        except LeaseLost:
            return halted("this process stood still, and another has taken its work over")
        except KeyboardInterrupt as stop:
            from ablate import interrupts

            return interrupts.told(stop)


def _main(words: list[str]) -> int:
    purposes = {purpose: [m.VERB for m in some] for purpose, some in PURPOSES.items()}
    verb, *rest = words or ["help"]
    if verb in (*HELP, "help"):
        print(topic([word for word in rest if word not in HELP], purposes))
        return 0 if words else 2
    if verb == "--version":
        print(f"ablate {__version__}")
        return 0
    if words[:2] == ANSWER:
        for word in answers(" ".join(words[2:]), VERBS):  # none: the shell offers files
            print(word)
        return 0
    if verb.startswith("-"):
        raise UserError(f"{verb}: options stand behind a verb: {', '.join(VERBS)}")
    if verb not in VERBS:
        raise UserError(f"{verb}: no such verb; {', '.join(VERBS)}.{nearest(verb, VERBS)}")
    return VERBS[verb].main(rest)


if __name__ == "__main__":
    sys.exit(main())
