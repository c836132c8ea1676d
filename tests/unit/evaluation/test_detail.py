"""Scores of tables of tokens, against numpy and by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import detail, items


def table(text: str, kl: list[list[float]], same: list[list[bool]] | None = None, turn: int = 0) -> pd.DataFrame:
    """Documents' tokens, from position 1."""
    return items.tokens(
        {
            "text": text,
            "document": d,
            "position": p,
            "turn": turn,
            "kl": value,
            "same": same[d][p - 1] if same else True,
        }
        for d, values in enumerate(kl)
        for p, value in enumerate(values, 1)
    )


def draws(*lengths: int) -> list[list[float]]:
    random = np.random.default_rng(0)
    return [random.exponential(size=length).astype(np.float32).tolist() for length in lengths]


def test_means_are_over_documents_and_quantiles_over_tokens():
    kl = draws(300, 20, 77)
    scores = detail.scores(table("held_out", kl))
    means = [np.mean(values) for values in kl]
    whole = np.concatenate([np.array(values) for values in kl])
    assert scores["kl"] == pytest.approx(np.mean(means))
    assert scores["kl.stderr"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(3))
    assert scores["kl.median"] == pytest.approx(np.median(whole))
    assert scores["kl.p99"] == pytest.approx(np.percentile(whole, 99))
    assert scores["kl.p999"] == pytest.approx(np.percentile(whole, 99.9))
    assert scores["kl.max"] == whole.max()
    assert (scores["top1"], scores["top1.stderr"]) == (1.0, 0.0)


def test_bands_end_below_powers_of_four():
    assert [*detail.bands(15)] == [(1, 15)]
    assert [*detail.bands(16)] == [(1, 15), (16, 63)]
    assert [*detail.bands(4095)] == [(1, 15), (16, 63), (64, 255), (256, 1023), (1024, 4095)]


def test_kl_by_position_is_a_mean_over_the_documents_that_reach_it():
    kl = draws(300, 20, 77)
    scores = detail.scores(table("held_out", kl))
    first = [np.mean(values[:15]) for values in kl]
    assert scores["kl.at.15"] == pytest.approx(np.mean(first))
    assert scores["kl.at.15.stderr"] == pytest.approx(np.std(first, ddof=1) / np.sqrt(3))
    assert scores["kl.at.255"] == pytest.approx(np.mean([np.mean(kl[0][63:255]), np.mean(kl[2][63:])]))
    assert scores["kl.at.1023"] == pytest.approx(np.mean(kl[0][255:]))
    assert "kl.at.1023.stderr" not in scores
    assert "kl.at.4095" not in scores


def test_a_long_text_has_scores_of_its_own_and_no_error():
    held_out, long = draws(30, 40), draws(100)
    scores = detail.scores(pd.concat([table("held_out", held_out), table("long", long)]))
    assert scores["long.kl"] == pytest.approx(np.mean(long[0]))
    assert scores["long.kl.at.63"] == pytest.approx(np.mean(long[0][15:63]))
    assert scores["kl"] == pytest.approx(np.mean([np.mean(values) for values in held_out]))
    assert not [name for name in scores if name.startswith("long.") and name.endswith("stderr")]


def test_dialogues_are_scored_by_turn_and_by_where_they_leave():
    one = [[True, True, False, True], [True, True, True, True], [False, True, True, True]]
    two = [[True, False, False, True], [True, True, True, False], [True, True, True, True]]
    kl = draws(4, 4, 4)
    first, second = table("dialogue", kl, one, 1), table("dialogue", [[2 * x for x in row] for row in kl], two, 2)
    second["position"] += 9
    scores = detail.scores(pd.concat([second, first]).sample(frac=1, random_state=0))
    assert scores["dialogue.kl.turn1"] == pytest.approx(np.mean(kl))
    assert scores["dialogue.kl.turn2"] == pytest.approx(2 * np.mean(kl))
    assert scores["dialogue.kl"] == pytest.approx(1.5 * np.mean(kl))
    assert scores["dialogue.top1"] == pytest.approx(19 / 24)
    assert scores["dialogue.top1.turn1"] == pytest.approx(10 / 12)
    kept = [[2, 4, 0], [1, 3, 4]]  # by hand
    assert scores["dialogue.divergence"] == pytest.approx(np.mean(kept))
    by_dialogue = np.mean(kept, axis=0)
    assert scores["dialogue.divergence.stderr"] == pytest.approx(np.std(by_dialogue, ddof=1) / np.sqrt(3))
    assert scores["dialogue.divergence.median"] == 2.5
    assert scores["dialogue.divergence.never"] == pytest.approx(2 / 6)
    assert "kl" not in scores


def test_of_no_tokens_there_is_nothing():
    assert detail.scores(items.tokens([])) == {}
