import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest

from pipeline.artifacts import contract
from pipeline.report import page
from pipeline.report.answers import Answer

HASH = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
CELL = {
    "variant": "RTN",
    "verdict": "within",
    "mark": "within",
    "needs": "",
    "loss": "loss 1.0 ± 0.2 %",
    "flips": "3 gained, 9 lost",
}
CONTENT: dict[str, Any] = {
    "title": "INT4 <without> data",
    "subtitle": "tiny & random",
    "answers": [Answer("Is it good?", "KL 0.2", "It works.")],
    "gap_note": "",
    "size_plot": '<svg id="sizes"></svg>',
    "size_note": "nearer is better",
    "dtypes": {"distill": "bfloat16", "evaluate@student": "float32"},
    "scores": [["", "perplexity"], ["teacher", "20.00"], ["student", "26.00"]],
    "protocol": "windows",
    "proofs": [["", "runtime"], ["student", "a runtime 1.0"]],
    "proof_note": "bit for bit",
    "kv_cache": {
        "plot": '<svg id="kv_cache"></svg>',
        "rows": [["", "tokens", "float16"], ["this model", "512", "22.5 MiB"]],
        "note": "to the byte",
    },
    "groups": [["", "basic %"], ["teacher (float)", "61.0 ± 2.0"], ["student", "58.0 ± 2.0"]],
    "task_plot": '<svg id="tasks"></svg>',
    "benchmark_note": "note",
    "fidelity": {
        "rows": [["", "mean", "99 %"], ["RTN", "0.2", "2.5"], ["student", "0.1", "1.5"]],
        "note": "quantiles",
        "dialogues": [["", "KL, first answer"], ["RTN", "0.3"], ["student", "0.2"]],
        "dialogues_note": "answers",
        "plot": '<svg id="position"></svg>',
        "plot_note": "positions",
    },
    "levels": None,
    "margin": {
        "title": "Is it as good?",
        "told": ["RTN: beyond on 1 of 1 task", "student: within on 1 of 1 task"],
        "variants": ["RTN", "student"],
        "lines": [
            {
                "head": "basic: reasoning",
                "task": "piqa",
                "score": "accuracy",
                "facts": "teacher 70 %",
                "cells": [
                    {**CELL, "verdict": "not shown", "mark": "not-shown", "needs": "needs about 940 more items"},
                    {**CELL, "variant": "student", "flips": ""},
                ],
            }
        ],
        "note": "how to read it",
    },
    "training_text": "text",
    "training_plot": '<svg id="training"></svg>',
    "sweeps": ["ablation", "sizes"],
    "laboratory": None,
    "signals": {
        "freeze_text": "o lies above",
        "claim": [["", "o : q, k"], ["ptq", "0.96"]],
        "claim_plot": '<svg id="claim"></svg>',
        "flow": [("caption one", '<svg id="flow"></svg>')],
        "distributions": [("caption two", '<svg id="kurtosis"></svg>')],
        "cost_text": "dearest layer 7",
        "cost_plot": '<svg id="cost"></svg>',
        "shapes_plot": '<svg id="shapes"></svg>',
        "shapes_note": "beside",
        "plan": {"text": "5 bits", "rows": [["layer", "31"], ["down", "8"]], "plot": '<svg id="plan"></svg>'},
    },
    "errors": [["role", "output"], ["q", "20.1"]],
    "lineage": [{"name": "corpus", "sha256": HASH, "facts": "length: 3"}],
    "params": "seed: 0",
    "libraries": {"torch": "2.0"},
}


SWEEP = {
    "name": "ablation",
    "rows": [["setting", "kl"], ["qkvo", "0.175"]],
    "note": "9 of 27 points",
    "origin": "code has changed",
    "pictures": [('<svg id="overlay"></svg>', "a colour a setting")],
}
SVGS = ("tasks", "training", "sizes", "kv_cache", "claim", "flow", "kurtosis", "cost", "shapes", "plan")


