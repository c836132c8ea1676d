"""Knobs that a model or its tokenizer cannot have are all named, before any stage works."""

import json
from pathlib import Path

import pytest
from transformers import (
    BartConfig,
    BartForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    PreTrainedConfig,
)

from pipeline.evaluation.tasks import preamble
from pipeline.export import extras
from pipeline.preflight import limits
from tests import families, tiny
from tests.unit.knobs.files import load_with, long

pytestmark = pytest.mark.usefixtures("in_the_root")
FITTING = {
    "evaluate__window": 64,
    "references__long": 64,
    "references__dialogues": 0,
    "evaluate__instructions": 0,
    "synthesize__length": 64,
    "prove__tokens": 32,
    "evaluate__source": "hub",
    "evaluate__tasks": ["piqa"],
    "export__formats": ["compressed-tensors"],
}


def problems(model: object, tmp_path: Path, **changes: object) -> list[str]:
    """The lines that are said of the knobs."""
    knobs = load_with(tmp_path, **(FITTING | changes))
    try:
        limits.check(model, tiny.tokenizer(), knobs)  # type: ignore[arg-type]
    except ValueError as error:
        head, *rest = str(error).splitlines()
        assert head.endswith("and the knobs in params.yaml do not fit:")
        return [line.strip() for line in rest]
    return []


def test_sound_knobs_pass(tmp_path: Path):
    assert problems(tiny.llama(), tmp_path) == []


def test_what_a_format_cannot_hold_is_named_with_the_way_out(tmp_path: Path):
    lines = problems(
        families.family("bloom"), tmp_path, distill__freeze="none", export__formats=["compressed-tensors", "gguf"]
    )
    assert len(lines) == 2
    assert lines[0].startswith("export.formats: gguf cannot hold this model: bloom models are not written into a GGUF")
    assert lines[1].endswith("its tokenizer has no merges, without which llama.cpp loads no file; or leave gguf out")


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name != "mamba"])
def test_every_family_passes(tmp_path: Path, name: str):
    assert problems(families.family(name), tmp_path, distill__freeze="none") == []


def test_what_is_longer_than_the_context_is_named_all_at_once(tmp_path: Path):
    longer = {"evaluate__window": 513, "references__long": 514, "synthesize__length": 600, "prove__tokens": 500}
    problem_lines = problems(tiny.llama(), tmp_path, **longer)
    assert problem_lines == [
        "synthesize.length: 600 tokens are more than the 512 of the model's context; lower it",
        "evaluate.window: 513 tokens are more than the 512 of the model's context; lower it",
        "references.long: 514 tokens are more than the 512 of the model's context; lower it",
        "prove.prompt and prove.tokens: 516 tokens are more than the 512 of the model's context; lower it",
    ]


def test_talk_that_the_context_or_the_chat_template_does_not_hold_is_named(tmp_path: Path):
    talk = {"references__dialogues": 3, "evaluate__instructions": 3}
    assert problems(tiny.llama(), tmp_path, **talk, references__tokens=8) == []
    dialogue, instruction = problems(
        tiny.llama(), tmp_path, **talk, references__tokens=256, evaluate__instruction_tokens=512
    )
    assert dialogue.startswith("references.tokens, with what is said before the answers: ")
    assert instruction.startswith("evaluate.instruction_tokens, with the instruction before them: ")
    assert instruction.endswith("tokens are more than the 512 of the model's context; lower it")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages[:1] %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"leaves out what is said in two turns; references\.dialogues: 0"):
        limits.check(tiny.llama(), tokenizer, load_with(tmp_path, **FITTING | talk | {"synthesize__chat": 0}))


def test_items_that_are_longer_than_the_context_are_named_by_their_task(tmp_path: Path):
    row = {"goal": "g" * 100, "sol1": "s" * 500, "sol2": "s", "label": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"sol1": "s"}) + "\n")
    changes = {
        "evaluate__source": "folder",
        "evaluate__benchmarks": str(tmp_path),
        "evaluate__tasks": ["piqa"],
        "evaluate__text": "pydoc",
    }
    (problem,) = problems(tiny.llama(), tmp_path, **changes)
    assert problem.startswith("evaluate.tasks: the longest item of piqa has about 619 tokens, the model's context 512;")
    rows = [{"input": "a and b is", "target": "True"}] * 2
    (tmp_path / "bbh_boolean_expressions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = families.family("llama")
    fewer = {"evaluate__window": 64, "evaluate__tasks": ["bbh_boolean_expressions"]}
    (problem,) = problems(small, tmp_path, **changes | fewer)
    assert "the longest item of bbh_boolean_expressions has about" in problem, "with its shots"


def test_an_answer_that_is_written_needs_room_behind_its_question(tmp_path: Path):
    """About as many tokens as the request has: the eight shots, the question, and 256."""
    rows = [{"question": "How many?" * 10, "answer": "long" * 200 + "\n#### 2"}] * 2
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"evaluate__source": "folder", "evaluate__benchmarks": str(tmp_path), "evaluate__tasks": ["gsm8k"]}
    (problem,) = problems(tiny.llama(), tmp_path, **changes, evaluate__text="pydoc")
    tokens = int(problem.partition(" has about ")[2].split()[0])
    assert tokens == pytest.approx(len(preamble("gsm8k")) + len("Q: \nA:") + 90 + 256, abs=20)


def test_tasks_that_evaluate_would_refuse_are_named_before_any_work(tmp_path: Path):
    named = {"evaluate__groups": ["trust"], "evaluate__tasks": ["piqa", "ethics_vitrue", "adv_rte"]}
    problem_lines = problems(tiny.llama(), tmp_path, **named, evaluate__source="hub", synthesize__length=600)
    text = "\n".join(problem_lines)
    assert "synthesize.length: 600 tokens are more" in text
    assert "piqa is of basic, which evaluate.groups leaves out" in text
    assert "unknown task 'ethics_vitrue'; did you mean 'ethics_virtue'?" in text
    assert "adv_rte is not on the hub" in text


