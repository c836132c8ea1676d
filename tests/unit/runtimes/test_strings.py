"""The texts that tokenizers are held against."""

import unicodedata

from pipeline.runtimes import strings
from tests import tiny


def test_texts_are_the_same_in_each_run_and_of_all_kinds():
    texts = strings.texts(["<s>", "</s>"])
    assert texts == strings.texts(["<s>", "</s>"])
    assert len({*texts}) == strings.COUNT == len(texts)
    together = "".join(texts)
    categories = {unicodedata.category(character) for character in together}
    assert {"Lu", "Ll", "Lo", "Mn", "Nd", "No", "Sm", "So", "Zs", "Cc", "Cf"} <= categories
    for part in ("\r\n", "\u200d", "e\u0301", "def f(", "<s>", "\u3000"):
        assert part in together
    assert all(text.encode() for text in texts), "no lone surrogates"


def test_they_tell_a_tokenizer_with_a_merge_from_one_without():
    texts = strings.texts([])
    ours, other = tiny.tokenizer(), tiny.merging_tokenizer()
    differing = [text for text in texts if ours(text)["input_ids"] != other(text)["input_ids"]]
    assert 0 < len(differing) < len(texts)


def test_conversations_have_turns_and_instructions():
    roles = [[message["role"] for message in messages] for messages in strings.conversations()]
    assert roles == [["user"], ["system", "user"], ["user", "assistant", "user"]]
