"""Load a causal language model whole: what its files say, or nothing.

transformers draws what a file lacks at random, leaves out what the model has no place for, and tells of it in a report
that a stage keeps quiet; here either is an error that names the tensors. No code that a checkpoint brings is run, and
no pickle is read. Messages give the reason alone; the caller says which folder it is about.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
WRAPPERS = "save what is inside: model.module of DDP, model._orig_mod of torch.compile, merge_and_unload() of PEFT"
NO_CODE = "no code of a checkpoint is run here"
KNOWS = f"transformers {transformers.__version__}"


def causal_lm(folder: str | Path, dtype: torch.dtype, gguf: str = "") -> PreTrainedModel:
    """The causal LM in a folder, or in the GGUF of that name there, every tensor of it from the file.

    Raises:
        ValueError: a file is missing, truncated or pickled, the type is none that writes text from left to right, or
            the tensors are not those of the model: all that differ.
    """
    if not gguf:
        check_config(Path(folder))
        check_whole(Path(folder))
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf or None,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
    except Exception as error:  # transformers and the libraries under it raise classes of every kind
        raise ValueError(f"transformers cannot load it: {reason(error)}") from error
    check_tensors(model, told)
    return model


def tokenizer(folder: str | Path, gguf: str = "") -> Any:
    """The tokenizer in a folder, or in the GGUF of that name there.

    Raises:
        ValueError: there is none, or none that transformers can load without code of the checkpoint's own.
    """
    try:
        return AutoTokenizer.from_pretrained(
            folder, gguf_file=gguf or None, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of every kind, a bare Exception of the tokenizers library among them
        own = _json(Path(folder) / "tokenizer_config.json").get("auto_map")
        if own and not gguf:
            why = f"its tokenizer needs code of its own (auto_map in tokenizer_config.json), and {NO_CODE}"
        elif not gguf and not any(Path(folder).glob("*token*")) and not any(Path(folder).glob("vocab*")):
            why = "it has no tokenizer"
        else:
            why = f"transformers cannot load its tokenizer: {reason(error)}"
        remedy = "" if gguf else "; save one beside the weights that transformers knows (tokenizer.json)"
        raise ValueError(why + remedy) from error


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    return f"{type(error).__name__}: {text[:300]}{' ...' if len(text) > 300 else ''}"


def check_config(folder: Path) -> None:
    """Raises:
    ValueError: config.json is not that of a causal LM whose code transformers has.
    """
    content = _json(folder / "config.json", strict=True)
    kind, custom = content.get("model_type"), content.get("auto_map")
    if kind not in CONFIG_MAPPING:
        if custom:
            raise ValueError(
                f"its type {kind!r} needs code of its own (auto_map in config.json), and {NO_CODE}; take a model of a "
                f"type that {KNOWS} has"
            )
        raise ValueError(
            f"{KNOWS} knows no model_type {kind!r}, as config.json has it; take a model of a type that it has"
        )
    kernel = next((content[key] for key in ("_attn_implementation", "attn_implementation") if content.get(key)), "")
    if "/" in str(kernel):
        raise ValueError(f"config.json asks for the attention kernel {kernel!r}, and {NO_CODE}; take that line out")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{KNOWS} cannot read its config.json: {reason(error)}") from error
    if config.is_encoder_decoder:
        raise ValueError(
            f"a {kind} is an encoder-decoder, whose text depends on another one; take a decoder-only model"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{KNOWS} has no causal language model of the type {kind!r}; take a decoder-only language model"
        )
    for name in content.get("architectures") or []:
        made = getattr(transformers, name, None)
        if isinstance(made, type) and not issubclass(made, GenerationMixin):
            raise ValueError(
                f"config.json calls it a {name}, which has no head that writes text; take the causal language model"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers reads: model.safetensors, or the parts that its index names.

    Raises:
        ValueError: there are none, or it is not clear which.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise ValueError(f"it has both {WEIGHTS} and {INDEX}; remove the one that is not the model")
    if single.is_file():
        return [single]
    if index.is_file():
        named = _json(index, strict=True).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ValueError(f"{INDEX} has no weight_map, which says what is in which part")
        parts = [folder / part for part in sorted(set(named.values()))]
        absent = [part.name for part in parts if not part.is_file()]
        if absent:
            raise ValueError(f"{INDEX} names parts that are not there: {some(absent)}; fetch them, too")
        return parts
    pickled = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"its weights are pickled ({some(pickled)}), and a pickle can run code: load them where you trust them, "
            f"and save them as {WEIGHTS} (save_pretrained)"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    raise ValueError(
        f"it has neither {WEIGHTS} nor {INDEX}" + (f", but {some(others)}; rename what is the model" if others else "")
    )


def check_whole(folder: Path) -> None:
    """Raises:
    ValueError: a file that loading reads is truncated, or a tensor lies in two parts.
    """
    for file in sorted(folder.glob("*.json")):
        _json(file, strict=True)
    held: dict[str, str] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as content:
                names = list(content.keys())
        except SafetensorError as error:
            raise ValueError(f"{file.name} is no whole safetensors file, it may be truncated: {error}") from None
        twice = [f"{name} ({held[name]}, {file.name})" for name in names if name in held]
        if twice:
            raise ValueError(f"tensors lie in two parts: {some(twice)}; remove the parts that are not the model's")
        held |= dict.fromkeys(names, file.name)


def check_tensors(model: PreTrainedModel, told: Mapping[str, Any]) -> None:
    """Hold what transformers tells of loading a model against what is allowed, which is nothing.

    What may be absent or left over (tied weights, buffers that the model works out, what a model class lists as
    ignored) it does not tell.

    Args:
        told: missing_keys, unexpected_keys: names. mismatched_keys: name, shape in the file, shape in the model.

    Raises:
        ValueError: names the tensors.
    """
    missing, left = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    other = [f"{name} {[*theirs]} for {[*ours]}" for name, theirs, ours in sorted(told["mismatched_keys"])]
    parts = {"lacks": missing, "has no place for": left, "differs in the shape of": other}
    problems = [f"{what} {some(names)}" for what, names in parts.items() if names]
    if not problems:
        return
    hint = "the file is not this model's, or not whole"
    begin = next((name.removesuffix(missing[0]) for name in left if missing and name.endswith(f".{missing[0]}")), "")
    if begin:
        hint = f"the names in the file begin with {begin!r}, as a wrapper's do; {WRAPPERS}"
    elif any("lm_head" in name for name in missing) and len(missing) == 1:
        hint = "without a head it writes no text; tie_word_embeddings in config.json says whether the embedding is it"
    raise ValueError(f"{type(model).__name__} {', '.join(problems)}: {hint}")


def some(names: Iterable[str], most: int = 6) -> str:
    """The first of some names, and how many there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _json(file: Path, strict: bool = False) -> dict[str, Any]:
    """A JSON file; where it is none, an error if `strict`, else nothing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if strict:
            raise ValueError(f"it has no {file.name}") from None
        return {}
    except ValueError as error:
        if strict:
            raise ValueError(f"{file.name} is no whole JSON file, it may be truncated: {error}") from None
        return {}
    return content if isinstance(content, dict) else {}
