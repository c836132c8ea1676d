"""What each item scores, by which a loss is judged: whether the answer is right, the probability of the right choice,
and, for self-calibration, the skill of the probabilities. More is better, and guessing has its chance.

Skill is 1 less the Brier score over that of equal probabilities: 1 is sure and right, 0 is what guessing has, and being
sure and wrong is below 0.
"""

import numpy as np
import pandas as pd
from scipy import special

from pipeline.evaluation import tasks

ACCURACY, PROBABILITY, SKILL = "accuracy", "probability of the right choice", "Brier skill"


def of_answers(answers: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each score of each item, float64 [items]; nan where it is not known.

    Args:
        answers: columns correct, right_probability, log_likelihoods (nats, of each choice), answer (index of the right
            choice, -1: not known).
    """
    return {
        ACCURACY: answers["correct"].to_numpy(float),
        PROBABILITY: answers["right_probability"].to_numpy(float),
        SKILL: _skill(answers),
    }


def chance(answers: pd.DataFrame) -> np.ndarray:
    """What guessing scores of accuracy and probability, float64 [items]: as the table of tasks has it."""
    asked = zip(answers["task"], answers["log_likelihoods"], strict=True)
    return np.array([tasks.chance(task, len(choices)) for task, choices in asked], dtype=float)


def _skill(answers: pd.DataFrame) -> np.ndarray:
    """In rounds over items with the same number of choices."""
    choices, right = (answers["log_likelihoods"].map(len).to_numpy(), answers["answer"].to_numpy())
    skill = np.full(len(answers), np.nan)
    for count in np.unique(choices[choices > 1]):
        (places,) = np.nonzero((choices == count) & (right >= 0))
        if len(places):
            probabilities = _probabilities(answers.iloc[places])
            hit = right[places, None] == np.arange(count)
            skill[places] = 1 - np.square(probabilities - hit).sum(axis=1) / (1 - 1 / count)
    return skill


def _probabilities(answers: pd.DataFrame) -> np.ndarray:
    """The model's own of each choice, float64 [items, choices]: the softmax of its likelihoods, whatever ranks them."""
    return np.asarray(special.softmax(np.stack(answers["log_likelihoods"].tolist()).astype(float), axis=1))
