"""What Prefect's own server, which a flow starts, puts on the screen."""

import os
import subprocess
import sys

import pytest

from pipeline.flow import __main__ as command


def test_the_server_is_silent_on_a_transaction_cut_off_and_loud_on_its_own_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_LOGGING_ROOT_LEVEL"}
    monkeypatch.setattr(command, "get_client", lambda **_: None)
    monkeypatch.setattr(command.os, "environ", inherited)
    command.start_server()

    log = """
import logging
import prefect.main
for name in ("sqlalchemy.pool.impl.AsyncAdaptedQueuePool", "prefect.server.api", "uvicorn.error"):
    logging.getLogger(name).error(f"said by {name}")
"""
    done = subprocess.run([sys.executable, "-c", log], env=inherited, capture_output=True, text=True, check=True)
    assert "said by prefect.server.api" in done.stderr
    assert "said by uvicorn.error" in done.stderr
    assert "sqlalchemy" not in done.stderr
