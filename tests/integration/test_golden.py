"""Every stage makes of the tiny model what it made when that was written down."""

import json
from pathlib import Path

from tests.integration import golden
from tests.integration.golden import chain


def test_every_stage_makes_what_is_written_down(tmp_path: Path, tiny_teacher: Path) -> None:
    made = golden.summary(chain.make(tmp_path / "checkout", tiny_teacher))
    problems = [*golden.differing(json.loads(golden.MADE.read_text()), made)]
    assert not problems, "\n".join(problems[:20])


def test_a_code_or_a_value_that_is_another_is_seen() -> None:
    written = json.loads(golden.MADE.read_text())
    changed = json.loads(golden.MADE.read_text())
    codes = next(name for name, entry in written.items() if "codes" in entry and name.startswith("calibration/"))
    values = next(name for name, entry in written.items() if "values" in entry and entry["rms"] > 0)
    changed[codes]["codes"] = ("A" if written[codes]["codes"][0] != "A" else "B") * 40 + written[codes]["codes"][40:]
    changed[values]["values"][0] += 1e-3 * written[values]["rms"]
    assert [line.partition(": ")[0] for line in golden.differing(written, changed)] == sorted([codes, values])
    assert [*golden.differing(written, written)] == []
