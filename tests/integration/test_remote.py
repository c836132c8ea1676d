"""A team's remote at the true command lines, against a real S3 server on loopback."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
import yaml
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.integration.conftest import ROOT, commit, environment, run, toy

KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}
STAGES = """
stages:
  teacher:
    cmd: echo teacher >> ran && mkdir data/teacher && cd data/teacher && echo ${seed} > weights && echo 2 > config
    params: [seed]
    outs: [data/teacher]
  distill:
    cmd: echo distill >> ran && mkdir data/student && cat data/teacher/weights params.yaml > data/student/weights
    params: [lr]
    deps: [data/teacher]
    outs: [data/student]
  evaluate:
    cmd: echo evaluate >> ran && wc -c data/student/weights > data/score
    deps: [data/student]
    outs: [data/score]
"""


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Not a line a request."""


class Server:
    """Moto's S3 on a port of its own; what it holds outlives a stop."""

    def __init__(self) -> None:
        self.port = 0
        self.start()
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        application = DomainDispatcherApplication(create_backend_app)
        self.http = make_server("127.0.0.1", self.port, application, threaded=True, request_handler=Quiet)
        self.port = self.http.port
        Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server, and an environment with its keys and no other account."""
    none = tmp_path_factory.mktemp("account") / "none"
    none.touch()
    alone = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**KEYS, **alone}.items():
            patch.setenv(name, str(value))
        server = Server()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def bucket(server: Server) -> Any:
    bucket = boto3.resource("s3", endpoint_url=server.address).Bucket("team")
    bucket.create()
    return bucket


@pytest.fixture(scope="module")
def origin(server: Server, bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare Git repository, beside it `first`, where everything was run, committed and pushed to both."""
    where = tmp_path_factory.mktemp("team")
    first = toy(where / "first", STAGES, {"seed": 1, "lr": 0.1})
    run(["dvc", "remote", "add", "-q", "-d", "store", "s3://team/permafrost"], first)
    run(["dvc", "remote", "modify", "store", "endpointurl", server.address], first)
    run(["dvc", "repro", "-q"], first)
    commit(first)
    run(["git", "clone", "-q", "--bare", "first", "origin"], where)
    assert share(first, "push").returncode == 0
    return where / "origin"


def clone(origin: Path, where: Path) -> Path:
    run(["git", "clone", "-q", str(origin), str(where)], where.parent)
    for key, value in (("user.email", "c@e.org"), ("user.name", "C")):
        run(["git", "config", key, value], where)
    return where


def share(where: Path, verb: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Pull or push by the project's own command."""
    command = [sys.executable, "-m", "pipeline.flow.remote", verb]
    env = {**environment(), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def content(where: Path) -> dict[str, bytes]:
    """Every file of the tree, and of DVC's cache, but for what DVC notes for itself."""
    files = {file.relative_to(where): file for file in where.rglob("*") if file.is_file()}
    kept = {name: file for name, file in files.items() if not {".git", "tmp", "ran"} & {*name.parts}}
    return {name.as_posix(): file.read_bytes() for name, file in kept.items()}


def outputs(where: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(where).items() if name.startswith("data/")}


def ran(where: Path) -> list[str]:
    return (where / "ran").read_text().split() if (where / "ran").exists() else []


def test_a_clone_pulls_everything_and_runs_nothing(origin: Path, tmp_path: Path) -> None:
    mine = clone(origin, tmp_path / "mine")
    run(["dvc", "pull"], mine)
    assert outputs(mine) == outputs(origin.parent / "first")
    assert len(outputs(mine)) == 5, "four files, and .gitignore"
    assert "up to date" in run(["dvc", "repro"], mine).stdout
    assert ran(mine) == []
    assert run(["git", "status", "--porcelain"], mine).stdout == ""


def test_a_colleagues_changed_knob_arrives_with_its_results(origin: Path, tmp_path: Path) -> None:
    mine = clone(origin, tmp_path / "mine")
    assert share(mine, "pull").returncode == 0
    theirs = shutil.copytree(mine, tmp_path / "theirs")
    (theirs / "params.yaml").write_text(yaml.safe_dump({"seed": 1, "lr": 0.2}))
    run(["dvc", "repro", "-q"], theirs)
    assert ran(theirs) == ["distill", "evaluate"]
    commit(theirs)
    run(["git", "push", "-q"], theirs)
    assert share(theirs, "push").returncode == 0
    assert outputs(mine) != outputs(theirs)
    run(["git", "pull", "-q"], mine)
    assert share(mine, "pull").returncode == 0
    assert outputs(mine) == outputs(theirs)
    assert "up to date" in run(["dvc", "repro"], mine).stdout
    assert ran(mine) == []


def test_a_missing_object_is_named_the_rest_comes_and_it_can_be_made_and_given_back(
    origin: Path, bucket: Any, tmp_path: Path
) -> None:
    lost = hashlib.md5(b"2\n").hexdigest()
    key = f"permafrost/files/md5/{lost[:2]}/{lost[2:]}"
    bucket.Object(key).delete()
    mine = clone(origin, tmp_path / "mine")
    done = share(mine, "pull")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("remote: store (s3://team/permafrost) lacks data/teacher/config, not in this cache either")
    assert {*outputs(mine)} == {"data/.gitignore", "data/score", "data/student/weights"}
    assert run(["git", "status", "--porcelain"], mine).stdout == ""
    run(["dvc", "repro"], mine)
    assert ran(mine) == ["teacher"]
    assert run(["git", "status", "--porcelain"], mine).stdout == "", "made anew, it has the hash in dvc.lock"
    assert share(mine, "push").returncode == 0
    assert bucket.Object(key).get()["Body"].read() == b"2\n"


def test_a_remote_that_is_down_is_one_line_and_costs_nothing(
    origin: Path, server: Server, bucket: Any, tmp_path: Path
) -> None:
    mine = clone(origin, tmp_path / "mine")
    assert share(mine, "pull").returncode == 0
    (mine / "params.yaml").write_text(yaml.safe_dump({"seed": 7, "lr": 0.7}))
    run(["dvc", "repro", "-q"], mine)
    before, stored = content(mine), {item.key for item in bucket.objects.all()}
    server.stop()
    try:
        for verb in ("pull", "push"):
            done = share(mine, verb)
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert line.startswith("remote: store (s3://team/permafrost) cannot be asked, and nothing was changed: ")
            assert f'Could not connect to the endpoint URL: "{server.address}/' in line
        assert content(mine) == before
    finally:
        server.start()
    assert share(mine, "push").returncode == 0
    assert content(mine) == before
    new = {item.key for item in bucket.objects.all()} - stored
    assert len(new) == 4, "weights of teacher and student, and their two folders; the score is the same"


def test_what_is_not_set_up_is_one_line(origin: Path, tmp_path: Path) -> None:
    mine = clone(origin, tmp_path / "mine")
    done = share(mine, "pull", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "remote: store (s3://team/permafrost) cannot be asked, and nothing was changed: Unable to locate credentials"
    ]
    run(["dvc", "remote", "remove", "store"], mine)
    done = share(mine, "push")
    assert done.stderr.splitlines() == [
        "remote: no remote is set; `dvc remote add -d NAME s3://BUCKET/FOLDER` sets one"
    ]