class Resources(HTMLParser):
    """Every address that the page would fetch, and every element it opens and closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "xlink:href")
        ]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


def test_the_page_fetches_nothing_but_usage_js_beside_it():
    text = page.render(**CONTENT)
    assert Resources(text).fetched == ["sweeps.html", "usage.js"]
    assert not re.search(r"https?://|//cdn|@import|url\(|fetch\(|XMLHttpRequest", text)


def test_the_page_is_well_formed():
    parsed = Resources(page.render(**CONTENT))
    assert parsed.unbalanced == []
    assert parsed.open == []


def test_the_same_content_gives_the_same_bytes():
    assert page.render(**CONTENT) == page.render(**dict(reversed(CONTENT.items())))


def test_text_is_escaped_and_pictures_are_not():
    text = page.render(**CONTENT)
    assert "INT4 &lt;without&gt; data" in text
    assert "<without>" not in text
    assert "tiny &amp; random" in text
    assert all(f'<svg id="{name}"></svg>' in text for name in SVGS)


def test_everything_given_is_shown():
    text = page.render(**CONTENT)
    signals = ("caption one", "caption two", "o lies above", "0.96", "dearest layer 7", "5 bits", ">31<", ">8<")
    screen = (
        "Is it good?",
        "KL 0.2",
        "nearer is better",
        "ablation, sizes",
        "distill bfloat16, evaluate@student float32.",
    )
    for part in (*signals, *screen, "It works.", "20.00", "26.00", "20.1", HASH, "length: 3", "seed: 0", "torch==2.0"):
        assert part in text


def test_verdicts_have_a_cell_a_variant_with_what_is_needed_and_lost():
    text = page.render(**CONTENT)
    told = ("RTN: beyond on 1 of 1 task; student: within", "piqa, accuracy", "teacher 70 %", "how to read it")
    for part in (*told, "loss 1.0 ± 0.2 %", '<b class="not-shown">not shown</b> (needs about 940 more items)'):
        assert part in text
    assert text.count('data-variant="') == 2
    assert text.count("3 gained, 9 lost") == 1
    assert "()" not in text[text.index("<body>") : text.index("how to read it")]


def test_what_a_model_has_not_is_left_out():
    """No claim without q, k, v and o; no costs and no plan without a quantized variant."""
    bare = CONTENT["signals"] | {"claim_plot": "", "cost_plot": "", "plan": None}
    text = page.render(**CONTENT | {"signals": bare})
    assert not [name for name in ("claim", "cost", "plan") if f'id="{name}"' in text]
    assert "mixed-precision" not in text
    parsed = Resources(text)
    assert (parsed.unbalanced, parsed.open) == ([], [])


def test_without_sweeps_there_is_no_section_on_them():
    text = page.render(**CONTENT | {"sweeps": []})
    assert "Sweeps" not in text
    parsed = Resources(text)
    assert (parsed.unbalanced, parsed.open) == ([], [])


@pytest.mark.parametrize("name", CONTENT)
def test_content_that_is_not_given_is_an_error(name: str):
    with pytest.raises(jinja2.UndefinedError, match=name):
        page.render(**{key: value for key, value in CONTENT.items() if key != name})


@pytest.mark.parametrize("name", CONTENT["signals"])
def test_a_part_of_the_signals_that_is_not_given_is_an_error(name: str):
    part = {key: value for key, value in CONTENT["signals"].items() if key != name}
    with pytest.raises(jinja2.UndefinedError, match=name):
        page.render(**CONTENT | {"signals": part})


def test_the_last_row_of_the_scores_is_marked_as_ours():
    marked = re.findall(r'<tr class="ours"><td>(\w+)</td>', page.render(**CONTENT))
    assert marked[0] == "student"
    assert "teacher" not in marked


def test_a_gap_inside_its_error_is_told_below_the_scores():
    assert "inside its own error" in page.render(**CONTENT | {"gap_note": "RTN's gap is inside its own error"})


def sweeps_page(**changes: Any) -> str:
    content: dict[str, Any] = {"title": "Sweeps", "subtitle": "tiny", "sweeps": [SWEEP], "left_out": ["theirs"]}
    return page.render(page.TEMPLATES / "sweeps_page.html", **content | changes)


def test_sweeps_have_a_page_of_their_own():
    text = sweeps_page()
    told = ("9 of 27 points", "code has changed", "a colour a setting", "from another model: theirs")
    for part in ("ablation", ">qkvo<", ">0.175<", '<svg id="overlay"></svg>', *told):
        assert part in text
    parsed = Resources(text)
    assert (parsed.unbalanced, parsed.open, parsed.fetched) == ([], [], ["index.html"])
    bare = sweeps_page(sweeps=[], left_out=[])
    assert "no sweep of this model" in bare
    assert "another model" not in bare


def test_the_lineage_gives_each_artifact_by_the_hash_of_its_manifest(tmp_path: Path):
    with contract.writing(tmp_path / "corpus", contract.CORPUS) as draft:
        (draft.path / "tokens").write_text("abc")
        draft.facts = {"length": 3, "loss": 0.123456789, "frozen": ["a", "b"]}
    (tmp_path / "ptq.json").write_text("abc")
    artifacts = page.lineage({"data/corpus": tmp_path / "corpus", "scores/ptq": tmp_path / "ptq.json"})
    assert artifacts == [
        {
            "name": "data/corpus",
            "sha256": contract.fingerprint(tmp_path / "corpus"),
            "facts": "length: 3, loss: 0.1235",
        },
        {"name": "scores/ptq", "sha256": HASH, "facts": ""},
    ]
