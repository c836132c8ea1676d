"""Openings of chat templates against what transformers makes of whole conversations."""

import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.corpus import conversation
from tests import tiny

PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}"
ENDS_NO_QUESTION = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
SYSTEM = "{{ bos_token }}system: be kind{{ eos_token }}" + PLAIN.removeprefix("{{ bos_token }}")
DATED = "Today is {{ strftime_now('%d %b %Y') }}. " + PLAIN


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = tiny.tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize(("template", "ends"), [(PLAIN, 1), (ENDS_NO_QUESTION, 0), (SYSTEM, 2)])
def test_an_opening_is_what_every_conversation_begins_with(template: str, ends: int):
    made = tokenizer(template)
    eos = [made.eos_token_id]
    opening = conversation.opening(made, eos)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    whole = made.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert opening.tokens == whole[: len(opening.tokens)]
    assert made.decode(whole[len(opening.tokens) :]).startswith("Why?")
    assert opening.ends == ends
    assert whole.count(made.eos_token_id) == ends + 1  # one more ends the answer


def test_a_first_token_that_is_also_the_end_is_not_counted():
    made = tokenizer("{{ eos_token }}" + PLAIN.removeprefix("{{ bos_token }}"))
    assert conversation.opening(made, [made.eos_token_id]).ends == 1


def test_the_date_is_the_same_on_every_day():
    made = tokenizer(DATED)
    said = made.decode(conversation.opening(made, [2]).tokens)
    assert said.startswith("Today is 26 Jul 2024.")
    today = made.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert datetime.date.today().strftime("%d %b %Y") in today


def test_without_a_template_or_with_one_that_says_nothing_first_there_is_none():
    assert conversation.opening(tokenizer(None), [2]) is None
    assert conversation.opening(tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"), [2]) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no roles here') }}", "chat template fails: no roles here; synthesize.chat: 0"),
        ("{{ bos_token }}{{ messages[0]['content'] | length }}", "leaves out what is said; synthesize.chat: 0"),
    ],
)
def test_a_template_that_fails_is_refused_with_the_way_out(template: str, message: str):
    with pytest.raises(ValueError, match=message):
        conversation.opening(tokenizer(template), [2])
