"""The rooms: imports point one way, what needs no torch imports none, the tree is true."""

import ast
import re
import subprocess
import sys

from ablate.adapters import registry
from tests.imports import ROOT, circles, files, graph, imported
from tests.tree import BLOCK, PAGE, tree

# Each line may import from its own line and from those above it, never from below. A module
# stands where the longest name here that begins its own name stands.
FLOORS = [
    {"ablate.errors", "ablate.hub", "ablate.paths", "ablate.roles", "ablate.streams",
     "ablate.results", "ablate.terminal", "ablate.machine", "ablate.interrupts",
     "ablate.version"},
    {"ablate.config"},
    {"ablate.objective"},
    {"ablate.micro"},  # a generator of rows that knows nothing of the rest
    {"ablate.data"},
    {"ablate.micro.tasks"},  # its benchmarks are asked in the data's templates
    {"ablate.micro.exercises", "ablate.evaluate.code_eval", "ablate.evaluate.sandbox",
     "ablate.evaluate.processor_time"},
    {"ablate.models"},
    {"ablate.training"},  # knows nothing of the methods: their hooks are handed to it
    {"ablate.adapters.options"},
    {"ablate.adapters.method"},
    {"ablate.adapters.plugged"},
    {"ablate.adapters.plain", "ablate.adapters.lora.spec", "ablate.adapters.mora.spec",
     "ablate.adapters.three_factor.spec", "ablate.adapters.peft", "ablate.adapters.init.spec",
     "ablate.adapters.optimizers"},
    {"ablate.adapters.registry"},
    {"ablate.adapters.start"},
    {"ablate.adapters.compatibility", "ablate.adapters.devices", "ablate.adapters.stored"},
    {"ablate.evaluate.stock_index"},
    {"ablate.evaluate.tasks_index"},
    {"ablate.evaluate.task_items"},
    {"ablate.evaluate.chosen"},
    {"ablate.experiment"},
    {"ablate.adapters"},
    {"ablate.evaluate"},
    {"ablate.telling", "ablate.tracking"},
    {"ablate.recording"},
    {"ablate.beside"},
    {"ablate.child", "ablate.group"},  # the processes of a cell
    {"ablate.run"},
    {"ablate.export", "ablate.judge"},
    {"ablate.probing"},
    {"ablate.failures"},
    {"ablate.member"},
    {"ablate.work"},
    {"ablate.worker", "ablate.pool", "ablate.watch"},
    {"ablate.verify"},
    {"ablate.sweep"},
    {"ablate.live"},
    {"ablate.progress"},
    {"ablate.following"},
    {"ablate.app"},  # the Hydra application, which the verbs call
    {"ablate.commands"},
    {"ablate"},  # `ablate.load` opens the analysis; of the package, only the program imports it
    {"ablate.cli"},  # dispatches; nothing imports it
    {"ablate.__main__"},
    {"analysis", "analysis.errors"},
    {"analysis.engine"},
    {"analysis.mixed"},
    {"analysis.inference"},
    {"analysis.table"},
    {"analysis.logs"},
    {"analysis.curve"},
    {"analysis.report"},
    {"analysis.regression"},
    {"analysis.questions"},
    {"analysis.planning"},
    {"analysis.papers"},
    {"analysis.explorer"},
    {"analysis.report.build", "analysis.report.overview",
     "analysis.report.plain", "analysis.report.trust", "analysis.report.plugged"},
    {"analysis.facade"},
    {"analysis.compare"},
]  # fmt: skip
# Inside a question: numbers, then how they are drawn, then how they are told.
PARTS = {"figure": 1, "section": 2}
# The modules of the analysis that know of ablate,
READERS = ("analysis.table.frame", "analysis.table.records")
SCHEMA = "ablate.results.record"  # and all that it knows
# but for how text stands in a CSV file, which those know that write or read one
CELLS = "ablate.results.spreadsheet"
OF_CELLS = ("analysis.report.page", "analysis.report.overview", "analysis.table.columns")
TORCH_FREE = [
    "ablate.config.schema", "ablate.config.build", "ablate.config.compose", "ablate.config.grid",
    "ablate.objective", "ablate.results.record", "ablate.results.store",
    "ablate.experiment.identity", "ablate.experiment.design", "ablate.experiment.regularisers",
    "ablate.experiment.summary", "ablate.experiment.prospective", "ablate.commands.planning",
    "ablate.commands.tune", "ablate.commands.tune_grids", "ablate.commands.pretrain",
    "ablate.commands.token_page", "ablate.commands.decide_loop", "ablate.commands.decide_plan",
    "ablate.pool", "ablate.worker", "ablate.work", "ablate.watch", "ablate.progress",
    "ablate.sweep", "ablate.app", "ablate.cli", "ablate.data.tokenise",
    "hydra_plugins.ablate_sweeper",
    "ablate.data.rows", "ablate.micro.tasks", "ablate.micro.instructions",
    "ablate.evaluate.tasks_index", "ablate.models.shapes", "ablate.hub",
    "ablate.adapters.registry", "ablate.adapters.compatibility", "ablate.adapters.devices",
    "ablate.group", "ablate.child", "ablate.judge.asked", "ablate.judge.rule",
    "ablate.judge.endpoint", "ablate.judge.arms", "ablate.judge.carried", "ablate.commands.judge",
    "ablate.adapters.start", "ablate.adapters.stored", "ablate.experiment.notes",
    "analysis.table.frame", "analysis.mixed", "analysis.questions.plw.estimate",
    "analysis.report.build", "analysis.papers.plw.figure",
]  # fmt: skip


