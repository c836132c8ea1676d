"""Understanding: pairs of continuations of which one breaks a rule of English grammar. The rule is the level.

Both continuations have the same words, or words that are right equally often. In `agreement` no word gives the answer
away; in `word_order` the order of the words, or what is likely, is the question.
"""

import random
from collections.abc import Iterator
from itertools import product

from pipeline.evaluation.made.rows import Places, Row, placed
from pipeline.evaluation.made.words import MEN, NAMES, WOMEN

Pair = tuple[str, str, str]
"""What both begin with, the right continuation, and the wrong one."""

PEOPLE = (
    ("teacher", "teachers"), ("farmer", "farmers"), ("doctor", "doctors"), ("singer", "singers"),
    ("driver", "drivers"), ("painter", "painters"), ("student", "students"), ("nurse", "nurses"), ("baker", "bakers"),
    ("pilot", "pilots"), ("guard", "guards"), ("lawyer", "lawyers"),
)  # fmt: skip
THINGS = (
    ("key", "keys"), ("picture", "pictures"), ("letter", "letters"), ("book", "books"), ("cup", "cups"),
    ("bottle", "bottles"), ("chair", "chairs"), ("ticket", "tickets"), ("lamp", "lamps"), ("coat", "coats"),
    ("knife", "knives"), ("shelf", "shelves"),
)  # fmt: skip
BESIDE = ("near", "behind", "next to", "in front of", "across from")
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
ENDS = {"is": "very tired", "was": "very tired", "has": "gone home"}
BOUGHT = ("bought", "painted", "lost", "sold", "found", "cleaned", "borrowed", "dropped", "wanted", "washed")
THESE = (("this", 0), ("that", 0), ("these", 1), ("those", 1))
LOOKS = ("rather old and ugly", "very big but cheap", "heavy and quite dirty", "small, simple and clean")
HURT = ("hurt", "blamed", "introduced", "described", "trusted", "admired")
WHEN = (
    "Yesterday", "Last week", "In the morning", "At noon", "After the storm", "Before dinner", "On Sunday",
    "In the spring", "Late at night", "That day", "Early on", "A year ago",
)  # fmt: skip
ROLES = (
    ("baked", "cake", "cook"), ("caught", "thief", "guard"), ("chewed", "bone", "dog"), ("cut", "grass", "gardener"),
    ("driven", "bus", "student"), ("eaten", "carrot", "rabbit"), ("fed", "baby", "nurse"),
    ("fixed", "engine", "mechanic"), ("flown", "plane", "pilot"), ("healed", "patient", "doctor"),
    ("hidden", "nut", "squirrel"), ("lit", "candle", "girl"), ("milked", "cow", "farmer"),
    ("painted", "fence", "boy"), ("played", "piano", "singer"), ("read", "letter", "lawyer"),
    ("ridden", "horse", "king"), ("sewn", "dress", "tailor"), ("sold", "bread", "baker"),
    ("taught", "class", "teacher"), ("thrown", "ball", "child"), ("washed", "shirt", "maid"),
    ("woven", "web", "spider"), ("written", "book", "poet"),
)  # fmt: skip
"""What was done to what, and by whom; the other way round it makes no sense."""
EVENTS = (
    ("opened the door", "walked into the room"), ("cooked the soup", "ate the soup"),
    ("wrote the letter", "mailed the letter"), ("peeled the apple", "ate the apple"),
    ("bought the ticket", "got on the train"), ("woke up", "got out of bed"), ("put on the shoes", "left the house"),
    ("filled the glass", "drank the water"), ("found a pen", "signed the paper"),
    ("unlocked the car", "drove to work"), ("washed the dishes", "dried the dishes"),
    ("picked the grapes", "made the wine"), ("planted the seeds", "picked the flowers"),
    ("packed the suitcase", "went to the airport"), ("dug a hole", "planted the tree"),
    ("turned on the lamp", "read the book"), ("mixed the dough", "baked the bread"),
    ("caught the fish", "fried the fish"), ("lit the stove", "boiled the water"),
    ("wrapped the gift", "gave away the gift"), ("learned to walk", "learned to run"),
    ("opened the box", "took out the coin"), ("chopped the wood", "burned the wood"),
    ("got a job", "retired from the job"),
)  # fmt: skip
"""What comes earlier, and what later."""


def agreement(rng: random.Random, items: int) -> list[Row]:
    """Which continuation agrees in number or gender? Two choices."""
    return _rows(rng, items, AGREEMENT)


