"""The true dvc.yaml from end to end: artifacts, no-op, partial re-run, interruption, same bytes."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.evaluation.provenance import READ
from tests.integration.conftest import change_params, checkout, environment, run

VARIANTS = ("teacher", "rtn", "ptq", "student")


def ran(output: str) -> list[str]:
    """The stages that a `dvc` command says it ran."""
    return re.findall(r"Running stage '([^']+)'", output)


def test_every_artifact_is_made_and_every_number_is_finite(pipeline: Path) -> None:
    folders = ("teacher", "corpus", "calibration", "rtn", "signals", "student", "signals_student")
    for name in (*folders, *(f"int4/{variant}/compressed-tensors" for variant in VARIANTS[1:])):
        assert (pipeline / "data" / name / "manifest.json").is_file(), name
    assert (pipeline / "data/report/sizes.svg").read_text().startswith("<svg")
    summary = json.loads((pipeline / "data/report/summary.json").read_text())
    expected = {f"{metric}.{variant}" for metric in ("perplexity", "accuracy") for variant in VARIANTS}
    expected |= {f"kl.{variant}" for variant in VARIANTS[1:]}
    expected |= {f"{name}.stderr" for name in expected}
    expected |= {"gap.rtn", "gap.rtn.p", "bits_per_weight.student"}
    assert expected <= summary.keys()
    shares = {f"recovered.{variant}{end}" for variant in ("ptq", "student") for end in ("", ".low", ".high")}
    significant = summary["gap.rtn"] > 0 and summary["gap.rtn.p"] < 0.05
    assert shares & summary.keys() == (shares if significant else set())
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in summary.values())


def test_distillation_brings_the_student_nearer_to_the_teacher(pipeline: Path) -> None:
    summary = json.loads((pipeline / "data/report/summary.json").read_text())
    assert summary["kl.student"] < summary["kl.rtn"]


def test_exported_student_loads_in_plain_transformers_and_keeps_frozen_codes(pipeline: Path) -> None:
    AutoModelForCausalLM.from_pretrained(pipeline / "data/int4/student/compressed-tensors")
    before, after = (load_file(pipeline / f"data/{name}/codes.safetensors") for name in ("calibration", "student"))
    for name, codes in after.items():
        frozen = name.endswith(("o_proj", "v_proj", "embed_tokens", "lm_head"))
        assert bool((codes == before[name]).all()) == frozen, name


def test_report_names_no_outside_resource_and_no_path_of_the_machine(pipeline: Path) -> None:
    page = (pipeline / "data/report/index.html").read_text()
    sources = re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page)
    assert {s for s in sources if not s.startswith("#")} == {"usage.js"}
    assert "no sweep of this model" in (pipeline / "data/report/sweeps.html").read_text()
    usage = (pipeline / "data/report/usage.js").read_text()
    assert '"stage": "distill"' in usage
    for file in pipeline.glob("data/**/*.json"):
        assert str(pipeline) not in file.read_text(), file


def test_report_has_a_verdict_of_each_variant_on_each_task(pipeline: Path) -> None:
    """By accuracy, and where answers are chosen by the probability of the right one as well."""
    page = (pipeline / "data/report/index.html").read_text()
    section = page[page.index("Is it as good? Within 2 %") : page.index("How to read it")]
    verdicts = re.findall(r'<b class="[a-z-]+">(within|beyond|not shown|no signal)</b>', section)
    assert len(verdicts) == len(VARIANTS[1:]) * 5
    assert len(re.findall(r"\d gained, \d lost", section)) == len(VARIANTS[1:]) * 3


def test_scores_say_what_they_were_read_from_and_a_mix_is_refused(pipeline: Path, tmp_path: Path) -> None:
    """Scores of another text, whose hashes DVC was made to believe."""
    read = {v: json.loads((pipeline / f"data/scores/{v}.json").read_text())["read"] for v in VARIANTS}
    assert len({json.dumps(hashes) for hashes in read.values()}) == 1
    names = {"teacher", "text", "windows", "held_out", "references", "benchmark.piqa", "items.piqa"}
    assert names <= read["rtn"].keys()
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy, symlinks=True)
    file = copy / "data/scores/rtn.json"
    scores = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps({**scores, "read": {**scores["read"], "text": "0" * 64}}))
    run(["dvc", "commit", "--force", "evaluate@rtn"], copy)
    done = run(["dvc", "repro", "report"], copy, check=False)
    assert done.returncode
    assert f"text is {read['teacher']['text']} for teacher, {'0' * 64} for rtn" in done.stdout + done.stderr


def test_another_python_makes_stale_what_reads_its_help_topics_and_nothing_else(pipeline: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy, symlinks=True)
    pins = copy / "versions.yaml"
    pins.write_text(re.sub('python: ".*"', 'python: "3.9.1"', pins.read_text()))
    status = json.loads(run(["dvc", "status", "--json"], copy).stdout)
    assert {stage for stage, reasons in status.items() if "python" in json.dumps(reasons)} == {
        "references",
        *(f"evaluate@{variant}" for variant in VARIANTS),
    }
    done = run(["dvc", "repro", "--single-item", "evaluate@rtn"], copy, check=False)
    assert "python -m pipeline.artifacts.environment" in done.stdout + done.stderr


def test_repro_with_nothing_changed_runs_nothing(pipeline: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pipeline, tmp_path / "copy", symlinks=True)
    done = run(["dvc", "repro"], copy)
    assert ran(done.stdout) == []
    assert "up to date" in done.stdout


def test_a_changed_freeze_policy_reruns_the_student_alone(pipeline: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy, symlinks=True)
    done = run(["dvc", "exp", "run", "-S", "distill.freeze=none"], copy)
    stages = ran(done.stdout)
    assert sorted(stages) == ["distill", "evaluate@student", "export@student", "inspect", "prove", "report"]
    assert (stages[0], stages[-1]) == ("distill", "report")
    shown = json.loads(run(["dvc", "metrics", "diff", "--json"], copy).stdout)
    changed = shown["data/report/summary.json"]
    assert "kl.student" in changed
    assert not any(key.split(".")[1] in ("teacher", "rtn", "ptq") for key in changed if key.startswith("perplexity"))
    assert math.isfinite(changed["kl.student"]["diff"])
    experiments = run(["dvc", "exp", "show", "--csv"], copy).stdout
    assert "kl.student" in experiments
    assert "distill.freeze" in experiments
    plots = json.loads(run(["dvc", "plots", "diff", "--json"], copy).stdout)
    assert plots.get("errors", []) == []
    titles = [title for entry in yaml.safe_load((copy / "dvc.yaml").read_text())["plots"] for title in entry]
    assert {*plots["data"]} == {*titles}
    for title in titles:
        revisions = {rev for drawn in plots["data"][title] for rev in drawn["revisions"]}
        assert "workspace" in revisions, title
    (bars,) = plots["data"]["Accuracy by task"]
    drawn = {(row["rev"], row["task"]) for row in bars["content"]["data"]["values"]}
    assert {(rev, f"piqa, {variant}") for rev in ("HEAD", "workspace") for variant in VARIANTS} <= drawn


def test_a_queued_experiment_runs_beside_the_tree_and_is_shown_with_its_knob(pipeline: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy, symlinks=True)
    run(["dvc", "exp", "run", "--queue", "--name", "queued", "-S", "distill.seed=1"], copy)
    run(["dvc", "queue", "start"], copy)
    deadline = time.monotonic() + 300
    while re.search("Queued|Running", status := run(["dvc", "queue", "status"], copy).stdout):
        assert time.monotonic() < deadline, status
        time.sleep(1)
    assert re.search(r"queued\s.*Success", status), status
    table = run(["dvc", "exp", "show", "--csv"], copy).stdout.splitlines()
    shown = {row["Experiment"] or row["rev"]: row for row in csv.DictReader(table)}
    assert (shown["queued"]["distill.seed"], shown["workspace"]["distill.seed"]) == ("1", "0")
    assert shown["queued"]["kl.student"] != shown["workspace"]["kl.student"]
    assert shown["queued"]["kl.rtn"] == shown["workspace"]["kl.rtn"]
    knobs = json.loads(run(["dvc", "params", "diff", "--json", "HEAD", "queued"], copy).stdout)
    assert knobs == {"params.yaml": {"distill.seed": {"old": 0, "new": 1, "diff": 1}}}


MIXED = {
    "weights": {"bits": 4, "symmetric": True, "group": 16},
    "activations": {"bits": 8, "symmetric": False, "dynamic": False, "observer": "percentile", "percentile": 99.9},
    "kv_cache": {"bits": 4, "symmetric": True, "group": 0},
    "embedding": {"bits": 6, "symmetric": True, "group": 16},
    "head": {"bits": 5, "symmetric": True, "group": 0},
    "overrides": [
        {"match": "model.layers.0.*", "weights": {"bits": 8}},
        {"match": "down", "activations": {"symmetric": True, "dynamic": True}},
    ],
}


def test_a_long_scheme_with_overrides_goes_through_to_the_scores(pipeline: Path, tmp_path: Path) -> None:
    """AWQ then GPTQ, groups, mixed bits, a quantized head, observed and dynamic inputs, an INT4 KV cache."""
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy, symlinks=True)
    change_params(
        copy,
        {"scheme": MIXED, "calibrate": {"method": "awq+gptq"}, "export": {"formats": ["compressed-tensors"]}},
    )
    targets = ["calibrate", "export@ptq", "evaluate@ptq"]
    assert ran(run(["dvc", "repro", "--single-item", *targets], copy).stdout) == targets
    kept = json.loads((copy / "data/calibration/scheme.json").read_text())
    bits = {name: (fields["bits"], fields["group"]) for name, fields in kept["weights"].items()}
    assert (bits.pop("model.embed_tokens"), bits.pop("lm_head")) == ((6, 16), (5, 0))
    assert {name: grid for name, grid in bits.items() if "layers.0." in name} == dict.fromkeys(
        (name for name in bits if "layers.0." in name), (8, 16)
    )
    assert sorted(set(bits.values())) == [(4, 16), (8, 16)]
    assert {name.rsplit(".", 1)[-1] for name, fields in kept["inputs"].items() if fields["dynamic"]} == {"down_proj"}
    assert kept["kv_cache"] == {**MIXED["kv_cache"], "keys": "token", "block": 32}
    skipped = (copy / "data/calibration/skipped.csv").read_text().split()
    assert skipped[1:] == [word for i in (0, 1) for word in (f"model.layers.{i}.self_attn.v_proj", "->", "o_proj")]
    with (copy / "data/calibration/errors.csv").open() as errors:
        assert all(float(row["output_sqnr"]) >= float(row["rtn_output_sqnr"]) for row in csv.DictReader(errors))
    config = json.loads((copy / "data/int4/ptq/compressed-tensors/config.json").read_text())
    assert not config["tie_word_embeddings"]
    scores, before = (json.loads((folder / "data/scores/ptq.json").read_text()) for folder in (copy, pipeline))
    assert all(math.isfinite(value) for name, value in scores.items() if name != READ)
    assert scores["kl"] != before["kl"]
    assert 0.5 < scores["top1"] <= 1
    linears, head, rows = 2 * 9 * 32 * 32, 259 * 32, 259
    expected = (6 + 1) * linears  # 6 bits on average, 16 / 16 of them for scales
    expected += 5 * head + 16 * rows + 6 * head + 2 * 16 * rows
    assert scores["bits_per_quantized_weight"] == pytest.approx(expected / (linears + 2 * head))


def test_killed_and_run_again_ends_in_the_same_bytes(pipeline: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """A second checkout, whose run is killed in synthesize and again in distill, has the first one's dvc.lock."""
    second = checkout(tmp_path / "second", tiny_teacher)
    kill_when(second, "runs/scratch/synthesize/*/*.safetensors")
    assert not (second / "data/corpus").exists()
    kill_when(second, "runs/scratch/distill/*/*.safetensors")
    assert not (second / "data/student").exists()
    done = run(["dvc", "repro"], second)
    assert "going on after step" in done.stdout
    assert ran(done.stdout)[0] == "distill"
    ours, theirs = (yaml.safe_load((folder / "dvc.lock").read_text()) for folder in (second, pipeline))
    assert outs(ours) == outs(theirs)


def outs(lock: dict) -> dict[str, str]:
    """The hash of each output in a dvc.lock."""
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def kill_when(where: Path, pattern: str) -> None:
    """Start `dvc repro` and SIGKILL it with all its children as soon as a file matches."""
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=where,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not list(where.glob(pattern)):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"dvc repro ended with {process.returncode} before {pattern} appeared")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
