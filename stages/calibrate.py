"""calibrate: quantize the teacher after training, by the chosen method and by round to nearest as the baseline."""

from pipeline import artifacts, models, params, progress
from pipeline.calibration import calibrate
from pipeline.corpus import Corpus, valid_mask
from stages import run


def work() -> None:
    args = run.paths("calibrate", "teacher", "corpus", "out", "rtn")
    loaded = params.load()
    knobs, scheme = loaded.calibrate, loaded.scheme
    artifacts.reading(args.teacher, artifacts.TEACHER)
    tokens, lengths = Corpus.load(args.corpus).train(knobs.sequences)
    valid = valid_mask(lengths, tokens.shape[1])
    options = {"damping": knobs.damping, "block": knobs.block, "act_order": knobs.act_order}

    for method, out, baseline in (("rtn", args.rtn, True), (knobs.method, args.out, False)):
        model = models.load_model(args.teacher)
        layers = len(models.decoder_layers(model)[1])
        with progress.bar(f"calibrate {method}", layers, " layer") as bar:
            quantized, errors = calibrate(
                model,
                tokens,
                valid,
                method,
                (scheme.weight_bits, scheme.activation_bits),
                options if method == "gptq" else {},
                knobs.batch,
                knobs.dtype,
                bar.update,
                measure=not baseline,
            )
        if baseline:
            quantized.latent = {}  # training starts from the other one
        quantized.save(out, {"method": method, "sequences": knobs.sequences}, {} if baseline else {"errors": errors})


if __name__ == "__main__":
    run.main("calibrate", work)
