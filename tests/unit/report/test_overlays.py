import math
import re
from xml.etree import ElementTree

import pytest

from tests.unit.report.pictures import SVG, curves, differences, drawn_in, lines_in, overlaid, overlay, words_of

TAB10 = ("#1f77b4", "#ff7f0e")  # the first of matplotlib's colours


def test_a_setting_has_one_colour_a_thin_line_a_seed_and_a_thick_one_for_their_mean():
    """KL on a logarithmic scale: 1.05 / step between 1 / step and 1.1 / step."""
    lines = drawn_in(overlay(), TAB10[0])
    first, second, mean = [line for line in lines if line[0] < line[-1]]  # KL falls, so y, downwards, grows
    unit = (first[1] - first[0]) / math.log(2)
    assert [(first[0] - line[0]) / unit for line in (second, mean)] == pytest.approx(
        [math.log(1.1), math.log(1.05)], abs=0.01
    )
    widths = re.findall(rf"stroke: {TAB10[0]}(?:; stroke-opacity: [\d.]+)?; stroke-width: ([\d.]+)", overlay())
    assert {"0.7", "1.8"} <= {*widths}


def test_a_setting_with_one_seed_is_drawn_over_its_own_line():
    lines = drawn_in(overlaid(curves(["none"], seeds=1), ["kl"]), TAB10[0])
    assert lines[0] == lines[1]


def test_what_has_no_gradient_is_left_out_and_does_not_spoil_the_scale():
    """v's norm under a policy that freezes v is 0 or missing; the other policy's stays on a logarithmic scale."""
    table = curves(["none", "v", "ov"], seeds=1)
    norm = table["kl"].where(table["compared"] != "v", 0.0).where(table["compared"] != "ov")
    picture = overlaid(table.assign(**{"gradient_norm.v": norm}), ["gradient_norm.v"])
    alone = overlaid(table[table["compared"] == "none"].assign(**{"gradient_norm.v": norm}), ["gradient_norm.v"])
    shown = [line for line in drawn_in(picture, TAB10[0]) if line[0] < line[-1]]
    assert shown == [line for line in drawn_in(alone, TAB10[0]) if line[0] < line[-1]]
    assert drawn_in(picture, TAB10[1]) == []


def test_many_settings_have_as_many_colours():
    names = [f"s{i}" for i in range(14)]
    picture = overlaid(curves(names), ["kl"])
    assert len({*re.findall(r"stroke: (#[0-9a-f]{6}); stroke-opacity: 0.5", picture)}) == 14


def test_more_columns_than_fit_a_row_go_on_in_the_next():
    table = curves(["none"]).assign(**{f"gradient_norm.{role}": 1.0 for role in ("q", "k")})
    picture = overlaid(table, ["kl", "gradient_norm", "gradient_norm.q", "gradient_norm.k"])
    assert {"kl", "gradient_norm", "gradient_norm.q", "gradient_norm.k"} <= words_of(picture)
    assert 'height="388.8pt"' in picture  # two rows of 2.5 inches, and a margin


def test_differences_are_marked_at_their_height_by_group_and_the_scale_comes_from_what_is_sure():
    """Three pairs' interval, 0.5 to 1.5, spans one unit; that of two pairs reaches far out of the picture."""
    blue, orange = TAB10
    whiskers = sorted(abs(a - b) for a, b in [y for y in spans(differences(), blue) if len(y) == 2])
    unit, wide = whiskers[1], whiskers[-1]  # after the legend's
    o, v, *others = marked(differences(), blue)
    o_faster, *_ = marked(differences(), orange)
    assert len(others) == 3  # the second metric's, and the legend's
    assert [(o - o_faster) / unit, (v - o) / unit] == pytest.approx([1.0, 2.0], abs=0.02)
    assert wide > 3 * unit  # cut at the edge of the picture


def spans(picture: str, colour: str) -> list[list[float]]:
    """The y coordinates of each line drawn in a colour, whole."""
    return [[y for _, y in line] for line in lines_in(picture, colour)]


def marked(picture: str, colour: str) -> list[float]:
    """The heights (downwards) of the marks in a colour, in the order in which they are drawn, the legend's last."""
    nodes = [n for n in ElementTree.fromstring(picture).iter(f"{SVG}use") if f"fill: {colour}" in n.get("style", "")]
    return [float(node.get("y", "")) for node in nodes]


def test_long_names_of_settings_stand_below_whole_and_leave_the_panels_their_room(recwarn: pytest.WarningsRecorder):
    same = "batch=8 steps=56 lr=0.0001 scale=static scale_lr=1e-05 min_lr=0.1 train_embeddings=false"
    names = [f"freeze=ov@{i} {same}" for i in range(9)]
    wide = overlaid(curves(names, seeds=1), ["kl"] * 3)
    assert [str(warning.message) for warning in recwarn] == []
    assert {*names} <= words_of(wide)
    assert width(wide) > 0.9 * width(overlaid(curves(["none"], seeds=1), ["kl"] * 3))


def width(picture: str) -> float:
    """How far the first line in the first colour reaches from left to right."""
    places = [x for x, _ in lines_in(picture, TAB10[0])[0]]
    return max(places) - min(places)
