"""The runs of the pipeline under Prefect: `repro`, the same as `dvc repro`, and `sweep`, many experiments.

What is up to date, and what depends on what, stays DVC's to know; the rest of the project does not need this package.
Prefect reads its settings when it is imported, so they stand here; whatever the caller has set wins.
"""

import os
from pathlib import Path

os.environ.setdefault("PREFECT_HOME", str(Path("runs/prefect").absolute()))
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
os.environ.setdefault("PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS", "10")
os.environ.setdefault("DO_NOT_TRACK", "1")
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
