"""Tab completion: what is offered at the cursor, and that real shells put it on the line."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ablate.cli import VERBS, main
from ablate.commands.completing import answers
from ablate.config.settings import levels
from tests.imports import ROOT


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ablate pl", ["plan "]),
        ("ablate --v", ["--version "]),
        ("ablate nothing ", []),
        ("ablate plan mask", ["masking=", "masking."]),
        ("ablate plan masking=no_t", ["masking=no_thinking", "masking=no_tools_results"]),
        ("ablate plan masking=none,stop", ["masking=none,stop_masked"]),
        ("ablate plan masking=stop_masked,stop", []),  # is given already
        ("ablate plan loss.sc", ["loss.scope="]),
        ("ablate plan loss.scope=", ["loss.scope=batch", "loss.scope=example",
                                     "loss.scope=microbatch"]),
        ("ablate plan execution.gr", ["execution.gradient_checkpointing="]),
        ("ablate plan execution.compile=t", ["execution.compile=true"]),
        ("ablate plan trai", ["train=", "train."]),
        ("ablate plan dataset.spl", ["dataset.split=", "dataset.splits."]),
        ("ablate plan dataset.splits.te", ["dataset.splits.test="]),
        ("ablate plan plw=", []),  # a number
        ("ablate plan --fo", ["--format "]),
        ("ablate plan --format ", ["text ", "json "]),
        ("ablate plan --format j", ["json "]),
        ("ablate plan --format=j", ["--format=json "]),
        ("ablate plan --pilot ", []),  # a folder: the shell's own
        ("ablate reproduce pl", ["plw "]),
        ("ablate reproduce plw sca", ["scale="]),
        ("ablate store ch", ["check "]),
        ("ablate store check ", []),
        ("ablate completion in", ["install "]),
        ("ablate report ", []),
        ("ablate help adapter=mora_t", ["adapter=mora_truncate "]),
        ("ablate help loss.token_rule_s", ["loss.token_rule_scope "]),
        ("ablate plan 'masking=st", ["masking=stop_masked"]),
    ],
)  # fmt: skip
def test_what_may_stand_at_the_cursor(line, found):
    assert answers(line, VERBS) == found


def test_all_verbs_all_flags_and_all_levels_are_offered(tmp_path):
    assert {word.strip() for word in answers("ablate ", VERBS)} >= set(VERBS)
    for name, verb in VERBS.items():
        flags = {word.strip() for word in answers(f"ablate {name} --", VERBS)}
        assert flags == {flag.name for flag in verb.flags} | {"--help"}
    offered = answers("ablate sweep adapter=", VERBS)
    assert offered == [f"adapter={level}" for level in levels("adapter")]
    (tmp_path / "masking").mkdir()
    (tmp_path / "masking" / "mine.yaml").write_text("")
    for option in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}"):
        assert answers(f"ablate plan {option} masking=mi", VERBS) == ["masking=mine"]


def test_an_answer_imports_no_library_that_is_slow():
    code = (
        "import sys; from ablate.cli import main\n"
        "assert main(['completion', 'answer', 'ablate plan masking=']) == 0\n"
        "slow = {'torch', 'hydra', 'omegaconf', 'pandas', 'numpy', 'transformers'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "masking=none" in done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "word", "found"),
    [
        ("ablate pla", "pla", ["plan "]),
        # bash parts words at =, and puts what it is given behind the last of them
        ("ablate plan masking=no_", "no_", ["no_thinking", "no_tools_results"]),
        ("ablate plan masking=", "", [level for level in levels("masking")]),
        ("ablate plan masking=none,sp", "none,sp", ["none,special"]),
        ("ablate report my", "my", []),
    ],
)
def test_bash_completes(line, word, found, tmp_path):
    """The function of the script, called as bash calls it, with `ablate` on the path."""
    program(tmp_path)
    calls = (
        f'. "{ROOT}/ablate/commands/shells/ablate.bash"; PATH="{tmp_path}:$PATH"\n'
        f"COMP_LINE='{line} behind' COMP_POINT={len(line)}\n"
        f"_ablate ablate '{word}' before; echo ${{#COMPREPLY[@]}}\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p ablate"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", calls], capture_output=True, text=True, cwd=ROOT, check=True
    )
    count, *offered, registered = done.stdout.splitlines()
    assert int(count) == len(found)  # where there is none, files are offered
    assert offered == (found or [""])
    assert registered.endswith("-F _ablate ablate")


def program(folder):
    """`ablate` as a program in a folder, for the path."""
    made = folder / "ablate"
    made.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ablate.cli "$@"\n')
    made.chmod(0o755)


HOMES = {"PATH": "{}/bin:" + os.environ["PATH"], "HOME": "{}/home", "ZDOTDIR": "{}/home",
         "TERM": "dumb", "PYTHONPATH": str(ROOT)}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home of a user of the program, with files whose names begin as words of it do."""
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()
    program(tmp_path / "bin")
    for name, value in HOMES.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    for name in ("planned.csv", "masked.csv", "mine.csv"):
        (tmp_path / "home" / name).touch()
    return tmp_path / "home"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ablate pla", ["plan"]),  # and no file
        ("ablate plan mask", ["masking.", "masking="]),
        ("ablate plan masking=none,spe", ["masking=none,special"]),
        ("ablate plan 'masking=stop", ["masking=stop_masked"]),
        ("ablate plan --format ", ["json", "text"]),
        ("ablate report mi", ["mine.csv"]),
        ("ablate plan out=mi", ["out=mine.csv"]),
    ],
)
def test_fish_completes(home, line, found):
    calls = f'source {ROOT}/ablate/commands/shells/ablate.fish; complete -C "{line}"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", calls], capture_output=True, text=True, cwd=home, check=True
    )
    assert [offered.split("\t")[0] for offered in done.stdout.splitlines()] == found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("ablate pla", "ablate plan "),
        ("ablate plan masking=no_", "ablate plan masking=no_t"),  # what its two levels share
        ("ablate plan masking=none,spe", "ablate plan masking=none,special"),
        ("ablate plan 'masking=stop_", "ablate plan 'masking=stop_masked"),
        ("ablate report mi", "ablate report mine.csv "),
    ],
)
def test_zsh_completes(home, line, shown):
    """At a terminal: the line that stands there behind a tab."""
    script = ROOT / "ablate" / "commands" / "shells" / "ablate.zsh"
    (home / ".zshrc").write_text(f"PS1='ready '\n. '{script}'\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execlp("zsh", "zsh", "-i")
    try:
        assert "ready " in until(terminal, "ready ")
        os.write(terminal, f"{line}\t".encode())
        assert shown in until(terminal, shown)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def until(terminal, words):
    """What a terminal shows until it has `words`, for at most a minute."""
    shown, end = "", time.monotonic() + 60
    while words not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_and_remove_leave_a_start_file_as_it_was(shell, tmp_path, monkeypatch, capsys):
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    start = tmp_path / f".{shell}rc"
    start.write_text("alias a=b")
    for _ in range(2):  # the second changes nothing
        assert main(["completion", "install"]) == 0
    text = start.read_text()
    assert text.count("completion of ablate") == (0 if shell == "fish" else 1)
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file() and path != start)
    assert capsys.readouterr().out.startswith(f"written: {written}\n")
    assert str(written) in text or shell == "fish"
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == written.read_text()
    assert main(["completion", "remove"]) == 0
    assert not written.exists()
    assert start.read_text().strip() == "alias a=b"
    assert main(["completion", "remove", shell]) == 0
    assert "was not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shell", "said"),
    [
        ([], "bash", "say what to do"),
        (["instal"], "bash", "Did you mean 'install'?"),
        (["install"], "tcsh", "SHELL=tcsh; name one of bash, zsh, fish"),
        (["install"], "", "SHELL is not set"),
        (["install", "csh"], "bash", "takes one of bash, zsh, fish"),
    ],
)
def test_a_wrong_request_is_one_line(words, shell, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", shell)
    assert main(["completion", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
