"""What static inputs cost a quantized model: KL to itself with inputs in float, by bits and observer.

    python -m tests.bench.static_inputs
    python -m tests.bench.static_inputs --quantized data/calibration --bits 8

It needs data/teacher, data/corpus and the quantized model (`dvc repro distill`). Ranges are those of the training
split, without rounding the inputs of the layers before; the KL is of the held-out one.
"""

import argparse
import os
from typing import get_args

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from torch import Tensor, nn

from pipeline.calibration.observers import Observed, static_quantizer
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.knobs.scheme import Activations, Observer
from pipeline.models import saved
from pipeline.quant.activations import quantize_inputs
from pipeline.quant.model import QuantizedModel
from tests.bench.held_out import HeldOut

BATCH = 4


def observe(model: nn.Module, names: list[str], tokens: Tensor, valid: Tensor) -> dict[str, Observed]:
    """What passes through each linear, looked at twice."""
    observed = {name: Observed() for name in names}
    for look in (Observed.see_range, Observed.see_values):
        current = {"mask": valid[:0]}

        def see(name: str, look=look, current=current):  # type: ignore[no-untyped-def]
            return lambda module, args: look(observed[name], args[0][current["mask"]])

        handles = [model.get_submodule(name).register_forward_pre_hook(see(name)) for name in names]
        for part, mask in zip(tokens.split(BATCH), valid.split(BATCH), strict=True):
            current["mask"] = mask
            model(input_ids=part, use_cache=False)
        for handle in handles:
            handle.remove()
    return observed


@torch.no_grad()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--quantized", default="data/student")
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 8])
    parser.add_argument("--sequences", type=int, default=16, help="of the training split")
    args = parser.parse_args()
    corpus, quantized = Corpus.load(args.corpus), QuantizedModel.load(args.quantized)[0]
    models = [saved.load_model(args.teacher) for _ in range(2)]
    for model in models:
        quantized.put_into(model)()
    held_out, model = HeldOut.of(models[0], args.corpus), models[1]
    train, lengths = corpus.train(args.sequences)
    observed = observe(model, [*quantized.inputs] or [*quantized.codes], train, valid_mask(lengths, train.shape[1]))
    print("| inputs | observer | linears with a second grid | KL | top-1 % |\n|---|---|---|---|---|")
    for bits in args.bits:
        for observer in get_args(Observer):
            scheme = Activations(bits, observer=observer)
            quantizers = {name: static_quantizer(values, scheme) for name, values in observed.items()}
            handles = quantize_inputs(model, quantizers)
            scores = held_out.scores(model)
            for handle in handles:
                handle.remove()
            second = sum(quantizer.outer is not None for quantizer in quantizers.values())
            row = f"| INT{bits} | {observer} | {second} of {len(quantizers)} | {scores['kl']:.5f} |"
            print(f"{row} {100 * scores['top1']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
