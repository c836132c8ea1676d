"""Packages that one format alone needs: extras of this project, none a default dependency."""

from importlib.metadata import PackageNotFoundError, version


def install(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install --constraint constraints.txt --editable '.[{extra}]'"


def installed(package: str, told: str, command: str) -> str:
    """The version of a package.

    Args:
        told: what is said where it is not installed. command: that brings it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise ValueError(f"{told}: `{command}`") from None
