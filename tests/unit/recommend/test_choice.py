"""One scheme for what is asked for."""

from pipeline.recommend import choice, told
from pipeline.recommend.judged import Judge
from tests.unit.recommend.made_answers import Rights, first, laboratory

TEACHER = {"basic/reasoning": first(1000), "long/lines": first(900)}
WORSE: Rights = {"long/lines": first(800)}
KL = {"W8A8KV8 rtn": 0.1, "W4A8KV8 rtn": 0.2, "W8A8KV4 rtn": 0.3, "W4A8KV4 rtn": 0.4}


def chosen(points: dict, names: list[str], kind: str | None = None, kl: dict | None = None, margin: float = 0.02):
    judge = Judge(laboratory(TEACHER, points, kl), margin)
    parts = judge.laboratory.named(names)
    made = choice.choose(judge, parts, kind)
    return made, told.choice_lines(judge, made, parts)


def test_the_fewest_bits_that_are_shown_with_a_line_to_paste_and_the_evidence():
    points = {"W8A8KV8": {}, "W4A8KV8": {}, "W8A8KV4": WORSE, "W4A8KV4": WORSE, "W2": WORSE}
    made, lines = chosen(points, ["basic", "long"], kl=KL)
    assert made.shown
    assert (made.tested, made.candidates) == (3, 4)
    assert lines[0] == "scheme: W4A8KV8"
    assert "least KL to the teacher first" in " ".join(lines[1:3])
    assert "With it: calibrate.method: rtn, calibrate.rotation: none" in lines
    assert lines[-1].split()[:2] == ["long:", "lines"]
    assert "0.0 ± 0.0 %  within" in lines[-1]
    only, _ = chosen(points, ["basic"], kl=KL)
    assert only.point is not None
    assert only.point.scheme == "W4A8KV4", "where nothing is lost with it"


def test_what_comes_behind_a_failure_is_not_claimed():
    """W8A8KV4 fails, and its KL is less than W4A8KV8's: that one was not reached."""
    points = {"W8A8KV8": {}, "W4A8KV8": {}, "W8A8KV4": WORSE}
    made, _ = chosen(points, ["long"], kl={**KL, "W8A8KV4 rtn": 0.15})
    assert made.point is not None
    assert made.point.scheme == "W8A8KV8"
    made, _ = chosen(points, ["long"])
    assert made.point is not None
    assert made.point.scheme == "W8A8KV8", "without a KL the most bits come first"


def test_a_kind_has_schemes_of_its_own():
    points = {"W8": {}, "W4": {}, "W8A8": {}, "W8A4": {}, "W8KV4": {}, "W8A8KV8": {}}
    schemes = {kind: chosen(points, [], kind)[0].point for kind in ("weights", "activations", "kv", None)}
    assert {kind: point.scheme for kind, point in schemes.items() if point} == {
        "weights": "W4",
        "activations": "W8A4",
        "kv": "W8KV4",
        None: "W8A8KV8",
    }
    alone, _ = chosen({"W8": {}, "W4A8": {}}, [])
    assert alone.point is not None
    assert alone.point.scheme == "W4A8", "where no scheme has all three"


def test_where_none_is_shown_the_fewest_bits_that_are_not_refuted_are_marked():
    slightly = {"long/lines": first(885)}
    points = {"W8A8KV8": slightly, "W4A8KV8": slightly, "W4A4KV4": WORSE}
    made, lines = chosen(points, ["long"])
    assert not made.shown
    assert lines[0] == "scheme: W4A8KV8   # NOT SHOWN to lose less than 2 %"
    assert "fewest bits of those that are not shown to lose more" in lines[1]
    made, lines = chosen({"W4A4KV4": WORSE}, ["long"])
    assert made.point is None
    assert lines == ["None of 1 schemes will do: each is shown to lose more than 2 % somewhere."]
    made, lines = chosen({"W4": {}}, ["long"], "kv")
    assert lines == ["No such scheme was measured; see the sweep's points."]
