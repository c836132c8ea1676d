"""In-context learning: words of three kinds get arbitrary labels, and the examples alone say which.

Each word is asked without an example and after some; the difference is what the examples taught.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.evaluation.made.rows import Places, Row, distinct, placed

SHOTS = (0, 12)
KINDS = {
    "animals": "otter horse sheep goose eagle tiger mouse camel whale zebra rabbit donkey monkey spider turtle lizard",
    "tools": "hammer saw drill wrench shovel chisel pliers ladder screwdriver rake axe file nail bolt clamp trowel",
    "foods": "bread cheese soup rice pasta salad butter honey pancake sausage omelette yogurt cake noodles toast jam",
    "clothes": "shirt jacket sock scarf glove skirt coat sweater hat belt boot dress trousers vest apron sandal",
    "places": "London Paris Berlin Tokyo Rome Madrid Cairo Moscow Vienna Dublin Athens Lisbon Oslo Prague Delhi Boston",
    "numbers": "three seven twelve twenty forty ninety eleven fifteen eight sixty thirty nine two six five ten",
}
LABELS = ("blue", "left", "gold", "west", "star", "moon", "rock", "leaf", "door", "king", "wind", "fire")
COUNT = 3  # kinds in an item, and labels


@dataclass(frozen=True)
class _Lesson:
    """The words of the examples and the one asked, each with its label; the labels that there are."""

    examples: tuple[tuple[str, str], ...]
    word: str
    label: str
    labels: tuple[str, ...]


def label_mapping(rng: random.Random, items: int) -> list[Row]:
    """Which label has the word? Two rows a word: without examples and with them."""
    places, latest = Places(rng), Places(rng)
    rows: list[Row] = []
    lessons = distinct(_drawn(rng, latest), lambda lesson: (lesson.word, lesson.label, frozenset(lesson.labels)))
    cluster = 0
    while len(rows) < items:
        lesson = next(lessons)
        place = places.next(COUNT)
        choices = placed(lesson.label, [label for label in lesson.labels if label != lesson.label], place)
        for shots in SHOTS:
            examples = "".join(f"{word} -> {label}\n" for word, label in lesson.examples[:shots])
            rows.append(
                {
                    "context": f"{examples}{lesson.word} ->",
                    "choices": choices,
                    "answer": place,
                    "cluster": cluster,
                    "level": f"{shots} shots",
                }
            )
        cluster += 1
    return rows[:items]


def _drawn(rng: random.Random, latest: Places) -> Callable[[], _Lesson]:
    def draw() -> _Lesson:
        """As many examples of each kind, in any order but that each label is the latest equally often."""
        labels = dict(zip(rng.sample([*KINDS], COUNT), rng.sample(LABELS, COUNT), strict=True))
        shots = SHOTS[-1] // COUNT  # of a kind
        words = {kind: rng.sample(KINDS[kind].split(), shots + 1) for kind in labels}
        asked, *others = rng.sample([*labels], COUNT)
        word = words[asked].pop()
        final = [asked, *others][latest.next(COUNT)]
        examples = [(example, labels[kind]) for kind in labels for example in words[kind][:shots]]
        closing = examples.pop(next(i for i, (_, label) in enumerate(examples) if label == labels[final]))
        return _Lesson((*rng.sample(examples, len(examples)), closing), word, labels[asked], tuple(labels.values()))

    return draw