CONTEXTS: list[tuple[PreTrainedConfig, int | None]] = [
    (LlamaConfig(max_position_embeddings=96), 96),
    (GPT2Config(n_positions=48), 48),
    (MambaConfig(), None),
    (BloomConfig(), None),
    (FalconConfig(alibi=True), None),
    (MptConfig(max_seq_len=32), 32),  # its code makes the bias of ALiBi for so many positions and no more
    (FalconConfig(alibi=False, max_position_embeddings=80), 80),
    (
        LlamaConfig(
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
            },
        ),
        256,
    ),
    (families.multimodal(1).config, 64),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), CONTEXTS)
def test_the_context_is_read_off_the_config(config: PreTrainedConfig, expected: int | None):
    model = tiny.llama()
    model.config = config
    assert limits.context_length(model) == expected


def test_a_model_without_an_end_cannot_stop_there(tmp_path: Path):
    model = tiny.llama()
    model.generation_config.eos_token_id = None
    assert problems(model, tmp_path) == []
    (problem,) = problems(model, tmp_path, synthesize__stop_at_eos=True)
    assert problem.startswith("synthesize.stop_at_eos: the model has no end-of-sequence token")


def test_an_end_beyond_the_embedding_is_named(tmp_path: Path):
    model = tiny.llama()
    model.generation_config.eos_token_id = [2, 300]
    assert "the end-of-sequence tokens [300] of its generation config" in problems(model, tmp_path)[0]


def test_what_calibrate_and_distill_would_refuse_is_refused_here(tmp_path: Path):
    problem_lines = problems(
        tiny.llama(), tmp_path, scheme=long({"match": "nothing", "weights": {"bits": 8}}), distill__freeze="ov@9"
    )
    assert "nothing is called 'nothing'" in " ".join(problem_lines)
    assert "does not divide" in " ".join(problem_lines)
    assert "names layers beyond the model's last, 1" in " ".join(problem_lines)


def test_a_model_that_changes_its_logits_after_the_head_is_told_of_and_not_refused():
    """It can be quantized, without distillation. Granite divides them."""
    shape = tiny.llama().config.to_dict()
    sizes = {key: shape[key] for key in shape if key.startswith("num_") or key.endswith(("_size", "_token_id"))}
    granite = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).eval().requires_grad_(False)
    said = limits.warning(granite)
    assert said.startswith("targets and distill will refuse this model; `dvc repro export@ptq` quantizes it")
    assert "GraniteForCausalLM" in said
    assert limits.warning(tiny.llama()) == ""


def test_a_model_without_attention_has_no_kv_cache_to_quantize(tmp_path: Path):
    problem_lines = problems(families.family("mamba"), tmp_path, scheme="W4A16KV8", distill__freeze="none")
    assert any(line.startswith("scheme: ") for line in problem_lines)


def test_a_model_without_linears_is_refused(tmp_path: Path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    assert "no torch.nn.Linear" in " ".join(problems(model, tmp_path))


@pytest.mark.parametrize("lacking", ["pad_token", "bos_token", "eos_token"])
def test_a_tokenizer_may_lack_special_tokens(tmp_path: Path, lacking: str):
    tokenizer = tiny.tokenizer()
    setattr(tokenizer, lacking, None)
    limits.check(tiny.llama(), tokenizer, load_with(tmp_path, **FITTING))


def test_linears_that_no_text_calls_are_named(tmp_path: Path):
    """A decoder's attention to an encoder that is not there; left in float, they pass."""
    shape = {"vocab_size": 259, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    model = BartForCausalLM(BartConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
    fitting = {"distill__freeze": "none", "evaluate__window": 64}
    (problem,) = problems(model, tmp_path, **fitting)
    assert problem.startswith("scheme: a text calls none of model.decoder.layers.*.encoder_attn.k_proj (k), ")
    assert "self_attn" not in problem
    override = {"match": "*.encoder_attn.*", "weights": {"bits": 0}, "activations": {"bits": 0}}
    assert problems(model, tmp_path, **fitting, scheme=long(override, weights__group=0)) == []


def test_a_window_that_is_shorter_than_what_llama_cpp_is_asked_is_named(tmp_path: Path):
    assert not problems(families.family("mistral"), tmp_path, export__formats=["compressed-tensors", "onnx"])
    lines = problems(families.family("mistral"), tmp_path, export__formats=["compressed-tensors", "gguf"])
    assert "export.formats: llama.cpp sees 6 tokens of this model, prove holds it to texts of 64; lower " in lines[-1]


def test_what_the_npu_does_not_hold_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extras, "version", lambda package: "2.7.0")
    fitting = {"export__formats": ["compressed-tensors", "qnn"], "scheme": "W4A16E8H6", "export__qnn_chunk": 32}
    assert not problems(families.family("llama"), tmp_path, **fitting, export__qnn_context=64)
    lines = problems(families.family("llama"), tmp_path, **fitting | {"scheme": "W4g16A8KV8"}, export__qnn_context=100)
    assert len(lines) == 7 * 2 + 2
    assert lines[0] == (
        "export.formats: qnn cannot hold this model: model.layers.*.self_attn.q_proj: its weight has groups of 16; "
        "take group 0, a scale an output channel; or leave qnn out"
    )
    assert lines[-1] == "export.qnn_context: 100 tokens are more than the 64 of the model's context; lower it"
    (line,) = problems(families.family("llama"), tmp_path, **fitting, export__qnn_context=40)
    assert line == "export.qnn_context: prove holds it to texts of 64 tokens, over 40; raise it"