def floor(module):
    """Where a module stands: by the longest name on the floors that begins its own."""
    found = [
        (len(name), position)
        for position, room in enumerate(FLOORS)
        for name in room
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1]


def part(module):
    """Where a module stands inside its question."""
    return PARTS.get(module.rpartition(".")[2].rpartition("_")[2], 0)


def question(module):
    words = module.split(".")
    return words[2] if words[:2] == ["analysis", "questions"] and len(words) > 3 else None


def upward():
    """Every import that points up: from a lower floor to a higher one, or within a question."""
    for module, others in graph().items():
        for other in others:
            if module.split(".")[0] != other.split(".")[0]:
                continue
            inside = question(module) is not None and question(module) == question(other)
            if floor(other) > floor(module) or (inside and part(other) > part(module)):
                yield module, other


# Imports that still point up; this list may only shrink.
TO_TURN: set[tuple[str, str]] = set()


def test_imports_point_one_way():
    assert set(upward()) == TO_TURN


def test_a_class_name_means_one_thing():
    """Within ablate no two public classes share a name."""
    names = [
        node.name
        for path in files("ablate")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert {name for name in names if names.count(name) > 1} == set()


def test_there_are_no_circles():
    assert circles(graph()) == []


def test_circles_are_found_inside_functions_and_over_several_modules():
    """The reader itself: a circle of three of which one import hides inside a function."""
    sources = {
        "a": "from b import f",
        "b": "def g():\n    import c",
        "c": "if True:\n    from a import h",
        "d": "import a",
    }
    edges = {name: sorted(imported(text, sources)) for name, text in sources.items()}
    assert edges == {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}
    assert circles(edges) == [["a", "b", "c"]]


def long_spellings(source):
    """What is spelt out although a name stands for it: objective_of, tokenised, Cell.is_base."""
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node)
        if isinstance(node, ast.Call):
            read = {a.attr for a in node.args if isinstance(a, ast.Attribute)}
            if {"masking", "plw", "completion_weight", "loss"} <= read:
                yield text
            if text.startswith("tokenise(") and ".dataset," in text and ".boundary" in text:
                yield text
        if isinstance(node, ast.Compare) and re.search(r"adapter\.kind (!=|==|in) .*'none'", text):
            yield text


