"""Texts on which two tokenizers are held against each other: of many kinds, the same in each run."""
# ruff: noqa: RUF001, SIM905

import random
from collections.abc import Callable

from pipeline.runtimes.opened import Messages

COUNT, SEED = 200, 0
WORDS = (
    "the quick brown fox, doesn't it? Übermut naïve façade Straße Ελλάδα Привет мир שלום مرحبا नमस्ते สวัสดี 你好 世界 "
    "こんにちは 안녕하세요 tiếng Việt İstanbul ﬁne ½ ² Ⅷ № № ‘quoted’ “said” – — … €5 £3.20 50% #tag @name"
).split()
EMOJI = (
    "\U0001f642", "\u2603", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308",
)  # fmt: skip
SPACES = (" ", "  ", "\t", "\n", "\r\n", "\n\n", "    ", "\u00a0", "\u3000", "\u2009", " \n ", "\t\t")
CODE = (
    "def f(x: int) -> int:\n    return x ** 2  # squared\n", 'printf("%s\\n", a[i++]);', "<a href='x?y=1&z=2'>ok</a>",
    "SELECT * FROM t WHERE a <> 'b';", '{"key": [1, 2.5e-3, null]}', "x != y && !(a || b) ^ ~c", "$HOME/.cache/*.txt",
    "\\frac{a_1}{b^2}", "0xDEADBEEF", "if (a<b) {\n\treturn;\n}", "https://example.org/a_b-c?d=%20",
)  # fmt: skip
COMBINING = ("e\u0301", "a\u0308", "n\u0303", "o\u0302\u0323", "q\u0307", "\u0915\u094d\u0937", "Z\u0351\u036f")
BLOCKS = (
    (0x21, 0x7E),
    (0xA1, 0x24F),
    (0x370, 0x4FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1F64F),
)
Draw = Callable[[random.Random], str]


def _digits(draw: random.Random) -> str:
    number = str(draw.randrange(10 ** draw.randint(1, 12)))
    return draw.choice(
        (number, f"{draw.randrange(10**9):,}", f"{draw.random():.5f}", f"2{number}-0{number}", f"a{number}b")
    )


def _characters(draw: random.Random) -> str:
    first, last = draw.choice(BLOCKS)
    return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6)))


KINDS: tuple[Draw, ...] = (
    lambda draw: draw.choice(WORDS),
    lambda draw: draw.choice(WORDS).upper(),
    lambda draw: draw.choice(EMOJI),
    lambda draw: draw.choice(SPACES) * draw.randint(1, 3),
    lambda draw: draw.choice(CODE),
    lambda draw: draw.choice(COMBINING) * draw.randint(1, 2),
    lambda draw: draw.choice("'s 't 're 've 'm 'll 'd".split()),
    _digits,
    _characters,
)


def texts(special: list[str]) -> list[str]:
    """COUNT texts; some hold special tokens, by their names.

    Args:
        special: the tokenizer's special tokens.
    """
    draw, made = random.Random(SEED), dict[str, None]()
    while len(made) < COUNT:
        parts = [draw.choice(KINDS)(draw) for _ in range(draw.randint(1, 12))]
        joined = draw.choice(("", " ")).join(parts)
        if special and len(made) % 8 == 0:
            joined = draw.choice(special) + joined + draw.choice(special)
        made[joined] = None
    return [*made]


def conversations() -> list[Messages]:
    """Conversations of one turn and of several, with and without instructions, as a chat template renders them."""
    question, answer = {"role": "user", "content": "Wie heißt du?"}, {"role": "assistant", "content": "I am\na model."}
    system = {"role": "system", "content": "Answer in one word. 🙂"}
    return [[question], [system, question], [question, answer, {"role": "user", "content": " 1 + 1 = ?  "}]]
