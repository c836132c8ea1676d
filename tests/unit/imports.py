"""What the project's modules import, read off their syntax trees."""

import ast
import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    """Every module of the library and the stages, packages by their __init__, as dotted name to file."""
    files = {}
    for file in sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")]):
        parts = file.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = modules()


@cache
def imported(name: str) -> frozenset[str]:
    """Modules of the project that a module names in its import statements, wherever they stand in it."""
    dotted_names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            dotted_names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            dotted_names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(other for other in dotted_names if other in MODULES and other != name)


@cache
def needed(name: str, ends: frozenset[str] = frozenset()) -> frozenset[str]:
    """All that importing a module runs: itself, what it imports, and the packages that these lie in; but for what is
    imported by modules of some rooms alone."""
    reached, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            parts = module.split(".")
            waiting += [".".join(parts[:i]) for i in range(1, len(parts))]
            waiting += imported(module) if room(module) not in ends else ()
    return frozenset(reached)


def room(name: str) -> str:
    """The room of the library that a module lies in; empty for a stage and for the library itself."""
    return name.split(".")[1] if name.startswith("pipeline.") else ""


PINS = yaml.safe_load((ROOT / "versions.yaml").read_text())


OWN_TEXT = {"pydoc_data": "python"}  # what comes with another version of Python, and numbers come from


@cache
def outside(name: str) -> frozenset[str]:
    """The libraries that a module names in its import statements, wherever they stand in it, as versions.yaml calls
    them; "parquet", where it lets pandas read or write that; and "python", where it reads Python's own help topics."""
    dotted_names = {"parquet"} if re.search("(read|to)_parquet", MODULES[name].read_text()) else set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            dotted_names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dotted_names.add(node.module or "")
    names = {other.partition(".")[0] for other in dotted_names}
    names |= {"python"} & {OWN_TEXT.get(name, "") for name in names}
    return frozenset(library for library in [*PINS, "parquet"] if library.replace("-", "_") in names)
