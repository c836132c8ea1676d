"""The tiny model exported, as for the tests of runtimes in the project's own environment."""

from tests.unit.runtimes.conftest import asked, exported, whole_teacher

__all__ = ["asked", "exported", "whole_teacher"]
