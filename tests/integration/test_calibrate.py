"""The baseline, round to nearest without rotation, is the same whatever the method beside it."""

from pathlib import Path

from tests.integration.conftest import change_params, run_stage


def test_the_baseline_does_not_depend_on_the_method(desk: Path) -> None:
    """Also where the method is the baseline's own, which is not computed twice."""
    for name, method, rotation in (("a", "mse", "none"), ("b", "rtn", "none"), ("c", "rtn", "hadamard")):
        change_params(desk, {"calibrate": {"method": method, "rotation": rotation}})
        folders = {"out": f"made/{name}", "rtn": f"made/{name}_rtn"}
        done = run_stage(desk, "calibrate", teacher="data/teacher", corpus="data/corpus", **folders)
        assert done.returncode == 0, done.stderr
    baselines = [{file.name: file.read_bytes() for file in (desk / f"made/{name}_rtn").iterdir()} for name in "abc"]
    assert baselines[0] == baselines[1] == baselines[2]
    assert "latent.safetensors" not in baselines[0]
    codes = [(desk / f"made/{name}/codes.safetensors").read_bytes() for name in "abc"]
    assert [own == baselines[0]["codes.safetensors"] for own in codes] == [False, True, False]
    assert (desk / "made/b/latent.safetensors").exists()
