"""`python -m pipeline.publish FOLDER owner/name`: the card of an exported folder, and its way to the hub."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts import contract


def main() -> None:
    """Show what would go up, or upload it. A ValueError is the user's, and shown as one line."""
    args = _options(sys.argv[1:])
    try:
        _publish(args)
    except ValueError as error:
        sys.exit(f"publish: {error}")
    except OSError as error:
        sys.exit(f"publish: {error.strerror or error}: {error.filename or ''}".rstrip(": "))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.publish",
        description="Show the card of an exported folder and what would be uploaded; with --upload, upload it.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the export: data/int4/student/gguf, say")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository on the Hugging Face hub")
    parser.add_argument("--license", default="", metavar="ID", help="the float model's, by the hub's name: apache-2.0")
    parser.add_argument(
        "--base-model", default="", metavar="OWNER/NAME", help="the float model on the hub (the teacher's repository)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--preview", type=Path, metavar="DIR", help="write the card there, instead of printing it")
    where.add_argument("--upload", action="store_true", help="create the repository, and upload")
    parser.add_argument("--public", action="store_true", help="a repository that is made is for all to see (private)")
    return parser.parse_args(arguments)


def _publish(args: argparse.Namespace) -> None:
    from pipeline.publish import card, hub, origin  # what they import takes seconds, and --help does not need it

    hub.check_name(args.repo)
    if args.base_model:
        hub.check_name(args.base_model)
    facts = contract.reading(args.folder, contract.INT4)
    libraries = contract.read_json(args.folder / contract.MANIFEST)["libraries"]
    told = card.Told(args.license, args.base_model)
    subject = card.Subject(args.repo, facts, libraries, origin.of(args.folder), told)
    text = card.render(subject)
    _show(hub.files(args.folder, text), args.folder, args.repo)
    for missing in _missing(args.license, card.base_model(subject)):
        print(missing)
    if args.upload:
        print(f"uploaded: {hub.upload(args.folder, args.repo, text, args.public)}")
        return
    if args.preview:
        args.preview.mkdir(parents=True, exist_ok=True)
        contract.write_text(args.preview / card.NAME, text)
        print(f"the card: {args.preview / card.NAME}")
    else:
        print(f"the card:\n\n{text}")
    print("nothing was uploaded; --upload does that")


def _show(sizes: dict[str, int], folder: Path, repo: str) -> None:
    print(f"{folder} -> {repo}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    width = max(map(len, sizes))
    for name, size in sizes.items():
        print(f"  {name:{width}}  {size:>14,}")


def _missing(license: str, base: str) -> list[str]:
    """What the card lacks, and how it is told."""
    lines = [] if license else ["the license of the float model is not known: --license apache-2.0, say"]
    return lines + ([] if base else ["its name on the hub is not known: --base-model owner/name"])


if __name__ == "__main__":
    main()
