import pytest

from pipeline.evaluation import turns
from tests import tiny

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def with_template(template: str):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_the_pieces_around_two_turns_are_the_templates_own():
    tokenizer = with_template(CHAT)
    frame = turns.of(tokenizer)
    talk = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
    ]
    whole = tokenizer.apply_chat_template(talk, tokenize=True, add_generation_prompt=True, return_dict=False)
    answer = tokenizer("Yes.", add_special_tokens=False)["input_ids"]
    assert frame.first(tokenizer, "One?") + answer + frame.second(tokenizer, "Two?") == whole
    first = tokenizer.apply_chat_template(talk[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert frame.first(tokenizer, "One?") == first
    assert frame.template


def test_without_a_template_turns_are_plain_words():
    tokenizer = tiny.tokenizer()
    frame = turns.of(tokenizer)
    assert not frame.template
    text = tokenizer.decode(frame.first(tokenizer, "One?") + frame.second(tokenizer, "Two?"))
    assert text == "User: One?\nAssistant:\n\nUser: Two?\nAssistant:"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no second turn') }}", "fails on two turns: no second turn"),
        ("{% for m in messages[:1] %}{{ m['content'] }}{% endfor %}", "leaves out what is said"),
    ],
)
def test_a_template_that_fails_or_leaves_words_out_is_refused_with_the_way_out(template: str, problem: str):
    with pytest.raises(ValueError, match=f"{problem}.*references.dialogues: 0"):
        turns.of(with_template(template))
