"""What a row of a task's JSON lines file must hold, and what is wrong with one that does not."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Kind = type | tuple[type, ...]


def _nothing(_: Row) -> str:
    return ""


@dataclass(frozen=True)
class Schema:
    """The fields of a row with their types, and a check of what they say: the problem, or an empty text."""

    fields: Mapping[str, Kind]
    problem: Callable[[Row], str] = _nothing


def malformed(line: str, schema: Schema, optional: Mapping[str, Kind]) -> str:
    """What is wrong with a line of a task's file; empty if nothing is.

    Args:
        optional: fields that a row may have, with their types.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    for field in schema.fields:
        if field not in row:
            return f"lacks the field {field!r}"
    for field, kind in {**schema.fields, **optional}.items():
        if field in row and not isinstance(row[field], kind):
            return f"field {field!r} is {type(row[field]).__name__}, not {kind}"
    return schema.problem(row)


def row_of(line: str) -> Row:
    """A line that is not malformed."""
    row: Row = json.loads(line)
    return row


def _label(count: int) -> Callable[[Row], str]:
    """That the label is an index of so many answers."""
    expected = "neither 0 nor 1" if count == 2 else f"none of 0 to {count - 1}"
    return lambda row: "" if row["label"] in range(count) else f"label {row['label']!r} is {expected}"


def _hellaswag(row: Row) -> str:
    if str(row["label"]) in [str(i) for i in range(len(row["endings"]))]:
        return ""
    return f"label {row['label']!r} is no index of its {len(row['endings'])} endings"


def _winogrande(row: Row) -> str:
    sound = row["answer"] in ("1", "2") and row["sentence"].count("_") == 1
    return "" if sound else "expected one '_' in the sentence and the answer '1' or '2'"


def _answer_key(row: Row) -> str:
    sides = [row["choices"].get(side) for side in ("text", "label")]
    if not all(isinstance(side, list) for side in sides) or len(sides[0]) != len(sides[1]):
        return "choices need as many 'text' as 'label'"
    return "" if row["answerKey"] in sides[1] else f"answerKey {row['answerKey']!r} is none of the labels {sides[1]}"


def _last_word(row: Row) -> str:
    before, _, answer = row["text"].rpartition(" ")
    return "" if before.strip() and answer.strip() else "its text needs two words at least, and none after the answer"


def _two_sentences(row: Row) -> str:
    return "its two sentences are the same" if row["sentence_good"] == row["sentence_bad"] else ""


def _index(row: Row) -> str:
    choices = row["choices"]
    if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
        return "choices need two texts at least, none of them empty"
    return (
        ""
        if row["answer"] in range(len(choices))
        else f"answer {row['answer']!r} is no index of its {len(choices)} choices"
    )


def target_among(choices: list[str]) -> Schema:
    """Of BIG-Bench Hard, whose choices are in lm-eval's file."""
    expected = f"none of {', '.join(choices)}"
    return Schema(
        {"input": str, "target": str},
        lambda row: "" if row["target"] in choices else f"target {row['target']!r} is {expected}",
    )


def _one_right(row: Row) -> str:
    targets, scores = row["multiple_choice_targets"], row["multiple_choice_scores"]
    sound = len(targets) == len(scores) > 1 and sorted(scores) == [0] * (len(scores) - 1) + [1]
    return "" if sound else "expected a score a target, one of them 1 and the others 0"


def _first_right(row: Row) -> str:
    choices, labels = (row["mc1_targets"].get(side) for side in ("choices", "labels"))
    sound = isinstance(choices, list) and len(choices) > 1 and labels == [1] + [0] * (len(choices) - 1)
    return "" if sound else "mc1_targets need choices, the right one first, and labels 1, 0, 0, …"


def _solved(row: Row) -> str:
    """As lm-eval reads the number: what stands behind the last mark, with signs and commas between digits."""
    _, mark, number = row["answer"].rpartition("####")
    return "" if mark and NUMBER.fullmatch(number.strip()) else "its answer does not end in '#### ' and a number"


def _instructions(row: Row) -> str:
    names, values = row["instruction_id_list"], row["kwargs"]
    if not row["prompt"].strip() or not names or len(names) != len(values):
        return "expected a prompt, one instruction or more in 'instruction_id_list', and as many 'kwargs'"
    if not all(isinstance(value, dict) for value in values):
        return "each of 'kwargs' is an object"
    strange = [name for name in names if name not in INSTRUCTION_IDS]
    return f"lm-eval checks no instruction {strange[0]!r}" if strange else ""


NUMBER = re.compile(r"[-+]?\$?[0-9][0-9,]*(\.[0-9]+)?")
INSTRUCTION_IDS = {  # of IFEval; the kind, and its instructions
    f"{kind}:{name}"
    for kind, names in {
        "keywords": ("existence", "frequency", "forbidden_words", "letter_frequency"),
        "language": ("response_language",),
        "length_constraints": (*("number_sentences", "number_paragraphs", "number_words", "nth_paragraph_first_word"),),
        "detectable_content": ("number_placeholders", "postscript"),
        "detectable_format": (
            *("number_bullet_lists", "constrained_response", "number_highlighted_sections", "multiple_sections"),
            *("json_format", "title"),
        ),
        "combination": ("two_responses", "repeat_prompt"),
        "startend": ("end_checker", "quotation"),
        "change_case": ("capital_word_frequency", "english_capital", "english_lowercase"),
        "punctuation": ("no_comma",),
    }.items()
    for name in names
}
_QUESTION = {"question": str, "choices": dict, "answerKey": str}
_LABEL = {"label": int}
PIQA = Schema({"goal": str, "sol1": str, "sol2": str, **_LABEL}, _label(2))
HELLASWAG = Schema(
    {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (str, int)}, _hellaswag
)
WINOGRANDE = Schema({"sentence": str, "option1": str, "option2": str, "answer": str}, _winogrande)
OPENBOOKQA = Schema({"question_stem": str, "choices": dict, "answerKey": str}, _answer_key)
ARC = Schema(_QUESTION, _answer_key)
CLOZE = Schema({"text": str}, _last_word)
BLIMP = Schema({"sentence_good": str, "sentence_bad": str}, _two_sentences)
MMLU = Schema({"question": str, "choices": list, "answer": int}, _index)
STRATEGYQA = Schema({"inputs": str, "multiple_choice_targets": list, "multiple_choice_scores": list}, _one_right)
GSM8K = Schema({"question": str, "answer": str}, _solved)
IFEVAL = Schema({"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}, _instructions)
TRUTHFULQA = Schema({"question": str, "mc1_targets": dict}, _first_right)
COMMONSENSE = Schema({"input": str, **_LABEL}, _label(2))
DEONTOLOGY = Schema({"scenario": str, "excuse": str, **_LABEL}, _label(2))
JUSTICE = Schema({"scenario": str, **_LABEL}, _label(2))
VIRTUE = Schema({"scenario": str, "trait": str, **_LABEL}, _label(2))
SST2 = Schema({"sentence": str, **_LABEL}, _label(2))
QQP = Schema({"question1": str, "question2": str, **_LABEL}, _label(2))
MNLI = Schema({"premise": str, "hypothesis": str, **_LABEL}, _label(3))
QNLI = Schema({"question": str, "sentence": str, **_LABEL}, _label(2))
RTE = Schema({"sentence1": str, "sentence2": str, **_LABEL}, _label(2))
MADE = Schema({"context": str, "choices": list, "answer": int, "cluster": int, "level": str}, _index)
