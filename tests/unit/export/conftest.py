"""Exports of the tiny model, each made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pipeline.export.formats import export
from tests.unit.export.quantized import quantized

Exported = Callable[[str, str], tuple[Path, dict]]


@pytest.fixture(scope="module")
def exported(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder and the facts of a scheme's export in a format, made once."""

    @cache
    def make(format_name: str, scheme: str) -> tuple[Path, dict]:
        folder = tmp_path_factory.mktemp("export")
        return folder, export(quantized(scheme), teacher_folder, format_name, folder)

    return make
