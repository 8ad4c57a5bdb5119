"""`ablate completion`: installs tab completion for the user's shell."""

import argparse
import os
from pathlib import Path

from ablate.commands import completing
from ablate.commands.verb import Verb
from ablate.errors import UserError, unknown
from ablate.terminal import CONSOLE

SHELLS = ("bash", "zsh", "fish")
TASKS = ("install", "remove", *SHELLS)
MARK = "# tab completion of ablate"


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if not rest:
        raise UserError(f"completion: say what to do: one of {', '.join(TASKS)}")
    task, *words = rest
    if task not in TASKS:
        raise unknown("completion", task, TASKS)
    if task in SHELLS:
        print(completing.script(task), end="")
        return 0
    if len(words) > 1 or (words and words[0] not in SHELLS):
        raise UserError(f"completion {task}: takes one of {', '.join(SHELLS)}")
    shell = words[0] if words else _own_shell()
    lines = _install(shell) if task == "install" else _remove(shell)
    for line in lines:
        CONSOLE.print(line, soft_wrap=True, markup=False)
    return 0


def _own_shell() -> str:
    """Return the user's shell.

    Raises:
        UserError: it is none that completion is written for.
    """
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        shown = f"SHELL={name}" if name else "SHELL is not set"
        raise UserError(f"completion: {shown}; name one of {', '.join(SHELLS)}")
    return name


def _script_file(shell: str) -> Path:
    home = Path.home()
    if shell == "fish":  # which reads this folder by itself
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish" / "completions" / "ablate.fish"
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "ablate" / f"completion.{shell}"


def _start_file(shell: str) -> Path | None:
    """Return the file that a shell reads when it starts, where the script needs a line in it."""
    if shell == "zsh":
        return Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc"
    return Path.home() / ".bashrc" if shell == "bash" else None


def _install(shell: str) -> list[str]:
    """Write the script and a line that reads it; return what was done."""
    script = _script_file(shell)
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(completing.script(shell), encoding="utf-8")
    told = [f"written: {script}"]
    if start := _start_file(shell):
        text = start.read_text(encoding="utf-8") if start.exists() else ""
        if MARK not in text:
            lead = "\n" if text and not text.endswith("\n") else ""
            with start.open("a", encoding="utf-8") as file:
                file.write(f'{lead}[ -f "{script}" ] && . "{script}"  {MARK}\n')
            told.append(f"a line added to {start}")
    return [*told, f"new {shell} shells complete `ablate`; `ablate completion remove` undoes it"]


def _remove(shell: str) -> list[str]:
    """Remove what `_install` wrote; return what was done."""
    script, start = _script_file(shell), _start_file(shell)
    told = []
    if script.exists():
        script.unlink()
        told.append(f"removed: {script}")
    if start and start.exists() and MARK in (text := start.read_text(encoding="utf-8")):
        kept = [line for line in text.splitlines(keepends=True) if MARK not in line]
        start.write_text("".join(kept), encoding="utf-8")
        told.append(f"its line removed from {start}")
    return told or [f"{shell}: completion was not installed"]


VERB = Verb(
    name="completion",
    summary="tab completion of verbs, options, settings and levels, by one command",
    about=(
        "install writes a script and a line into the start file of your shell (of $SHELL, or the "
        "one named), remove takes both away, and bash, zsh and fish print the script. Completion "
        "knows what the help knows, and the levels of a --config-dir on the line."
    ),
    words="install|remove|bash|zsh|fish [SHELL]",
    examples=(
        "ablate completion install",
        "ablate completion install zsh",
        'ablate completion bash    # eval "$(ablate completion bash)" for this shell alone',
    ),
    run=_run,
)
