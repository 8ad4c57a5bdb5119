"""Prints the figures of the benchmarks as tables of Markdown, one for each kind of measurement.

python -m benchmarks.gpu.table FILE.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any

MACHINE = ("card", "torch")  # the same in all lines: told once
LONG = ("losses", "last_losses")


def main() -> None:
    """Print the tables of the file."""
    lines = [json.loads(text) for text in Path(sys.argv[1]).read_text().splitlines() if text]
    for kind in dict.fromkeys((_columns(line), _machine(line)) for line in lines):
        columns, machine = kind
        print(f"\n{machine}\n")
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * len(columns))
        for line in lines:
            if (_columns(line), _machine(line)) == kind:
                print("| " + " | ".join(_text(line[name]) for name in columns) + " |")


def _columns(line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in line if name not in (*MACHINE, *LONG))


def _machine(line: dict[str, Any]) -> str:
    return ", ".join(f"{name} {line[name]}" for name in MACHINE)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
