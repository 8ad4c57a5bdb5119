"""Runs every benchmark of this folder, each in a process of its own, and goes on where one fails.

python -m benchmarks.gpu [--device cpu --tiny] [--out FILE]
"""

import subprocess
import sys
from pathlib import Path

OTHERS = ("__init__", "__main__", "common", "table")


def main() -> int:
    """Return how many benchmarks failed."""
    failed = 0
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem not in OTHERS:
            command = [sys.executable, "-m", f"benchmarks.gpu.{file.stem}", *sys.argv[1:]]
            failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
