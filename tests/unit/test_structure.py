"""The rooms: imports point one way, the torch-free side is free of torch, the README is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each line may import from its own line and from those above it, never from below.
ARROW = [
    {"errors", "roles", "paths", "log", "provenance"},
    {"config"},
    {"weights", "record"},
    {"overrides", "factors", "composer", "compose", "grid"},
    {"adapters.method"},
    {"adapters.rows"},
    {"adapters.table"},
    {"data", "model_files", "adapters.legality", "tuning", "regularisers"},
    {"micro"},
    {"evaluate.scores", "evaluate.tasks_index"},
    {"identity", "store"},
    {"design", "preview"},
    {"streams", "model", "loss", "optim", "hooks"},
    {"adapters", "train", "regularise"},
    {"measures", "evaluate"},
    {"run", "micro.guards"},
    {"sweep"},
    {"progress", "status"},
    {"plan", "pretrain"},
    {"cli"},
    {"app", "__main__"},
]
ARROW_OF_ANALYSIS = [
    {"errors"}, {"engine"}, {"mixed"}, {"inference"}, {"study"}, {"design"}, {"figures"},
    {"report"}
]  # fmt: skip
TORCH_FREE = [
    "ablate.config", "ablate.weights", "ablate.record", "ablate.store", "ablate.compose",
    "ablate.grid", "ablate.identity", "ablate.design", "ablate.sweep", "ablate.plan",
    "ablate.status", "ablate.cli", "ablate.app", "hydra_plugins.ablate_sweeper",
    "ablate.data.tokenise", "ablate.data.rows", "ablate.preview", "ablate.micro.tasks",
    "ablate.micro.instructions", "ablate.evaluate.tasks_index",
    "ablate.adapters.table", "ablate.adapters.legality", "ablate.regularisers",
    "analysis.study.frame", "analysis.mixed", "analysis.study.effects", "analysis.report.build",
    "analysis.figures.plw",
]  # fmt: skip


def modules(package):
    return sorted(p for p in (ROOT / package).rglob("*.py") if "checkpoints" not in p.parts)


def top_level_imports(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # of a package, the module that is meant
                module = f"{node.module}.{alias.name}"
                inside = (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
                yield module if inside else node.module


def level(module):
    """Where a module of ablate stands on the arrow: by its own name, else by its package's."""
    name = module.removeprefix("ablate.")
    for key in (".".join(name.split(".")[:2]), name.split(".")[0]):
        for position, room in enumerate(ARROW):
            if key in room:
                return position
    return None


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules("ablate"), ids=name_of)
def test_imports_point_one_way(path):
    own = name_of(path)
    if own == "ablate":
        return
    here = level(own)
    assert here is not None, f"{own} has no place on the arrow"
    for target in top_level_imports(path):
        if target.startswith("ablate.") and level(target) is not None:
            assert level(target) <= here, f"{own} imports {target} from further down the arrow"


def test_analysis_reads_results_only():
    for path in modules("analysis"):
        for target in top_level_imports(path):
            assert not target.startswith("ablate.") or target.startswith("ablate.record"), path
            assert target.split(".")[0] not in ("torch", "transformers", "peft"), path


def room_of_analysis(module):
    rooms = [i for i, room in enumerate(ARROW_OF_ANALYSIS) if module.split(".")[1] in room]
    return rooms[0] if rooms else None


@pytest.mark.parametrize("path", modules("analysis"), ids=name_of)
def test_imports_of_the_analysis_point_one_way(path):
    own = name_of(path)
    if own == "analysis":
        return
    here = room_of_analysis(own)
    assert here is not None, f"{own} has no place on the arrow"
    for target in top_level_imports(path):
        if target.startswith("analysis."):
            there = room_of_analysis(target)
            assert there is not None, f"{target} has no place on the arrow"
            assert there <= here, f"{own} imports {target}"


def test_only_the_command_line_knows_the_analysis():
    for path in modules("ablate"):
        if re.search(r"^\s*(from|import) analysis\b", path.read_text(), re.M):
            assert path.name == "cli.py", path


def test_no_torch_where_none_is_needed():
    code = f"import importlib, sys\nfor m in {TORCH_FREE!r}: importlib.import_module(m); " + (
        "assert 'torch' not in sys.modules, m"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def tree_of_readme():
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```tree\n(.*?)```", text, re.S)
    assert block, "README has no ```tree block"
    found, folders = [], []
    for line in block[1].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        depth = len(indent) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            found.append("/".join(folders))
    return found


def test_the_readmes_tree_is_true():
    told = set(tree_of_readme())
    real = {
        str(p.relative_to(ROOT))
        for package in ("ablate", "analysis", "hydra_plugins")
        for p in modules(package)
        if p.name != "__init__.py" or package == "hydra_plugins"
    }
    assert told == real, f"missing in the README: {real - told}; not there: {told - real}"
