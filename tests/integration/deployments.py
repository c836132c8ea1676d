"""A Prefect server, a work pool and a deployment of the project's flow, on loopback."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from tests.integration.stopping import heed_signals
from tests.integration.test_flow import STAGES, environment

PREFECT = [sys.executable, "-m", "prefect"]


QUIET = ["-c", "user.name=test", "-c", "user.email=test@example.org"]


ASLEEP = """python -c "import time; print('as' + 'leep'); time.sleep(300)" """  # DVC prints this, too


@dataclass
class Deployment:
    """A project with its server, and what was started of it."""

    project: Path
    port: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> str:
        return str(self.project / "runs/prefect")

    def environment(self, where: Path) -> dict[str, str]:
        """What the README's exports make of a shell in a folder; nothing of this tree can be imported by it."""
        exported = {
            "PWD": str(where),
            "PREFECT_HOME": self.home,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        return {**{name: value for name, value in environment().items() if name != "PYTHONPATH"}, **exported}

    def start(self, *arguments: str, where: Path) -> Path:
        """Start a command of Prefect's that stays; its log."""
        log = self.project / f"runs/log{len(self.started)}"
        with log.open("w") as output:
            self.started.append(
                subprocess.Popen(
                    [*PREFECT, *arguments],
                    cwd=where,
                    env=self.environment(where),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=heed_signals,
                )
            )
        return log

    def run(self, *arguments: str, where: Path) -> None:
        """Run a command of Prefect's that ends."""
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=where, env=self.environment(where), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def api(self, path: str, content: dict[str, Any] | None = None, method: str = "") -> Any:
        """Ask the server: with content it is a POST, unless another method is named.

        It answers 503 while another of its writers holds SQLite's lock, and Prefect's own client asks again then, too.
        """
        request = Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            data=None if content is None else json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
            method=method or ("GET" if content is None else "POST"),
        )
        for pause in (0.5, 1, 2, 4, None):
            try:
                with urlopen(request, timeout=30) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except HTTPError as error:
                if error.code != 503 or pause is None:
                    raise
                time.sleep(pause)
        return None

    def trigger(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment by the API; its id."""
        deployment = self.api(f"deployments/name/permafrost/{name}")
        return self.api(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> str:
        return self.api(f"flow_runs/{run}")["state"]["type"]

    def ended(self, run: str, log: Path) -> str:
        """How a run ends."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        wait(lambda: self.state(run) in final, log)
        return self.state(run)

    def left(self) -> list[psutil.Process]:
        """What runs in the environment that everything here has inherited."""
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == self.home:
                    processes.append(process)
        return processes

    def of_stages(self) -> list[list[str]]:
        """What is left of runs: all but the server and the workers themselves."""
        own = [process.pid for process in self.started]
        commands = []
        for process in self.left():
            with suppress(psutil.Error):
                if process.pid not in own:
                    commands.append(process.cmdline())
        return commands


def wait(done: Callable[[], bool], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def sleeping(deployed: Deployment, prefix: str = "") -> None:
    """Let the exports of the project fall asleep until there is a file; `prefix` makes their command another one."""
    (deployed.project / "runs/go").unlink(missing_ok=True)
    asleep = f"test -e runs/go || {{ {prefix} {ASLEEP}; }}; cp model"
    (deployed.project / "dvc.yaml").write_text(STAGES.replace("cp model", asleep))
