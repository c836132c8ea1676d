"""A laboratory's answers, read; and what is said where they are not sound."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.recommend import laboratory, scores
from pipeline.recommend.judged import Judge
from tests.unit.recommend.made_answers import DOWN, first, table
from tests.unit.recommend.made_answers import laboratory as read

TEACHER = {"basic/reasoning": first(60, 90), "basic/understanding": first(50, 80), "long/lines": first(30, 40)}


def test_parts_come_by_group_and_self_calibration_is_of_all_items_whose_right_choice_is_known():
    parts = read(TEACHER, {"W4": {}}).parts
    assert [(part.group, part.name, len(part.rows)) for part in parts] == [
        ("basic", "reasoning", 90),
        ("basic", "understanding", 80),
        ("emergent", "self-calibration", 210),
        ("long", "lines", 40),
    ]
    assert parts[2].score == scores.SKILL
    asked = read({**TEACHER, "emergent/self-calibration": first(9, 10)}, {"W4": {}}).parts
    assert [(part.name, len(part.rows)) for part in asked][2:] == [("self-calibration", 10), ("lines", 40)], "its own"


def test_groups_come_in_the_order_of_the_table_of_tasks():
    """And what it does not know after them."""
    names = ["a group/x", "trust/robustness", "long/lines", "basic/reasoning"]
    known = read({name: first(6, 10) for name in names}, {"W4": {}})
    ordered = ["basic", "trust", "long", "a group"]
    assert [part.group for part in known.wholes] == ordered
    assert [part.group for part in known.parts if part.score == scores.ACCURACY] == ordered
    assert known.wholes[1].rows.tolist() == [*range(10, 20)]


def test_of_conversations_the_share_of_tokens_is_judged():
    """Where no answer is found whole, nothing else tells points apart."""
    none = {"dialogue/conversations": first(0, 30)}
    teacher = {"basic/reasoning": first(20, 30), "dialogue/conversations": first(30, 30)}
    answers = table(teacher, {"W8": none, "W4": none})
    shares = answers["point"].map({"teacher": 1.0, "W8 rtn": 0.99, "W4 rtn": 0.8})
    shares = answers["right_probability"].where(answers["group"] != "dialogue", shares)
    known = laboratory.of_table(answers.assign(right_probability=shares))
    (part,) = (part for part in known.parts if part.group == "dialogue")
    assert part.score == known.wholes[1].score == scores.PROBABILITY
    judge = Judge(known, 0.02)
    assert [judge.verdict(point, part).verdict for point in known.points] == ["within", "beyond"]
    assert judge.by_probability(known.points[0], part) is None


def test_skill_is_one_less_brier_over_that_of_equal_probabilities():
    answers = table({"basic/reasoning": first(1, 2)}, {"W4": {}}, choices=4, likelihood=1.0).iloc[:2]
    chosen, other = np.e / (np.e + 3), 1 / (np.e + 3)
    right = (1 - chosen) ** 2 + 3 * other**2
    wrong = (1 - other) ** 2 + chosen**2 + 2 * other**2
    assert scores.of_answers(answers)[scores.SKILL] == pytest.approx([1 - right / 0.75, 1 - wrong / 0.75])
    equal = table({"basic/reasoning": first(1, 2)}, {"W4": {}}, likelihood=0.0).iloc[:2]
    assert scores.of_answers(equal)[scores.SKILL] == pytest.approx([0, 0], abs=1e-12)
    unknown = equal.assign(answer=-1)
    assert np.isnan(scores.of_answers(unknown)[scores.SKILL]).all()


def test_what_ranks_the_choices_is_no_probability():
    plain = table({"basic/reasoning": first(1, 1)}, {"W4": {}}).iloc[:1]
    ranked = scores.of_answers(plain.assign(probabilities=[[1.0, 0.0, 0.0, 0.0]]))
    assert ranked[scores.SKILL] == pytest.approx(scores.of_answers(plain)[scores.SKILL])


def test_chance_is_that_of_the_task_mostly_one_over_the_choices():
    """None of an answer that is written: of a last word, and of instructions, which keep no likelihoods."""
    tasks = ["piqa", "lambada_openai", "own", "litm_cloze", "instructions"]
    rows = pd.DataFrame({"task": tasks, "log_likelihoods": [[-1.0] * 2, [-1.0], [-1.0] * 4, [-1.0] * 3, []]})
    assert scores.chance(rows).tolist() == [0.5, 0.0, 0.25, 0.0, 0.0]


def test_items_of_one_task_that_come_as_one_share_a_cluster_and_no_two_tasks_do():
    answers = table({"basic/reasoning": first(3, 6), "long/lines": first(3, 6)}, {"W4": {}})
    halves = laboratory.of_table(answers.assign(cluster=answers["item"] // 2)).items["cluster"]
    assert halves.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_attacked_and_clean_items_of_one_number_are_one_cluster():
    answers = table({"trust/robustness": first(3, 6), "basic/reasoning": first(2, 3)}, {"W4": {}})
    names = ["adv_sst2"] * 3 + ["adv_sst2_clean"] * 3 + ["adv_rte"] * 3
    answers = answers.assign(task=names * 2, cluster=[0, 1, 2] * 6)
    assert laboratory.of_table(answers).items["cluster"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]


def test_points_of_the_same_bits_are_told_apart():
    cache = {"bits": 4, "symmetric": False, "group": 0}
    grids = [cache, {**cache, "group": 64}, {**cache, "keys": "channel", "block": 32}]
    exception = {**DOWN, "overrides": [{"match": "down_proj", "activations": {"dynamic": True}}]}
    schemes = [json.dumps({**DOWN, "activations": {**DOWN["activations"], "bits": 0}, "kv_cache": kv}) for kv in grids]
    known = read(TEACHER, {(scheme, "rtn"): {} for scheme in ["W8g64A8KV4", json.dumps(exception), *schemes]}).points
    assert known[0].written == ("W8g64", "A8", "KV4")
    assert known[1].written == ("W8", "A8 static, down_proj apart", "")
    assert [point.written[2] for point in known[2:]] == [
        "KV4 asymmetric",
        "KV4g64 asymmetric",
        "KV4 asymmetric, keys per channel",
    ]
    assert known[-1].label == "W8KV4 asymmetric, keys per channel, rtn"


def test_a_point_is_told_by_its_scheme():
    exception = {**DOWN, "overrides": [{"match": "down_proj", "activations": {"dynamic": True}}]}
    points = read(
        TEACHER, {"W4A8KV4": {}, (json.dumps(DOWN), "rtn"): {}, (json.dumps(exception), "gptq", "hadamard"): {}}
    ).points
    assert [point.bits for point in points] == [(4, 8, 4), (8, 8, 0), (8, 8, 0)]
    assert [point.label for point in points] == [
        "W4A8KV4 rtn",
        "W8A8 static, rtn",
        "W8A8 static, down_proj apart, gptq, rotated",
    ]


def test_groups_sub_tasks_and_tasks_can_be_named():
    known = read(TEACHER, {"W4": {}})
    assert [part.name for part in known.named(["basic"])] == ["reasoning", "understanding"]
    assert [part.label for part in known.named(["lines", "reasoning task"])] == ["basic: reasoning task", "long: lines"]
    assert known.named([]) == known.parts
    with pytest.raises(ValueError, match=r"unknown task or group 'longg'; did you mean 'long'.*unknown .*'x'"):
        known.named(["longg", "x"])


def test_a_task_that_bears_another_sub_tasks_name_stays_apart_from_it():
    answers = table({"long/retrieval": first(4, 4), "long/lines": first(0, 6)}, {"W4": {}})
    known = laboratory.of_table(answers.assign(task=answers["task"].replace("retrieval task", "lines")))
    parts = known.named(["lines"])
    assert [part.label for part in parts] == ["long: lines of retrieval", "long: lines"]
    verdicts = [Judge(known, 0.02).verdict(known.points[0], part) for part in parts]
    assert [verdict.teacher for verdict in verdicts] == [1, 0]


def test_what_is_not_sound_is_named_with_the_way_out(tmp_path: Path):
    sound = table(TEACHER, {"W4": {}, "W3": {}})
    with pytest.raises(ValueError, match=r"no column group, right_probability; an older evaluate .*make laboratory"):
        laboratory.of_table(sound.drop(columns=["group", "right_probability"]))
    with pytest.raises(ValueError, match="no answers of the teacher"):
        laboratory.of_table(sound[sound["point"] != "teacher"])
    with pytest.raises(ValueError, match="W3 rtn did not answer the teacher's items"):
        laboratory.of_table(sound.iloc[:-1])
    (tmp_path / "answers.parquet").write_text("nothing")
    with pytest.raises(ValueError, match="is no table of answers"):
        laboratory.load(tmp_path / "answers.parquet")


def test_where_a_laboratory_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no laboratory yet .*make laboratory QUICK=1"):
        laboratory.where(None)
    quick = Path("sweeps/laboratory-quick")
    quick.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no answers\.parquet"):
        laboratory.where(quick)
    (quick / "answers.parquet").touch()
    assert laboratory.where(None) == laboratory.where(quick) == quick / "answers.parquet"
    with pytest.raises(ValueError, match="is neither a folder nor a file"):
        laboratory.where(Path("nowhere"))


def test_the_kl_is_taken_from_the_points_beside_it(tmp_path: Path):
    table(TEACHER, {"W4": {}, "W3": {}}).to_parquet(tmp_path / "answers.parquet")
    assert all(np.isnan(point.kl) for point in laboratory.load(tmp_path / "answers.parquet").points)
    (tmp_path / "points.csv").write_text("experiment,kl\nW3 rtn,0.5\n")
    four, three = laboratory.load(tmp_path / "answers.parquet").points
    assert np.isnan(four.kl)
    assert three.kl == 0.5
