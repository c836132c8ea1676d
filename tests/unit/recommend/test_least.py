"""Lines of bits, and where they end."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.recommend import least, told
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import of_table
from tests.unit.recommend.made_answers import DOWN, Rights, first, laboratory, table

TEACHER = {"basic/reasoning": first(1000), "basic/understanding": first(900)}
LESS: Rights = {"basic/reasoning": first(900)}  # a tenth less


def test_a_line_goes_from_high_bits_to_low_and_ends_at_the_first_that_fails():
    points = {"W8": {}, "W6": {}, "W4": LESS, "W3": {}}
    (whole, reasoning, understanding) = least.lines(
        Judge(laboratory(TEACHER, points), 0.02), parts_of_basic(points), ["weights"]
    )
    assert (reasoning.bits(), whole.bits(), understanding.bits()) == (6, 6, 3)
    assert whole.part == ""
    assert whole.failed == {"reasoning": "beyond"}
    assert told.rows([whole])[1][-1] == "W4: reasoning beyond"
    assert reasoning.stopped is not None
    assert reasoning.stopped.scheme == "W4"
    assert reasoning.stopped_verdict is not None
    assert reasoning.stopped_verdict.verdict == "beyond"
    assert understanding.stopped is None


def parts_of_basic(points: dict[str, Rights]):
    return laboratory(TEACHER, points).named(["basic"])


def test_inputs_and_cache_are_varied_over_the_weights_with_the_most_bits():
    points = ["W8", "W4", "W8A8", "W4A8", "W8A4", "W4A4", "W8KV8", "W8KV2", "W6KV3", "W8A8KV8"]
    known = laboratory(TEACHER, {point: {} for point in points}).points
    along = {kind: [point.scheme for point in least.sequence(known, kind).values()] for kind in least.KINDS}
    assert along == {"weights": ["W8", "W4"], "activations": ["W8A8", "W8A4"], "kv": ["W8KV8", "W8KV2"]}


def test_of_the_same_bits_the_least_kl_is_tested_whatever_the_items_say():
    """By the items rtn is the better one, by other text gptq; without a KL the first counts."""
    points = {("W4", "rtn"): {}, ("W4", "gptq"): LESS}
    known = laboratory(TEACHER, points, {"W4 rtn": 0.9, "W4 gptq": 0.1})
    assert least.sequence(known.points, "weights")[4].method == "gptq"
    assert least.sequence(laboratory(TEACHER, points).points, "weights")[4].method == "rtn"
    some = laboratory(TEACHER, points, {"W4 gptq": 0.1})
    assert least.sequence(some.points, "weights")[4].method == "gptq", "a known one before an unknown one"


def test_keys_per_channel_are_another_way_to_the_same_bits_and_the_table_says_which_was_tested():
    cache = {"bits": 4, "symmetric": False, "group": 0, "keys": "channel", "block": 32}
    scheme = json.dumps({**DOWN, "activations": {**DOWN["activations"], "bits": 0}, "kv_cache": cache})
    points: dict[Any, Rights] = {"W8KV8": {}, "W8KV4": LESS, (scheme, "rtn"): {}}
    for kl, enough in ((0.1, "KV4 asymmetric, keys per channel, rtn"), (0.9, "KV8, rtn")):
        known = laboratory(TEACHER, points, {"W8KV8 rtn": 0.05, "W8KV4 rtn": 0.5, f"{scheme} rtn": kl})
        (line,) = least.lines(Judge(known, 0.02), known.named(["reasoning"]), ["kv"])
        assert told.rows([line])[1][3] == enough


def test_how_an_enough_was_reached_names_groups_and_rotation():
    known = laboratory(TEACHER, {("W4g64", "gptq", "hadamard"): {}})
    (line,) = least.lines(Judge(known, 0.02), known.named(["reasoning"]))
    assert told.rows([line])[1][3] == "W4g64, gptq rotated"


def test_for_a_terminal_each_sub_task_has_a_head_and_numbers_stay_whole():
    rows = [
        [*told.HEADER],
        ["basic", "all of these", "weights", "W8, rtn", "-", "-", "W4: reasoning beyond"],
        ["basic", "reasoning", "weights", "W8, rtn", "1.0 ± 0.6 %", "3,000", "W4: beyond (4.3 ± 0.9 %)"],
        ["basic", "reasoning", "KV cache", "-", "-", "3,000", "KV8: beyond (9.3 ± 0.9 %)"],
        ["long", "lines", "weights", "-", "-", "40", "no signal: the teacher guesses"],
    ]
    assert told.by_part(rows, 40).split("\n") == [
        "basic: all of these",
        "  weights   W8, rtn is enough",
        "            W4: reasoning beyond",
        "basic: reasoning, 3,000 items",
        "  weights   W8, rtn is enough, loss",
        "              1.0 ± 0.6 %",
        "            W4: beyond (4.3 ± 0.9 %)",
        "  KV cache  none is shown to be enough",
        "            KV8: beyond (9.3 ± 0.9 %)",
        "long: lines, 40 items",
        "  weights   no signal: the teacher",
        "              guesses",
    ]


def test_what_the_teacher_guesses_says_nothing():
    known = laboratory({"basic/reasoning": first(375), "basic/understanding": first(900)}, {"W4": {}})
    whole, reasoning, _ = least.lines(Judge(known, 0.02), known.named(["basic"]))
    assert (reasoning.bits(), reasoning.no_signal) == (None, ("reasoning",))
    assert (whole.bits(), whole.no_signal) == (4, ("reasoning",))
    assert "no signal" in told.rows([reasoning])[1][-1]


def test_the_probability_is_shown_beside_where_it_varies_less():
    """Many answers flip, each by little of the probability: the loss of probability is known far better."""
    turned = {"basic/reasoning": np.roll(first(1000), 300)}
    known = laboratory({"basic/reasoning": first(1000)}, {"W4": turned}, likelihood=0.1)
    (line,) = least.lines(Judge(known, 0.2), known.named(["reasoning"]))
    assert line.verdict is not None
    assert line.probability is not None
    assert line.probability.loss_error < line.verdict.loss_error / 2
    assert "(probability " in told.rows([line])[1][4]
    answers = table({"basic/reasoning": first(1000)}, {"W4": turned}, likelihood=0.1)
    partly = of_table(answers.assign(right_probability=answers["right_probability"].where(answers["item"] > 0)))
    (line,) = least.lines(Judge(partly, 0.2), partly.named(["reasoning"]))
    assert line.probability is None, "it is not known of all items"


def test_a_part_of_one_item_is_named():
    known = laboratory({"basic/reasoning": first(1, 1), "long/lines": first(9, 20)}, {"W4": {}})
    with pytest.raises(ValueError, match="basic: reasoning, W4 rtn: items: 1; an error needs at least two"):
        least.lines(Judge(known, 0.02), known.parts)


def test_a_row_tells_what_was_enough_and_what_the_next_step_needs():
    few = {"basic/reasoning": first(45, 64)}
    known = laboratory(few, {"W8": {}, "W4": {"basic/reasoning": first(43, 64)}})
    rows = told.rows(least.lines(Judge(known, 0.2), known.named(["basic"])))
    assert rows[0] == [*told.HEADER]
    group, part, kind, enough, loss, items, then = rows[1]
    assert (group, part, kind, enough, items) == ("basic", "reasoning", "weights", "W4, rtn", "64")
    assert loss.startswith("4.4 ± ")
    assert then == "none was measured"
    rows = told.rows(least.lines(Judge(known, 0.02), known.named(["basic"])))
    assert rows[1][3] == "-"
    assert "W8: not shown, needs about" in rows[1][-1]
