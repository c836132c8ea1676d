"""Which tasks are asked, and what is wrong with their rows: all of it at once."""

import ast
import json
from pathlib import Path

import pytest

from pipeline.evaluation import needs, schemas, selection
from pipeline.evaluation.made import table as made
from pipeline.evaluation.selection import AUTO, check_folder, selected
from pipeline.evaluation.tasks import DIALOGUE, GROUPS, TASKS, harness_folder

SHIPPED = Path(__file__).parents[3] / "data" / "benchmarks"


CM = {"input": "I ate it.", "label": 0}
MC1 = {"question": "?", "mc1_targets": {"choices": ["a", "b"], "labels": [0, 1]}}
QA = {"inputs": "Q", "multiple_choice_targets": ["Yes", "No"], "multiple_choice_scores": [1, 1]}
FOLLOWED = {"key": 1, "prompt": "Use no comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
GOOD = {
    "lambada_openai": {"text": "two words"},
    "blimp": {"sentence_good": "a", "sentence_bad": "b"},
    "mmlu": {"question": "?", "choices": ["a", "b"], "answer": 1},
    "bbh_navigate": {"input": "?", "target": "Yes"},
    "strategyqa": QA | {"multiple_choice_scores": [1, 0]},
    "gsm8k": {"question": "?", "answer": "One and one.\n#### 2"},
    "ifeval": FOLLOWED,
    "truthfulqa_mc1": {"question": "?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
    "ethics_cm": CM,
    "adv_mnli_clean": {"premise": "a", "hypothesis": "b", "label": 2},
}


def rows_of(task: str) -> list[dict]:
    return [json.loads(line) for line in (SHIPPED / f"{task}.jsonl").read_text(encoding="utf-8").split("\n") if line]


def write(folder: Path, task: str, *lines: str) -> Path:
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def changed(task: str, **changes: object) -> str:
    row = {**(GOOD[task] if task in GOOD else rows_of(task)[0]), **changes}
    return json.dumps({name: value for name, value in row.items() if value is not ...})


MALFORMED = [
    ("piqa", "{", "not JSON"),
    ("piqa", "[]", "expected an object, got list"),
    ("piqa", changed("piqa", sol2=...), "lacks the field 'sol2'"),
    ("piqa", changed("piqa", goal=3), "field 'goal' is int"),
    ("piqa", changed("piqa", label=2), "label 2 is neither 0 nor 1"),
    ("hellaswag", changed("hellaswag", label="4"), "label '4' is no index of its 4 endings"),
    ("hellaswag", changed("hellaswag", label=-1), "label -1 is no index"),
    ("winogrande", changed("winogrande", sentence="no blank"), "expected one '_'"),
    ("winogrande", changed("winogrande", answer="3"), "expected one '_' in the sentence and the answer '1' or '2'"),
    ("openbookqa", changed("openbookqa", answerKey="E"), "answerKey 'E' is none of the labels"),
    ("arc_easy", changed("arc_easy", choices={"text": ["a", "b"], "label": ["A"]}), "choices need as many"),
    ("arc_easy", changed("arc_easy", choices={"text": ["a"]}), "choices need as many"),
    ("arc_easy", changed("arc_easy", choices={"text": 2, "label": 2}), "choices need as many"),
    ("lambada_openai", '{"text": "word"}', "its text needs two words"),
    ("lambada_openai", '{"text": "two words "}', "its text needs two words at least, and none after the answer"),
    ("blimp", '{"sentence_good": "a", "sentence_bad": "a"}', "its two sentences are the same"),
    ("mmlu", '{"question": "?", "choices": ["a", "b"], "answer": 2}', "answer 2 is no index of its 2 choices"),
    ("mmlu", '{"question": "?", "choices": ["a", 3], "answer": 0}', "choices need two texts at least"),
    ("bbh_navigate", '{"input": "?", "target": "yes"}', "target 'yes' is none of Yes, No"),
    ("strategyqa", json.dumps(QA), "expected a score a target, one of them 1"),
    ("gsm8k", '{"question": "?", "answer": "2"}', "its answer does not end in '#### ' and a number"),
    ("gsm8k", '{"question": "?", "answer": "#### two"}', "its answer does not end in '#### ' and a number"),
    ("ifeval", json.dumps(FOLLOWED | {"prompt": " "}), "expected a prompt, one instruction or more"),
    ("ifeval", json.dumps(FOLLOWED | {"kwargs": []}), "expected a prompt, one instruction or more"),
    ("ifeval", json.dumps(FOLLOWED | {"kwargs": [None]}), "each of 'kwargs' is an object"),
    (
        "ifeval",
        json.dumps(FOLLOWED | {"instruction_id_list": ["no_comma"]}),
        "lm-eval checks no instruction 'no_comma'",
    ),
    ("truthfulqa_mc1", json.dumps(MC1), "mc1_targets need choices, the right one first"),
    ("ethics_cm", json.dumps(CM | {"label": 2}), "label 2 is neither 0 nor 1"),
    ("ethics_cm", json.dumps(CM | {"group": "a"}), "field 'group' is str"),
    ("adv_mnli_clean", '{"premise": "a", "hypothesis": "b", "label": 3}', "label 3 is none of 0 to 2"),
]


@pytest.mark.parametrize(("task", "line", "problem"), MALFORMED)
def test_a_malformed_line_is_named_with_file_and_number(
    tmp_path: Path, task: str, line: str, problem: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(needs, "missing", lambda task: [])
    good = changed(task)
    write(tmp_path, task, good, line, good)
    with pytest.raises(ValueError, match=r"evaluate\.benchmarks") as caught:
        check_folder(tmp_path, [task])
    (message,) = str(caught.value).splitlines()[1:]
    assert message.strip().startswith(f"{tmp_path / task}.jsonl, line 2: {problem}")


def test_only_a_newline_ends_a_line_of_json(tmp_path: Path):
    """JSON allows Unicode's other line ends unescaped inside strings."""
    row = {"goal": "one\u2028two\x85three", "sol1": "a", "sol2": "b", "label": 0}
    check_folder(write(tmp_path, "piqa", *[json.dumps(row, ensure_ascii=False)] * 2), ["piqa"])


def test_one_item_alone_is_refused(tmp_path: Path):
    """The harness gives N/A for its standard error."""
    with pytest.raises(ValueError, match=r"piqa\.jsonl has one item, which leaves accuracy without a standard error"):
        check_folder(write(tmp_path, "piqa", changed("piqa")), ["piqa"])


def test_all_files_are_checked_at_once(tmp_path: Path):
    write(tmp_path, "piqa", "{", changed("piqa"), "[]")
    (tmp_path / "arc_easy.jsonl").write_text("")
    with pytest.raises(ValueError, match="evaluate") as caught:
        check_folder(tmp_path, ["piqa", "arc_easy", "winogrande"])
    message = str(caught.value)
    assert all(
        part in message
        for part in ("line 1: not JSON", "line 3", "arc_easy.jsonl is empty", "winogrande.jsonl does not exist")
    )


def test_many_problems_are_cut_short_and_counted(tmp_path: Path):
    with pytest.raises(ValueError, match="and 10 more") as caught:
        check_folder(write(tmp_path, "piqa", *["{"] * 30), ["piqa"])
    assert len(str(caught.value).splitlines()) == 22


def problems(
    groups: list[str], names: list[str] | str, folder: Path | None, limit: int = 0, items: int = 0
) -> list[str]:
    with pytest.raises(ValueError, match="evaluate") as caught:
        selected(groups, names, folder, limit, items)  # type: ignore[arg-type]
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_auto_is_what_the_source_has_and_all_that_is_made(tmp_path: Path):
    write(tmp_path, "piqa", *[changed("piqa")] * 2)
    write(tmp_path, "ethics_cm", *[changed("ethics_cm")] * 2)
    write(tmp_path, "wikitext", '{"page": "no task"}')
    made_basic = [name for name, line in made.MADE.items() if line.group == "basic"]
    assert selected(["basic"], AUTO, tmp_path, 0, 0) == ["piqa", *made_basic]
    assert selected([*GROUPS], AUTO, tmp_path, 0, 0) == ["piqa", "ethics_cm", *made.MADE]
    of_hub = selected([*GROUPS], AUTO, None, 0, 0)
    assert {"piqa", "mmlu", "blimp", *made.MADE} <= {*of_hub}
    assert not {"adv_rte", "litm_cloze"} & {*of_hub}
    assert selected(["basic"], ["arc_easy", "piqa"], SHIPPED, 0, 0) == ["piqa", "arc_easy"], "in the table's order"


def test_a_task_to_which_answers_are_written_is_asked_where_it_is_named(tmp_path: Path):
    write(tmp_path, "gsm8k", *[changed("gsm8k", answer=f"#### {number}") for number in ("-2", "1,000", "3.5", "$4")])
    assert selected(["emergent"], ["gsm8k", "state"], tmp_path, 0, 0) == ["gsm8k", "state"]
    assert selected(["emergent"], ["gsm8k"], None, 0, 0) == ["gsm8k"]
    for source in (tmp_path, None):
        assert not {"gsm8k", "ifeval"} & {*selected([*GROUPS], AUTO, source, 0, 0)}


def test_the_instructions_are_those_that_lm_eval_checks():
    """Its table is read as text, since importing it takes packages that may not be here."""
    tree = ast.parse((harness_folder() / "ifeval/instructions_registry.py").read_text())
    tables = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore
    kinds = {name: ast.literal_eval(value) for name, value in tables.items() if name.startswith("_")}
    theirs = {kinds[key.left.id] + key.right.value for key in tables["INSTRUCTION_DICT"].keys}  # type: ignore
    assert theirs == schemas.INSTRUCTION_IDS


def test_names_that_cannot_be_asked_are_all_named(tmp_path: Path):
    text = "\n".join(problems(["basic"], ["piqq", "mmlu", "arc_easy"], tmp_path))
    assert "unknown task 'piqq'; did you mean 'piqa'?" in text
    assert "mmlu is of emergent, which evaluate.groups leaves out" in text
    assert "arc_easy.jsonl does not exist; leave arc_easy out" in text
    (one,) = problems(["long"], ["litm_cloze"], None)
    assert one == "evaluate.tasks: litm_cloze is not on the hub; set evaluate.source to folder"
    assert problems(["basics"], ["piqa"], SHIPPED)[0].startswith("unknown group 'basics'; did you mean 'basic'?")


def test_a_group_without_tasks_is_asked_none(tmp_path: Path):
    """Conversations stand in the references, and every variant is compared on them."""
    without = [group for group in GROUPS if group not in {line.group for line in made.MADE.values()}]
    assert without == [DIALOGUE]
    assert selected(without, AUTO, tmp_path, 0, 0) == []


def test_clusters_are_two_at_least_and_all_items_have_one_or_none(tmp_path: Path):
    rows = [changed("ethics_cm", group=0)] * 2 + [changed("ethics_cm", group=1)] * 2
    write(tmp_path, "ethics_cm", *rows)
    assert selected(["trust"], ["ethics_cm"], tmp_path, 3, 0) == ["ethics_cm"]
    (few,) = problems(["trust"], ["ethics_cm"], tmp_path, limit=2)
    assert "all items that are asked have one 'group'" in few
    write(tmp_path, "ethics_cm", *rows, changed("ethics_cm"))
    (mixed,) = problems(["trust"], ["ethics_cm"], tmp_path)
    assert mixed.endswith("ethics_cm.jsonl, line 5: lacks the field 'group', which others have")


def test_attacked_rows_stand_beside_clean_ones(tmp_path: Path):
    write(tmp_path, "adv_mnli", *[changed("adv_mnli_clean")] * 3)
    assert selected(["trust"], ["adv_mnli"], tmp_path, 0, 0) == ["adv_mnli"], "alone it is a task like others"
    write(tmp_path, "adv_mnli_clean", *[changed("adv_mnli_clean")] * 2)
    (one,) = problems(["trust"], ["adv_mnli", "adv_mnli_clean"], tmp_path)
    assert "adv_mnli.jsonl has 3 rows, " in one


def test_made_items_are_the_same_each_time_and_as_many_as_asked_for():
    name = "word_order"
    assert selection.made_rows(name, 0) == selection.made_rows(name, 0)
    assert len(selection.made_rows(name, 0)) == made.MADE[name].items
    assert selection.made_rows(name, 7) == selection.made_rows(name, 9)[:7]
    assert all(selection.problems_of(name, None, 0, 7) == [] for name in made.MADE)
    (most,) = problems(["basic"], [name], None, items=10**9)
    assert most.startswith("evaluate.items: word_order: ")
    together = next(name for name, line in made.MADE.items() if line.compares)
    assert "are one cluster" in problems([made.MADE[together].group], [together], None, items=2)[0]


def test_a_made_row_fits_its_schema():
    for name in made.MADE:
        for row in selection.made_rows(name, 24):
            assert selection.schemas.malformed(json.dumps(row), TASKS[name].schema, TASKS[name].optional) == ""


@pytest.mark.parametrize("name", [name for name, line in made.MADE.items() if line.compares])
def test_a_difference_of_one_pair_is_refused_before_it_has_no_error(name: str):
    group = made.MADE[name].group
    assert "hold one pair" in problems([group], [name], None, items=3)[0]
    assert selection.selected([group], [name], None, 0, 4) == [name]