def test_a_cell_is_asked_by_one_name():
    """Its objective, its rows and whether it is the base are each spelt in one place."""
    known = {"ablate/objective.py", "ablate/experiment/cell_data.py", "ablate/config/schema.py"}
    found = {str(p.relative_to(ROOT)) for p in files("ablate") if [*long_spellings(p.read_text())]}
    assert found == known


def test_analysis_reads_results_only():
    """Only the frame knows the schema of the results; nothing there needs torch."""
    for path in files("analysis"):
        text = path.read_text()
        banned = r"^\s*(?:from|import) (?:torch|transformers|peft|notebooks)\b"
        assert not re.search(banned, text, re.M), path
    reads = {(m, o) for m, others in graph().items() for o in others if m.startswith("analysis")}
    known = {(m, SCHEMA) for m in READERS} | {(m, CELLS) for m in OF_CELLS}
    assert {(m, o) for m, o in reads if o.startswith("ablate")} == known


def test_nothing_imports_the_program():
    """`ablate.cli` hands words on; what it hands them to does not know it."""
    found = {module for module, others in graph().items() if "ablate.cli" in others}
    assert found <= {"ablate.__main__"}


def test_only_the_command_line_knows_the_analysis():
    for module, others in graph().items():
        if module.startswith("ablate.") and any(o.startswith("analysis") for o in others):
            assert module == "ablate.app" or module.startswith("ablate.commands.")


def test_no_torch_where_none_is_needed():
    code = f"import importlib, sys\nfor m in {TORCH_FREE!r}: importlib.import_module(m); " + (
        "assert 'torch' not in sys.modules, m"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# --- a method is one row


METHOD_ROOMS = ("lora", "mora", "three_factor", "peft", "plain.py")  # where rows and layers are


def method_literals(source, kinds):
    """Where a source text names a method: comparisons with one, and collections of several.

    Yields line numbers. A comparison is with a variable or attribute called `kind`; a collection
    is a list, tuple or set, or the keys of a dictionary, with at least two methods among them.
    """

    def named(nodes):
        return [n for n in nodes if isinstance(n, ast.Constant) and n.value in kinds]

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            about = any(getattr(n, "attr", getattr(n, "id", "")) == "kind" for n in sides)
            inner = [e for n in sides for e in getattr(n, "elts", [n])]
            if about and named(inner):
                yield node.lineno
                continue
        listed = getattr(node, "keys" if isinstance(node, ast.Dict) else "elts", [])
        if len(named(listed)) > 1:
            yield node.lineno


def test_no_module_but_a_methods_own_names_it():
    kinds = set(registry.KINDS)
    found = {
        (str(path.relative_to(ROOT)), line)
        for path in files("ablate")
        if not set(path.parts) & set(METHOD_ROOMS)
        for line in method_literals(path.read_text(), kinds)
    }
    assert {path for path, _ in found} == {"ablate/config/schema.py"}, found
    # Cell.is_base, which all others ask; none and full of execution.sharding are no methods.
    assert len(found) == 2


def test_names_of_methods_are_found():
    """The reader itself, on the ways in which a table by name of method has been written."""
    for text in ("x.kind == 'lora'", "kind in ('a', 'mora')", "{'lora': 1, 'mora': 2}",
                 "frozenset({'lora', 'mora'})", "kind not in ['lora']"):  # fmt: skip
        assert list(method_literals(text, {"lora", "mora"})) == [1], text
    for text in ("x.kind == 'task'", "name == 'lora'", "{'lora': 1}", "f('lora')"):
        assert not list(method_literals(text, {"lora", "mora"})), text


def test_the_tree_of_the_documents_is_true():
    told = BLOCK.search(PAGE.read_text())
    assert told, "docs/architecture.md has no ```tree block"
    assert told[1] == tree(), "docs/architecture.md is behind the code: python -m tests.tree"
