"""A trained GGUF beside the Q4_0 that gguf's own quantizer makes of the same teacher, both run by llama.cpp.

    dvc exp run -S scheme=W4g32E8g32 -S calibrate.rotation=none -S export.formats=[gguf,compressed-tensors]
    python -m tests.bench.q4_0 data/int4/student/gguf data/int4/ptq/gguf

Without rotation embedding and head stay one weight, in Q8_0 in both, so that the files have the same size. KL, top-1
agreement and perplexity are of held-out text of the corpus, to the teacher in float32; llama.cpp tells of the 256
likeliest tokens, all others count as one, so a KL is a lower bound. Tokens a second are of one sequence, as a ratio
to Q4_0's of the same round: median and quartiles over rounds in which all take turns.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from gguf import GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from torch import Tensor

from pipeline.corpus.artifact import Corpus
from pipeline.export.gguf import model as gguf_model
from pipeline.export.gguf import tokenizer as gguf_tokenizer
from pipeline.models import saved
from pipeline.quant.model import state
from pipeline.runtimes import llama_cpp, references
from pipeline.runtimes.compare import compared
from pipeline.runtimes.hugging_face import sequence_logits
from pipeline.runtimes.opened import Asked, Predictions, Speed

REPEATS = 21  # rounds of speeds


def write_q4_0(teacher: Path, file: Path) -> None:
    """A teacher's matrices in Q4_0, its embedding (and head, where that is another) in Q8_0, the rest in float32."""
    model = saved.load_model(teacher)
    tensors = state(model)
    names = gguf_model.tensor_names(model, list(tensors))
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[gguf_model.architecture(model.config).name])
    writer.add_type("model")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    gguf_model.write_config(writer, model.config)
    gguf_tokenizer.write(writer, saved.load_tokenizer(teacher), teacher, model.config.vocab_size)
    for key, values in tensors.items():
        array = gguf_model.in_order(model.config, key, values.detach()).float().numpy()
        kind = GGMLQuantizationType.F32
        if array.ndim == 2:
            outside = names[key].startswith(("token_embd", "output"))
            kind = GGMLQuantizationType.Q8_0 if outside else GGMLQuantizationType.Q4_0
            array = quantize(array, kind)
        writer.add_tensor(names[key], array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def opened_by_llama_cpp(folder: Path, asked: Asked) -> llama_cpp.InLlamaCpp:
    """An export, with its server's connection."""
    export = llama_cpp.open_export(folder, asked)
    assert isinstance(export, llama_cpp.InLlamaCpp)
    return export


def log_loss(predictions: Predictions, tokens: Tensor, valid: Tensor, vocabulary: int) -> tuple[float, int]:
    """Sum of -log p of the next tokens, and how many; one beyond the likeliest has an equal share of what is left."""
    assert predictions.ids is not None
    total, count = 0.0, 0
    for position, values, ids in zip(predictions.positions.tolist(), predictions.values, predictions.ids, strict=True):
        if valid[position + 1]:
            mine = values[ids == tokens[position + 1]]
            rest = math.log(max(1 - float(values.double().exp().sum()), 1e-9) / (vocabulary - len(values)))
            total, count = total - (float(mine[0]) if len(mine) else rest), count + 1
    return total, count


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="exports in GGUF")
    parser.add_argument("--teacher", type=Path, default=Path("data/teacher"))
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--sequences", type=int, default=8)
    args = parser.parse_args()
    text = references.text(*Corpus.load(args.corpus).test(), args.sequences, 1, 16, 64)
    teacher = [*sequence_logits(saved.load_model(args.teacher), text.tokens)]
    asked = Asked(text.context, args.sequences, torch.get_num_threads())
    print("| | MB | KL to teacher | top-1 % | perplexity |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        write_q4_0(args.teacher, Path(scratch) / llama_cpp.WEIGHTS)
        opened = {"Q4_0": opened_by_llama_cpp(Path(scratch), asked)}
        opened |= {str(folder): opened_by_llama_cpp(folder, asked) for folder in args.folders}
        for name, export in opened.items():
            export.connection.close()  # which its server gave up while it waited
            predictions = [*export.predictions(text.tokens)]
            agreed = compared(teacher, predictions, text.valid).agreement
            parts = [
                log_loss(*part, export.vocabulary) for part in zip(predictions, text.tokens, text.valid, strict=True)
            ]
            perplexity = math.exp(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
            size = (Path(scratch if name == "Q4_0" else name) / llama_cpp.WEIGHTS).stat().st_size / 1e6
            print(f"| {name} | {size:.1f} | {agreed.kl:.4f} | {100 * agreed.top1:.1f} | {perplexity:.2f} |", flush=True)
        print("\n| | prompt, to Q4_0 | decode, to Q4_0 |\n|---|---|---|")
        for name, speeds in ratios(opened, text.tokens[0, : text.context - text.count - 1], text.count).items():
            print(f"| {name} | {shown([prompt for prompt, _ in speeds])} | {shown([decode for _, decode in speeds])} |")
        for export in opened.values():
            export.close()


def ratios(opened: Mapping[str, llama_cpp.InLlamaCpp], prompt: Tensor, count: int) -> dict[str, list[Speed]]:
    """Of each export in each of REPEATS rounds, all of which take turns: its speed over that of the first."""
    told: dict[str, list[Speed]] = {name: [] for name in opened}
    for _ in range(REPEATS):
        speeds = {}
        for name, export in opened.items():
            export.connection.close()
            speeds[name] = export.speed(prompt, count)
        first = next(iter(speeds.values()))
        for name, speed in speeds.items():
            told[name].append(Speed(speed.prompt / first.prompt, speed.decode / first.decode))
    return told


def shown(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
