"""Which runtimes open which formats, and what is said of one that is not installed."""

import pytest

from pipeline.export.formats import EXPORT_FORMATS
from pipeline.runtimes import table
from tests.unit.runtimes.conftest import absent


def test_every_format_is_opened_by_a_runtime_and_every_runtime_opens_formats_that_there_are():
    assert {name for name in EXPORT_FORMATS if table.runtimes_of(name)} == {*EXPORT_FORMATS}
    assert {name for runtime in table.RUNTIMES.values() for name in runtime.formats} == {*EXPORT_FORMATS}


def test_versions_are_those_of_the_runtimes_that_the_formats_need():
    assert table.versions(["dequantized"]).keys() == {"transformers"}
    there = {name for name in table.RUNTIMES if not absent(name)}
    formats = [name for name in EXPORT_FORMATS if there >= table.runtimes_of(name).keys()]
    assert table.versions(formats).keys() == there >= {*table.RUNTIMES} - {"qnn", "executorch"}


def test_each_that_is_not_installed_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch):
    for name, install in (("llama.cpp", "pip install one"), ("transformers", "pip install two")):
        absent = table.RUNTIMES[name]._replace(package="no-such-package", install=install)
        monkeypatch.setitem(table.RUNTIMES, name, absent)
    with pytest.raises(ValueError, match=r"llama.cpp is not installed") as caught:
        table.versions(["gguf"])
    assert "pip install one" in str(caught.value)
    assert "transformers" not in str(caught.value)
    with pytest.raises(ValueError, match=r"(?s)transformers is not installed.*\n.*llama.cpp is not installed"):
        table.versions(["compressed-tensors", "gguf"])
