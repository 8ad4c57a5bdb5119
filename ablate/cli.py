"""The program `ablate`: hands the words behind a verb to it.

Exit status: 0 success, 1 some cells failed (the rest are recorded), 2 the request was wrong.
"""

import sys
from collections.abc import Sequence

from ablate import __version__, interrupts
from ablate.commands import (
    export,
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
from ablate.commands.verb import HELP, OVERRIDES
from ablate.errors import UserError, nearest, refuse
from ablate.terminal import unbroken

MODULES = (
    run, sweep, plan, status, tokens, report, reproduce, judge, export, store, verify, tune,
    pretrain,
)  # fmt: skip
VERBS = {module.VERB.name: module.VERB for module in MODULES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in (*HELP, "help"):
        print(usage())
        return 0 if words else 2
    verb, *rest = words
    if verb == "--version":
        print(f"ablate {__version__}")
        return 0
    try:
        if verb.startswith("-"):
            raise UserError(f"{verb}: options stand behind a verb: {', '.join(VERBS)}")
        if verb not in VERBS:
            raise UserError(f"{verb}: no such verb; {', '.join(VERBS)}.{nearest(verb, VERBS)}")
        with unbroken():
            return VERBS[verb].main(rest)
    except UserError as error:
        return refuse(error)
    except OSError as error:  # a file or a disk that verbs need; what is recorded stays
        return refuse(f"{error.filename or 'the disk'}: {error.strerror or error}")
    except KeyboardInterrupt as stop:
        return interrupts.told(stop)


def usage() -> str:
    """Return what `ablate --help` prints."""
    verbs = [f"  {verb.name:<10} {verb.summary}" for verb in VERBS.values()]
    return "\n".join(
        [
            f"usage: ablate VERB [OPTION ...] {OVERRIDES}",
            "",
            *verbs,
            "",
            "`ablate VERB --help` lists a verb's options. KEY=VALUE are Hydra overrides:",
            "masking=none plw=0.1 adapter=lora,mora rank=2,8 seed=0,1 out=results/mine",
            "groups: masking adapter init optimizer placement regulariser dataset model train",
            "evaluate study; `ablate sweep --cfg job` prints every setting",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
