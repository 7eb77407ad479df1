"""The plan of the house, as rules: imports run downwards, four bits know no scan, and few modules lie loose."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "monai_fp4"

FLOORS = (
    {"__main__"},
    {"cli"},
    {"report"},
    {"study"},
    {"export", "inference"},
    {"handlers"},
    {"engines"},
    {"bundle"},
    {"visualize"},
    {"networks"},
    {"data"},
    {"doctor"},
    {"quantization", "metrics"},
    {"losses", "optimizers", "machine", "durations"},
    {"lock"},
    {"compiler", "atomic"},
    {"errors"},
)
"""From the roof to the ground; a room imports only from floors below its own."""
FLOOR_OF = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in PACKAGE.rglob("*.py")}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not is_for_types(child):
            yield child
            yield from running_code(child)


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports when it runs, wherever in the file it says so."""
    found = set()
    for node in running_code(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name}
    return found


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in MODULES} - {"__init__"} <= set(FLOOR_OF)


def test_nothing_imports_upwards() -> None:
    upwards = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if room(name) != room(target)
        and "__init__" not in (room(name), room(target))
        and FLOOR_OF[room(target)] >= FLOOR_OF[room(name)]
    ]
    assert upwards == []


def test_four_bits_know_no_scan_no_run_and_no_study() -> None:
    known = {room(target) for name, targets in IMPORTS.items() if room(name) == "quantization" for target in targets}
    assert known <= {"quantization", "compiler", "errors"}


REPORT = (
    {"cli"}, {"pages"}, {"analyse"}, {"figures", "claims", "verdicts"}, {"statistics"}, {"tables", "survey"},
    {"formulas"},
)  # fmt: skip
"""The floors within the report, from the roof to the ground."""


def test_within_the_report_nothing_imports_upwards() -> None:
    floor = {part: -number for number, parts in enumerate(REPORT) for part in parts}
    own = {name: name.split(".")[2] for name in MODULES if name.startswith(f"{PACKAGE.name}.report.")}
    assert set(own.values()) == set(floor)
    upwards = [
        f"{name} imports {target}"
        for name, part in own.items()
        for target in IMPORTS[name]
        if target in own and own[target] != part and floor[own[target]] >= floor[part]
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A package's face hands on the names of its modules, so it may import them and they must not import it."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for target in IMPORTS[name]:
            visit(target, (*way, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def test_a_dozen_modules_at_most_lie_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'monai', 'ignite', 'numpy', 'matplotlib'}"
    program = f"import sys, monai_fp4; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
    program = "import sys, types, monai_fp4; print(type(sys.modules['monai_fp4']) is types.ModuleType)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"


@pytest.mark.parametrize("name", ["convert", "quantize", "build_network"])
def test_public_names_are_functions_and_no_module_shadows_them(name: str) -> None:
    assert f"monai_fp4.{name}" not in MODULES
