"""One script a stage of dvc.yaml: read params, load artifacts, call the library, save the artifact."""

import os
import sys

# Before anything imports them: the libraries' own bars, telemetry and fork warnings are no part of a stage's output.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "30")  # of the bars that TQDM_DISABLE does not reach
