"""The card, read as the hub reads it: YAML by huggingface_hub's own reader, and Markdown tables."""

import dataclasses
import re

import pytest
from huggingface_hub import ModelCard

from pipeline.export.formats import EXPORT_FORMATS
from pipeline.knobs.scheme import from_short
from pipeline.publish import card
from pipeline.publish.card import Subject, Told
from pipeline.publish.origin import Origin, Step
from pipeline.publish.runs import FORMATS

FACTS = {"format": "gguf", "weight_bytes": 121_807_744, "bits_per_weight": 7.244, "in_float": {}}
SCORES = {
    "teacher": {"perplexity": 13.443, "kl": 0.0, "top1": 1.0, "accuracy": 0.65625},
    "student": {"perplexity": 14.811, "kl": 0.12868, "top1": 0.79914, "accuracy": 0.64583},
}
ERRORS = {"perplexity.stderr": 0.8153, "kl.stderr": 0.0073, "top1.stderr": 0.00603, "accuracy.stderr": 0.0239}


def origin(**changed: object) -> Origin:
    step = Step(
        "distill", "data/student", "ab" * 16, "cd" * 32, {"distill.steps": 44, "seed": 0, "distill.note": ""},
        {"torch": "2.13.0"}, {"processor": "AMD EPYC", "devices": ["cpu"]},
    )  # fmt: skip
    made = Origin(
        "student", [step], {"source": "hub", "repo": "owner/float"}, from_short("W4A16E8H6"),
        {name: values | ERRORS for name, values in SCORES.items()}, "data/int4/student/compressed-tensors",
    )  # fmt: skip
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def subject(made: Origin, told: Told | None = None) -> Subject:
    return Subject("me/small", FACTS, {"torch": "2.13.0"}, made, told or Told())


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_header_has_what_is_known_and_the_hubs_reader_takes_it():
    data = ModelCard(card.render(subject(origin(), Told(license="apache-2.0")))).data.to_dict()
    assert data == {
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "base_model": "owner/float",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "tags": ["quantized", "permafrost", "llama.cpp"],
    }


def test_what_is_not_known_is_left_out_of_the_header_and_told_in_the_text():
    text = card.render(subject(origin(teacher={"source": "pypi"})))
    data = ModelCard(text).data.to_dict()
    assert {"license", "base_model", "base_model_relation"} & data.keys() == set()
    assert "not recorded here" in section(text, "License")


def test_what_the_publisher_says_of_the_float_model_counts():
    data = ModelCard(card.render(subject(origin(), Told(base_model="else/where")))).data.to_dict()
    assert data["base_model"] == "else/where"


def test_the_scheme_in_words_and_the_size():
    text = card.render(subject(origin()))
    assert "owner/float, quantized by calibration, then distilled" in text
    assert "INT4 per-channel weights, static INT16 activations, INT8 embedding, INT6 head" in text
    assert "121.8 MB of weights, 7.24 bits a weight" in text


def test_scores_have_their_errors_and_the_teacher_is_not_set_against_itself():
    text = section(card.render(subject(origin())), "Scores")
    rows = {row[0]: row[1:] for row in table(text)}
    assert rows[""] == ["teacher", "student"]
    assert rows["perplexity"] == ["13.44 ± 0.82", "14.81 ± 0.82"]
    assert rows["KL to the teacher, nats a token"] == ["", "0.1287 ± 0.0073"]
    assert rows["top-1 agreement with the teacher, %"] == ["", "79.9 ± 0.6"]
    assert rows["accuracy, %"] == ["65.6 ± 2.4", "64.6 ± 2.4"]
    assert "on the compressed-tensors export" in text


def test_where_all_answers_are_written_there_is_no_mean_accuracy():
    known = origin()
    without = {
        variant: {name: value for name, value in mine.items() if not name.startswith("accuracy")}
        for variant, mine in known.scores.items()
    }
    rows = card.scores(dataclasses.replace(known, scores=without))
    assert [row[0] for row in rows] == [row[0] for row in card.scores(known)][:-1]


def test_without_scores_or_lineage_there_are_no_such_sections_and_the_note_says_why():
    text = card.render(subject(Origin(notes=["Lost without a trace."])))
    assert "## Scores" not in text
    assert "Lost without a trace." in section(text, "Where it comes from")


def test_parity_is_shown_where_it_was_looked_at():
    assert "## The same in its runtime" not in card.render(subject(origin()))
    measured = {
        "llama.cpp": {"top1_student": 0.9931, "kl_student": 0.00217, "bound": 1.0},
        "other": {"top1_student": 1.0, "kl_student": 0.0, "bound": 0.0},
    }
    text = card.render(subject(origin(parity=measured)))
    assert table(section(text, "The same in its runtime"))[2:] == [
        ["llama.cpp", "99.31", "≥ 0.0022"],
        ["other", "100.00", "0"],
    ]


def test_lineage_has_hashes_knobs_libraries_and_machine():
    text = section(card.render(subject(origin())), "Where it comes from")
    assert table(text)[2] == ["distill", "data/student", "`abababababab`", "`cdcdcdcdcdcd`"]
    assert "- distill: steps=44, seed=0\n" in text
    assert "Ran on: distill: processor AMD EPYC, devices cpu." in text
    assert "The float model: source hub, repo owner/float." in text
    assert "Libraries: torch 2.13.0." in text


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_has_lines_to_run_it_with_the_repositorys_name(name: str):
    text = card.render(Subject("me/small", FACTS | {"format": name}, {}, Origin()))
    blocks = re.findall(r"```(\w+)\n(.*?)\n```", section(text, "Run it"), re.DOTALL)
    assert len(blocks) == len(FORMATS[name].runs) > 0
    for language, lines in blocks:
        assert "me/small" in lines
        assert len(lines.splitlines()) <= 6
        if language == "python":
            compile(lines, name, "exec")


def test_every_format_of_the_export_has_a_card():
    assert EXPORT_FORMATS.keys() <= FORMATS.keys()


def test_what_stays_in_float_is_a_limit():
    facts = FACTS | {"in_float": {"model.layers.*.mlp.experts": 0.031}}
    text = card.render(Subject("me/small", facts, {}, origin()))
    assert "In float stay, in % of the decoder's weights: model.layers.*.mlp.experts 3.10." in section(text, "Limits")
    assert "In float stay" not in card.render(subject(origin()))


def test_there_are_no_empty_lines_in_a_row_and_no_braces_are_left():
    parity = {"llama.cpp": {"top1_student": 1.0, "kl_student": 0.1, "bound": 0.0}}
    text = card.render(subject(origin(parity=parity), Told(license="mit")))
    assert "\n\n\n" not in text
    assert "{{" not in text
    assert text.endswith(".\n")
