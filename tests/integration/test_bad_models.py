"""Models that a scheme or a method does not fit: refused in a line, or gone on with what fits."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from tests import families, tiny
from tests.integration.conftest import Stage, change_params, run_stage
from tests.integration.refusals import calibrated
from tests.others import other


def test_a_cache_that_the_model_does_not_have(refused: Stage, desk: Path) -> None:
    """Mamba, from the source to the calibration: without KV in the scheme it goes through."""
    change_params(desk, {"calibrate": {"coverage": 0.9}})  # a tiny one's small tensors are a tenth of it
    change_params(desk, {"distill": {"freeze": "none"}})  # it has neither v nor o
    calibrated(desk, families.save(desk / "mamba", "mamba"))
    paths = {"teacher": "own/teacher", "corpus": "own/corpus", "rtn": "made/rtn"}
    message = refused("calibrate", {"scheme": "W4A16KV4"}, **paths)
    assert message == (
        "calibrate: the scheme does not fit MambaForCausalLM:\n"
        "  scheme: MambaForCausalLM has no attention whose keys and values can be quantized; set kv_cache.bits to 0\n"
    )


def test_a_model_that_cannot_be_rotated_is_quantized_without(desk: Path) -> None:
    """Bloom, whose embeddings are normed before the first layer."""
    said = calibrated(desk, families.save(desk / "bloom", "bloom"))
    assert "calibrate: goes on without rotation: BloomForCausalLM does not allow its residual stream" in said
    facts = [json.loads((desk / f"own/{name}/manifest.json").read_text())["facts"] for name in ("ptq", "rtn")]
    assert [model_facts.get("rotation_seed") for model_facts in facts] == [None, None]
    assert facts[0]["fisher"]
    assert facts[0]["rotation"] == "none"
    assert "word_embeddings_layernorm" in facts[0]["rotation_reason"]
    change_params(desk, {"calibrate": {"rotation": "hadamard"}})
    done = run_stage(desk, "calibrate", teacher="own/teacher", corpus="own/corpus", out="made/ptq", rtn="made/rtn")
    assert done.returncode != 0
    assert done.stderr.startswith("calibrate: calibrate.rotation is hadamard, but BloomForCausalLM does not allow")
    assert done.stderr.endswith("take auto or none\n")
    assert not (desk / "made").exists()


def test_a_mixture_whose_experts_would_stay_in_float_is_refused_unless_less_will_do(desk: Path) -> None:
    model = other("mixtral")
    model.save_pretrained(desk / "mixtral")
    tiny.tokenizer().save_pretrained(desk / "mixtral")
    change_params(desk, {"calibrate": {"coverage": 0.05}})
    said = calibrated(desk, desk / "mixtral")
    assert "model.layers.*.mlp.experts.gate_up_proj: 59." in said
    for name in ("ptq", "rtn"):
        facts = json.loads((desk / f"own/{name}/manifest.json").read_text())["facts"]
        assert facts["coverage"] == pytest.approx(0.1, abs=0.01)
        assert facts["in_float"].keys() == {
            f"model.layers.*.mlp.{part}" for part in ("gate", "experts.gate_up_proj", "experts.down_proj")
        }
    change_params(desk, {"calibrate": {"coverage": 0.95}})
    done = run_stage(desk, "calibrate", teacher="own/teacher", corpus="own/corpus", out="made/ptq", rtn="made/rtn")
    assert done.returncode != 0
    assert "That is less than calibrate.coverage, 0.95" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (desk / "made").exists()


def test_a_model_whose_logits_are_no_plain_product_is_quantized_with_all_errors_alike(desk: Path) -> None:
    """Granite, which divides them."""
    shape = tiny.llama().config.to_dict()
    sizes = {key: shape[key] for key in shape if key.startswith("num_") or key.endswith(("_size", "_token_id"))}
    torch.manual_seed(0)
    GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).save_pretrained(desk / "granite")
    tiny.tokenizer().save_pretrained(desk / "granite")
    said = calibrated(desk, desk / "granite")
    assert "calibrate: goes on without the Fisher information, for which logits must be" in said
    assert not json.loads((desk / "own/ptq/manifest.json").read_text())["facts"]["fisher"]
