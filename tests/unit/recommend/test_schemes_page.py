"""The page of all points."""

import math
from pathlib import Path

import pandas as pd
import pytest

from pipeline.recommend import schemes_page
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import load
from tests.unit.recommend.made_answers import first, table

TEACHER = {"basic/reasoning": first(1000), "long/lines": first(900)}


def test_a_table_for_each_thing_that_is_quantized(tmp_path: Path):
    table(TEACHER, {"W4": {"long/lines": first(800)}, "W8A8": {}, "W8A8KV8": {}}).to_parquet(
        tmp_path / "answers.parquet"
    )
    judge = Judge(load(tmp_path / "answers.parquet"), 0.02)
    with pytest.raises(ValueError, match=r"points\.csv does not exist"):
        schemes_page.write(judge, tmp_path / "answers.parquet", tmp_path / "page.md")
    names = ["W4 rtn", "W8A8 rtn", "W8A8KV8 rtn"]
    points = pd.DataFrame(
        {"experiment": names, "log_perplexity": math.log(20), "kl": 0.25, "kl.stderr": 0.01, "top1": 0.5}
    )
    points.drop(columns="top1").iloc[1:].to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(ValueError, match=r"points\.csv has no top1, W4 rtn"):
        schemes_page.write(judge, tmp_path / "answers.parquet", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
    points.to_csv(tmp_path / "points.csv", index=False)
    schemes_page.write(judge, tmp_path / "answers.parquet", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Weights",
        "## Weights and inputs",
        "## All three",
    ]
    assert "| W4 rtn | 20.00 | 0.250 ± 0.010 | 50.0 % | 0.0 ± 0.0 %, within | 11.1 ± 1.0 %, beyond |" in text
    assert max(map(len, text.split("## ")[0].splitlines())) <= 120
    claims = [["the paper's claim", "verdict"], ["W4 is enough", "holds"]]
    points.assign(log_perplexity=[9.3, 3.0, 3.0]).to_csv(tmp_path / "points.csv", index=False)
    schemes_page.write(judge, tmp_path / "answers.parquet", tmp_path / "page.md", claims)
    text = (tmp_path / "page.md").read_text()
    assert text.endswith(
        "## The paper's claims\n\n| the paper's claim | verdict |\n| --- | --- |\n| W4 is enough | holds |\n"
    )
    assert "| W4 rtn | 1.1e+04 |" in text