def word_order(rng: random.Random, items: int) -> list[Row]:
    """Which continuation has its words in order? Two choices of the same words."""
    return _rows(rng, items, WORD_ORDER, alike=True)


def _rows(rng: random.Random, items: int, pairs: dict[str, list[Pair]], alike: bool = False) -> list[Row]:
    """The rules in turn; a cluster a row, or, where it is alike, a cluster for all rows with the same continuations."""
    places = Places(rng)
    shuffled = {rule: rng.sample(made, len(made)) for rule, made in pairs.items()}
    rows: list[Row] = []
    clusters: dict[str | int, int] = {}
    for number in range(items):
        rule = [*pairs][number % len(pairs)]
        context, right, wrong = shuffled[rule][number // len(pairs)]
        place = places.next(2, rule)
        rows.append(
            {
                "context": context,
                "choices": placed(right, [wrong], place),
                "answer": place,
                "cluster": clusters.setdefault(right if alike else number, len(clusters)),
                "level": rule,
            }
        )
    return rows


def _verbs() -> Iterator[Pair]:
    """Two nouns of the other number stand between subject and verb."""
    for subject, other, thing, where, verbs, many in product(PEOPLE, PEOPLE, THINGS, BESIDE, VERBS, (0, 1)):
        if subject != other:
            end = ENDS[verbs[0]]
            context = f"The {subject[many]} with the {thing[1 - many]} {where} the {other[1 - many]}"
            yield context, f"{verbs[many]} {end}.", f"{verbs[1 - many]} {end}."


def _determiners() -> Iterator[Pair]:
    """Adjectives, which have no number, stand between determiner and noun."""
    for name, bought, (determiner, many), looks, thing in product(NAMES[:12], BOUGHT, THESE, LOOKS, THINGS):
        yield f"{name} {bought} {determiner} {looks}", f"{thing[many]} yesterday.", f"{thing[1 - many]} yesterday."


def _reflexives() -> Iterator[Pair]:
    """A person of another number or gender is named first, and cannot be meant."""
    for name, people, hurt in product(NAMES, PEOPLE, HURT):
        alone = "herself" if name in WOMEN else "himself"
        yield f"{name} said that the {people[1]} {hurt}", "themselves.", f"{alone}."
        yield f"The {people[1]} said that {name} {hurt}", f"{alone}.", "themselves."
    for (women, men), hurt, she in product(product(WOMEN, MEN), HURT, (True, False)):
        first, second = (men, women) if she else (women, men)
        own, other = ("herself", "himself") if she else ("himself", "herself")
        yield f"{first} said that {second} {hurt}", f"{own}.", f"{other}."


def _particles() -> Iterator[Pair]:
    for name, (verb, particle), (it, why) in product(
        NAMES,
        (("picked", "up"), ("put", "down"), ("threw", "away"), ("turned", "off"), ("gave", "back"), ("took", "out")),
        (("it", "at once"), ("them", "at once"), ("it", "again"), ("them", "again"), ("it", "too late")),
    ):
        yield name, f"{verb} {it} {particle} {why}.", f"{verb} {particle} {it} {why}."


def _questions() -> Iterator[Pair]:
    """A question inside a sentence has its verb behind the subject."""
    for name, asked, word, (noun, nouns), many in product(
        NAMES, ("does not know", "cannot say", "wants to know"), ("where", "whose", "how old"), THINGS, (0, 1)
    ):
        subject, verb = f"the {nouns if many else noun}", "are" if many else "is"
        yield f"{name} {asked} {word}", f"{subject} {verb}.", f"{verb} {subject}."


def _roles() -> Iterator[Pair]:
    """Who does it to whom, in the passive, where the one that it is done to comes first."""
    for when, (done, subject, doer) in product(WHEN, ROLES):
        yield f"{when} the", f"{subject} was {done} by the {doer}.", f"{doer} was {done} by the {subject}."


def _events() -> Iterator[Pair]:
    for name, (earlier, later) in product(NAMES, EVENTS):
        yield f"{name} first", f"{earlier} and then {later}.", f"{later} and then {earlier}."


AGREEMENT = {"verb": [*_verbs()], "determiner": [*_determiners()], "reflexive": [*_reflexives()]}
WORD_ORDER = {
    "particle": [*_particles()],
    "question": [*_questions()],
    "role": [*_roles()],
    "event": [*_events()],
}
MOST_AGREEMENT, MOST_WORD_ORDER = (
    len(pairs) * min(len(made) for made in pairs.values()) for pairs in (AGREEMENT, WORD_ORDER)
)
