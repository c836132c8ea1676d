"""`python -m pipeline.chat FOLDER`: talk to an exported model in the runtime of its format."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.chat import engines, terminal
from pipeline.chat.conversation import Conversation
from pipeline.chat.engine import Sampling


def main() -> None:
    """Open the model and talk. A ValueError is the user's, and shown as one line."""
    args = _options(sys.argv[1:])
    try:
        sampling = _sampling(args)
        engine = engines.open_folder(args.folder, args.threads, args.context)
        terminal.run(Conversation(engine, sampling, args.system), str(args.folder))
    except ValueError as error:
        sys.exit(f"chat: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read the answers has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.exit(f"chat: {error.strerror or error}: {error.filename or ''}".rstrip(": "))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.chat",
        description="Talk to an exported model, in llama.cpp (gguf) or onnxruntime-genai (onnx).",
        epilog="Lines come from the terminal, or from any other standard input.",
    )
    usual = Sampling()
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the export: data/int4/student/gguf, say")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system's message; none: the template's own")
    parser.add_argument("--temperature", type=float, default=usual.temperature, help="0: the most likely token (0)")
    parser.add_argument("--top-p", type=float, default=usual.top_p, help="share of probability to draw from (1)")
    parser.add_argument(
        "--max-tokens", type=int, default=usual.max_tokens, metavar="N", help=f"of an answer ({usual.max_tokens})"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="to compute with (the runtime's choice)")
    parser.add_argument(
        "--context", type=int, default=0, metavar="N", help="tokens of a conversation (the model's own, 8192 at most)"
    )
    return parser.parse_args(arguments)


def _sampling(args: argparse.Namespace) -> Sampling:
    """Raises: ValueError: some numbers are out of their range; all of them are named."""
    problems = [
        f"{name} must be {must}, got {value}"
        for name, value, fits, must in (
            ("--temperature", args.temperature, 0 <= args.temperature < float("inf"), "0 or more"),
            ("--top-p", args.top_p, 0 < args.top_p <= 1, "over 0 and at most 1"),
            ("--max-tokens", args.max_tokens, args.max_tokens >= 1, "at least 1"),
            ("--threads", args.threads, args.threads >= 0, "at least 1, or 0 for the runtime's choice"),
            ("--context", args.context, args.context >= 0, "at least 1, or 0 for the model's own"),
        )
        if not fits
    ]
    if problems:
        raise ValueError("\n  ".join(problems))
    return Sampling(args.temperature, args.top_p, args.max_tokens)


if __name__ == "__main__":
    main()
