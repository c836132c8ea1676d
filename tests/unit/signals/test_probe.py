from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.quant.model import QuantizedModel
from pipeline.signals import probe
from pipeline.signals.labels import Text
from tests.unit.signals.conftest import WEIGHTS, load_float, run, variant


def test_any_number_of_variants_is_probed_and_each_as_if_it_were_alone(variants, signals, text: Text):
    alone = run({"rtn": variants["rtn"]}, text, sensitivity_sequences=2).table
    both = signals.table[signals.table.variant != "ptq"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)
    none = run({}, text, sensitivity_sequences=2, widths=[4])
    pd.testing.assert_frame_equal(none.table, both[both.variant == "float"])
    assert none.curves == []


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("sequences", [0, 5])
def test_it_advances_as_often_as_was_said(variants, text: Text, count: int, sequences: int):
    calls: list[int] = []
    options = probe.Options(WEIGHTS, sequences, [4])
    chosen = {name: variant(quantized) for name, quantized in list(variants.items())[:count]}
    probe.probe(load_float(), load_float, chosen, text, options, calls.append)
    assert sum(calls) == probe.steps(load_float(), chosen, text, options)


def test_a_statistic_that_is_not_finite_is_refused(text: Text):
    def broken():
        model = load_float()
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
        return model

    with pytest.raises(
        ValueError, match=r"\d+ statistics are not finite, the first of them .* in float; are the models"
    ):
        probe.probe(broken(), broken, {}, text, probe.Options(WEIGHTS), lambda _: None)


def saved(folder: Path, calibrated: QuantizedModel, method: str) -> Path:
    calibrated.save(folder, {"method": method}, {})
    return folder


def test_variants_are_named_folders(tmp_path: Path, calibrated: QuantizedModel):
    folders = {method: saved(tmp_path / method, calibrated, method) for method in ("gptq", "awq+gptq")}
    variants = probe.variants([f"ptq={folders['gptq']}", f"other={folders['awq+gptq']}"])
    assert list(variants) == ["ptq", "other"]
    assert (variants["ptq"].rescaled, variants["other"].rescaled) == (False, True)
    assert variants["ptq"].load().codes.keys() == calibrated.codes.keys()


@pytest.mark.parametrize(
    "entries", [["data/rtn"], ["=data/rtn"], ["rtn="], ["float=data/rtn"], ["a=data/rtn", "a=data/ptq"]]
)
def test_entries_that_are_no_variants_are_refused(entries: list[str]):
    with pytest.raises(ValueError, match=r"expected variants as name=folder, .* got \["):
        probe.variants(entries)


def test_a_folder_that_holds_no_quantized_model_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(ValueError, match="is no quantized artifact"):
        probe.variants([f"ptq={tmp_path}"])
