"""The tree of docs/architecture.md, made from the first line of every module's docstring.

`python -m tests.tree` writes it anew, and the reference of the command line.
"""

import ast
import re
from pathlib import Path

from tests import commands_page
from tests.imports import PACKAGES, ROOT, files

PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"```tree\n(.*?)```", re.S)
WIDTH = 30  # of the column of names


def phrase(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n")[0].removesuffix(".")


def lines(folder: Path, depth: int) -> list[str]:
    def line(name: str, told: str) -> str:
        return f"{'  ' * depth + name:<{WIDTH}} {told}".rstrip()

    found = []
    init = folder / "__init__.py"
    modules = [p for p in files(str(folder.relative_to(ROOT))) if p.parent == folder]
    found.append(f"{'  ' * (depth - 1) + folder.name + '/':<{WIDTH}} {phrase(init)}".rstrip())
    found += [line(p.name, phrase(p)) for p in modules if p != init]
    for sub in sorted(p for p in folder.iterdir() if (p / "__init__.py").exists()):
        found += lines(sub, depth + 1)
    return found


def tree() -> str:
    found = [line for package in PACKAGES for line in lines(ROOT / package, 1)]
    plugins = sorted((ROOT / "hydra_plugins").glob("ablate_*"))
    shown = [line for plugin in plugins for line in lines(plugin, 2)]
    return "\n".join([*found, "hydra_plugins/", *shown]) + "\n"


if __name__ == "__main__":
    commands_page.write()
    PAGE.write_text(BLOCK.sub(lambda _: f"```tree\n{tree()}```", PAGE.read_text(), count=1))
