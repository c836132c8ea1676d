"""The tiny model exported, and what its exports are held against; each made once."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest
import torch

from pipeline.export.formats import export
from pipeline.export.qnn.folder import Target
from pipeline.runtimes.references import References, Text, references, text
from pipeline.runtimes.table import RUNTIMES
from tests import tiny
from tests.unit.export.quantized import quantized


def absent(name: str) -> bool:
    """Whether a runtime is not installed that does not have to be."""
    package = {"qnn": "onnxruntime_qnn", "executorch": "executorch"}.get(name)
    return package is not None and importlib.util.find_spec(package) is None


OPENED = [  # each runtime with each format that it opens; that for NPUs where it is installed, as it is no default
    pytest.param(name, format_name, marks=pytest.mark.skipif(absent(name), reason="not installed"))
    for name, runtime in RUNTIMES.items()
    for format_name in runtime.formats
]


class Exported(Protocol):
    def __call__(self, format_name: str, scheme: str = "blocks") -> Path: ...


@pytest.fixture(scope="session")
def whole_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that every format holds."""
    return tiny.save_whole(tmp_path_factory.mktemp("teacher") / "whole")


@pytest.fixture(scope="session")
def exported(whole_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a scheme's export in a format."""

    @cache
    def make(format_name: str, scheme: str = "blocks") -> Path:
        folder = tmp_path_factory.mktemp("export")
        tokens = torch.randint(3, 258, (4, 24), generator=torch.Generator().manual_seed(6))
        needs = {"qnn": {"target": Target(tokens, 32, 512, "v75", True)}}
        export(quantized(scheme), whole_teacher, format_name, folder, **needs.get(format_name, {}))
        return folder

    return make


@pytest.fixture(scope="session")
def asked() -> Text:
    """Two sequences of 24 tokens, of which one has 20, and three prompts of 16, continued by 12."""
    tokens = torch.randint(3, 258, (4, 24), generator=torch.Generator().manual_seed(5))
    return text(tokens, torch.tensor([24, 20, 24, 24]), 2, 3, 16, 12)


@pytest.fixture(scope="session")
def against(whole_teacher: Path, asked: Text) -> References:
    return references(quantized("blocks"), whole_teacher, asked)
