import json
import math
from pathlib import Path

import pytest

from pipeline.knobs.scheme import KVCache
from pipeline.quant.cache_memory import FLOAT, Layer
from pipeline.report import kv_cache
from tests import families
from tests.unit.report.pictures import drawn_in, words_of

SHAPES = {"one": ([Layer(8, 8)] * 2, [64, 128, 512])}


def teacher(folder: Path, name: str) -> Path:
    families.family(name).config.save_pretrained(folder)
    return folder


def test_the_table_has_the_model_at_hand_up_to_its_context_and_llama_7b(tmp_path: Path):
    section = kv_cache.section(teacher(tmp_path, "llama"), KVCache(0))
    assert section["rows"] == [
        ["", "tokens", "float16", "KV8", "KV4"],
        ["this model", "1", "128 B", "72.0 B", "40.0 B"],  # 2 layers of 2 heads of 8 keys and values
        ["this model", "4", "512 B", "288 B", "160 B"],
        ["this model", "16", "2.00 KiB", "1.12 KiB", "640 B"],
        ["this model", "64", "8.00 KiB", "4.50 KiB", "2.50 KiB"],
        ["LLaMA-7B", "2,048", "1.00 GiB", "512 MiB", "256 MiB"],
        ["LLaMA-7B", "4,096", "2.00 GiB", "1.00 GiB", "512 MiB"],
        ["LLaMA-7B", "16,384", "8.00 GiB", "4.00 GiB", "2.00 GiB"],
    ]
    assert words_of(section["plot"]) >= {"this model", "LLaMA-7B", "16,384", "float16", "KV8", "KV4", "KV cache"}


def test_the_scheme_of_the_run_stands_beside_the_others_where_it_is_another(tmp_path: Path):
    folder = teacher(tmp_path, "llama")
    scheme = KVCache(4, False, 4, "channel", 4)
    section = kv_cache.section(folder, scheme)
    assert section["rows"][0][2:] == ["float16", "KV8", "KV4", str(scheme)]
    keys, values = 16 * (32 + 48), 64 * (8 + 12)  # blocks or tokens, of codes and of scales and zero points
    assert section["rows"][4][5] == f"{2 * (keys + values) / 1024:.2f} KiB"
    assert str(scheme) in words_of(section["plot"])
    assert kv_cache.section(folder, KVCache(4)) == kv_cache.section(folder, KVCache(0))


def test_of_a_model_that_keeps_no_keys_the_page_says_so(tmp_path: Path):
    section = kv_cache.section(teacher(tmp_path, "mamba"), KVCache(0))
    assert {row[0] for row in section["rows"][1:]} == {"LLaMA-7B"}
    assert section["note"].startswith(
        "MambaForCausalLM keeps LinearAttentionLayer, no keys and values alone, so its own"
    )


def test_a_model_without_a_limit_is_shown_up_to_16k_tokens(tmp_path: Path):
    section = kv_cache.section(teacher(tmp_path, "bloom"), KVCache(0))
    assert [row[1] for row in section["rows"][1:5]] == ["256", "1,024", "4,096", "16,384"]


def test_the_lines_lie_by_their_bytes():
    """On a logarithmic scale, that of half the bytes is one step of a doubling below, wherever one looks."""
    schemes = {"float16": FLOAT, "KV8": KVCache(8)}
    plot = kv_cache.picture(SHAPES, schemes)
    upper, lower = (drawn_in(plot, colour)[0] for colour in kv_cache.COLOURS[:2])
    doubling = (upper[0] - upper[2]) / 3  # 64 to 512 tokens
    gap = math.log2((8 + 8) * 2 / (8 + 8 + 2 + 2))
    assert [below - above for above, below in zip(upper, lower, strict=True)] == pytest.approx([gap * doubling] * 3)


def test_the_picture_is_the_same_for_the_same_numbers():
    assert kv_cache.picture(SHAPES, kv_cache.SCHEMES) == kv_cache.picture(SHAPES, kv_cache.SCHEMES)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0.00 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**31, "2.00 GiB"), (2**43, "8192 GiB")],
)
def test_sizes_are_told_in_three_digits(size: int, words: str):
    assert kv_cache._in_units(size) == words


def test_the_config_is_all_that_is_read(tmp_path: Path):
    folder = teacher(tmp_path, "qwen2")
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    assert len(kv_cache.section(folder, KVCache(8))["rows"]) == 8
