"""The table of the proofs, and their numbers in the summary."""

from pathlib import Path

import pytest

from pipeline.artifacts import contract
from pipeline.report import proofs
from pipeline.runtimes.table import RUNTIMES

DENSE = {
    "weight_bytes": 103.3e6, "tensors": 273.0, "positions.transformers": 1020.0, "kl_student.transformers": 0.00265,
    "top1_student.transformers": 0.9559, "kl_teacher.transformers": 0.131, "top1_teacher.transformers": 0.796,
    "logit_difference.transformers": 2e-6, "same_tokens.transformers": 64.0, "same_tokens_least.transformers": 64.0,
    "texts.transformers": 203.0,
}  # fmt: skip
PARTS = {
    **{name.replace("transformers", "llama.cpp"): value for name, value in DENSE.items() if "logit_" not in name},
    "log_probability_difference.llama.cpp": 1.14, "weight_bytes": 95e3,
}  # fmt: skip
OWN = {
    "student.kl_teacher": 0.1326, "student.top1_teacher": 0.802, "in_float.kl_student": 0.00265,
    "in_float.top1_student": 0.9559, "in_float.kl_teacher": 0.131, "in_float.top1_teacher": 0.796,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with contract.writing(tmp_path / "proof", contract.PROOF) as draft:
        contract.write_scores(draft.path / "student-dequantized.json", DENSE)
        contract.write_scores(draft.path / "student-gguf.json", PARTS)
        contract.write_scores(draft.path / "student.json", OWN)
        draft.facts = {
            "runtimes": {"transformers": "5.0", "llama.cpp": "1.2"},
            "variants": ["student"],
            "formats": ["dequantized", "gguf"],
        }
    return tmp_path / "proof"


def test_a_row_a_runtime_and_one_of_the_student_itself(folder: Path):
    header, own, dense, parts = proofs.rows(proofs.read(folder))
    assert len(header) == len(own) == len(dense) == len(parts)
    assert own[:3] == ["student", "-", "as trained"]
    assert own[5] == "0.133"
    assert dense == [
        "student", "dequantized", "transformers", "0.0027", "95.6", "0.131", "2e-06",
        "64 (least 64)", "103",
    ]  # fmt: skip
    assert parts[2] == "llama.cpp"
    assert (parts[3], parts[5], parts[6], parts[-1]) == ("≥ 0.0027", "≥ 0.131", "1.14 nats", "0.095")
    note = proofs.note(proofs.read(folder))
    assert "1020 positions" in note
    assert note.endswith("Versions: llama.cpp 1.2, transformers 5.0.")


def test_a_runtime_that_was_held_to_fewer_positions_is_named_with_them(folder: Path):
    made = proofs.read(folder)
    short = {name.replace("llama.cpp", "qnn"): value for name, value in PARTS.items()} | {"positions.qnn": 127.0}
    note = proofs.note(proofs.Proofs(made.versions, {("student", "qnn"): short, **made.exports}, made.students))
    assert "on 1020 positions of held-out text (qnn: 127). With" in note
    assert "held-out text. With" in proofs.note(made)


def test_a_runtime_is_named_in_the_note_where_it_has_a_row(folder: Path):
    assert {*proofs.ON_GRIDS} == {name for name, runtime in RUNTIMES.items() if runtime.on_grids}
    made = proofs.read(folder)
    both = proofs.note(made)
    assert "to the variant with inputs in float. The same" in both
    assert "≥ (llama.cpp): all but" in both
    assert not [name for name in RUNTIMES if name not in made.versions and name in both]
    onnx = {name.replace("transformers", "onnxruntime"): value for name, value in DENSE.items()}
    alone = proofs.note(proofs.Proofs({"onnxruntime": "1.3"}, {("student", "onnx"): onnx}, made.students))
    assert "with inputs in float, and in those with the grids (onnxruntime) to the variant as it was made." in alone
    assert not [name for name in RUNTIMES if name != "onnxruntime" and name in alone]
    assert "≥" not in alone


def test_the_note_is_of_the_student_where_other_variants_are_proven_too(folder: Path):
    made = proofs.read(folder)
    others = {"rtn": OWN | {"in_float.kl_student": 0.5}, **made.students}
    exports = {("rtn", "gguf"): PARTS, **made.exports}
    note = proofs.note(proofs.Proofs(made.versions, exports, others))
    assert "the student itself is at a KL of 0.0027" in note
    alone = proofs.note(proofs.Proofs(made.versions, exports, {"rtn": others["rtn"]}))
    assert "the rtn itself is at a KL of 0.5" in alone


def test_the_summary_has_each_runtimes_agreement(folder: Path):
    assert proofs.of_proofs(proofs.read(folder)) == {
        "proof.dequantized.transformers.top1_student.student": 0.9559,
        "proof.dequantized.transformers.kl_student.student": 0.00265,
        "proof.gguf.llama.cpp.top1_student.student": 0.9559,
        "proof.gguf.llama.cpp.kl_student.student": 0.00265,
    }


def test_what_was_edited_is_refused(folder: Path):
    (folder / "student.json").write_text("{}")
    with pytest.raises(ValueError, match=r"(?s)is not as it was written.*stage: prove.*student.json"):
        proofs.read(folder)
