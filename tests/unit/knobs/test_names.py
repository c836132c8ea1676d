import pytest

from pipeline.knobs.freezing import FREEZE_POLICIES
from pipeline.knobs.names import look_up, unknown

TABLE = {"none": 0, "ov": 1, "qkvo": 2}


def test_a_name_of_the_table_is_looked_up():
    assert look_up("freeze policy", "ov", TABLE) == 1


def test_a_wrong_name_is_answered_with_the_nearest_and_with_all():
    message = "unknown freeze policy 'qkv'; did you mean 'qkvo'? available: none, ov, qkvo"
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        look_up("freeze policy", "qkv", TABLE)


def test_a_name_near_to_none_gets_no_suggestion():
    assert unknown("sampler", "zzzzzz", TABLE) == "unknown sampler 'zzzzzz'; available: none, ov, qkvo"


def test_a_name_that_is_no_string_is_answered_too():
    assert unknown("value", 5, ["4", "8"]) == "unknown value 5; available: 4, 8"


def test_available_names_may_come_from_an_iterator():
    assert unknown("value", "grdy", iter(["greedy", "hybrid"])).endswith("available: greedy, hybrid")


def test_letters_in_another_order_are_understood():
    """The example of the design page."""
    with pytest.raises(ValueError, match="unknown freeze policy 'vo'; did you mean 'ov'"):
        look_up("freeze policy", "vo", FREEZE_POLICIES)
