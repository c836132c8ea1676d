"""analyze: how signals and gradients flow through the float and the quantized model, and what to freeze then."""

from pathlib import Path

from transformers import PreTrainedModel

from pipeline import artifacts, models, params, progress, signals
from pipeline.corpus import Corpus, valid_mask
from pipeline.distill.losses import LossWeights
from pipeline.quant.model import QuantizedModel
from stages import run

CURVES = {  # file name: tensor and statistic
    "gradient_norm": ("weight", "gradient_norm_sq"),
    "output_gradient_norm": ("output", "gradient_norm_sq"),
    "mean_square": ("output", "mean_square"),
    "mean_abs": ("output", "mean_abs"),
    "sqnr": ("output", "sqnr_db"),
}


def work() -> None:
    args = run.paths("analyze", "teacher", "corpus", "calibration", "out")
    knobs = params.load().analyze
    artifacts.reading(args.teacher, artifacts.TEACHER)
    tokens, lengths = Corpus.load(args.corpus).train(knobs.sequences)
    quantized, _ = QuantizedModel.load(args.calibration)

    def make_ptq() -> PreTrainedModel:
        model = models.load_model(args.teacher)
        quantized.put_into(model)
        return model

    variants = {"float": lambda: models.load_model(args.teacher), "ptq": make_ptq}
    weights = LossWeights(knobs.ce, knobs.kl)
    batches = -(-len(tokens) // knobs.batch)
    with progress.bar("analyze", len(variants) * batches, " batch") as bar:
        valid = valid_mask(lengths, tokens.shape[1])
        table = signals.probe(variants, tokens, valid, knobs.batch, weights, bar.update)
    with artifacts.writing(Path(args.out), artifacts.SIGNALS) as draft:
        table.to_parquet(draft.path / "signals.parquet", index=False)
        for variant in variants:
            for name, (tensor, statistic) in CURVES.items():
                wide = signals.by_layer(table, variant, tensor, statistic)
                wide.to_csv(draft.path / f"{name}_{variant}.csv", index=False, float_format="%.6g")
        suggestion = {v: signals.suggest_freeze(table, v) for v in variants}
        artifacts.write_json(draft.path / "suggestion.json", suggestion)
        draft.facts = {
            "variants": list(variants),
            "tokens": int(lengths.sum()),
            "suggested_freeze": suggestion["ptq"]["policy"],
        }


if __name__ == "__main__":
    run.main("analyze", work)
