"""The page: one self-contained HTML file, the same bytes for the same artifacts.

Times and memory differ from run to run, so they are no part of it: the page shows them from usage.js, a file beside it
that no artifact holds, where there is one.
"""

import json
from pathlib import Path
from typing import Any

import jinja2

from pipeline.artifacts.contract import MANIFEST, sha256

TEMPLATES = Path(__file__).parent


def render(template: Path = TEMPLATES / "page.html", **content: Any) -> str:
    """Fill a template, page.html or another's, which may include style.css; it says itself what it asks for.

    Raises:
        jinja2.UndefinedError: something that the template asks for is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**content)


def lineage(folders: dict[str, Path]) -> list[dict[str, str]]:
    """Kind, stage's folder, manifest hash and file hashes of each artifact, in the order given."""
    artifacts = []
    for name, folder in folders.items():
        if folder.suffix == ".json":
            artifacts.append({"name": name, "sha256": sha256(folder), "facts": ""})
            continue
        manifest = json.loads((folder / MANIFEST).read_text())
        facts = {key: value for key, value in manifest["facts"].items() if not isinstance(value, list)}
        artifacts.append({"name": name, "sha256": sha256(folder / MANIFEST), "facts": _short(facts)})
    return artifacts


def _short(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}" for key, value in facts.items()
    )
