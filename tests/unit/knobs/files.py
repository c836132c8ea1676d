"""params.yaml as it is shipped, with changes, and what params.load says of them."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.knobs import params

ROOT = Path(__file__).parents[3]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
LONG = {
    "weights": {"bits": 4, "symmetric": True, "group": 64},
    "activations": {"bits": 16, "symmetric": True, "dynamic": False, "observer": "split", "percentile": 99.99},
    "kv_cache": {"bits": 8, "symmetric": False, "group": 0},
}


def load_text(tmp_path: Path, text: str) -> params.Params:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return params.load(file)


def load_with(tmp_path: Path, **changes: object) -> params.Params:
    """Load the shipped knobs with some changed: `section__knob=value`; a value of `...` takes the knob away."""
    tree = copy.deepcopy(SHIPPED)
    for name, value in changes.items():
        put(tree, name.split("__"), value)
    return load_text(tmp_path, yaml.safe_dump(tree))


def put(tree: dict, path: list[str], value: object) -> None:
    for section in path[:-1]:
        tree = tree[section]
    if value is ...:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def long(*overrides: object, **changes: object) -> dict[str, Any]:
    """A scheme of all fields, some changed: `weights__bits=3`."""
    tree: dict[str, Any] = copy.deepcopy(LONG)
    for name, value in changes.items():
        put(tree, name.split("__"), value)
    return {**tree, "overrides": list(overrides)} if overrides else tree


def lines(error: ValueError) -> list[str]:
    """The problems that an error lists, whose number its first line tells."""
    head, *rest = str(error).splitlines()
    assert f"{len(rest)} bad knob(s)" in head, head
    return [re.sub(r" \(line \d+\)$", "", line.strip()) for line in rest]


def problems(tmp_path: Path, **changes: object) -> list[str]:
    """What is said of the shipped knobs with some changed, a line each."""
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_with(tmp_path, **changes)
    return lines(caught.value)
