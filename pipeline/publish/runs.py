"""How a folder of each format is run: for its card, the lines to type, and what is to be known of it there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A runtime that opens a format: its name, how the lines are highlighted, and the lines, with {repo} for the
    repository's name. tried: whether this project runs such files in it."""

    runtime: str
    language: str
    lines: str
    tried: bool = True


@dataclass(frozen=True)
class Format:
    """What the hub and a card call a format.

    library: the hub's `library_name`. For GGUF and ONNX that is the name of the file format, by which the hub filters;
    llama.cpp and onnxruntime are no libraries to it. tags: more to find it by. limits: what a reader has to know.
    """

    library: str
    tags: tuple[str, ...]
    runs: tuple[Run, ...]
    limits: tuple[str, ...] = ()


TRANSFORMERS = Run(
    "transformers",
    "python",
    """from transformers import pipeline
chat = pipeline("text-generation", "{repo}", dtype="auto")
print(chat([{{"role": "user", "content": "Hello!"}}], max_new_tokens=64)[0]["generated_text"][-1]["content"])""",
)
VLLM = Run("vLLM", "sh", "pip install vllm\nvllm serve {repo}", tried=False)
LLAMA_CLI = Run(
    "llama.cpp",
    "sh",
    "hf download {repo} model.gguf --local-dir .\nllama-cli -m model.gguf",
    tried=False,
)
XLLAMACPP = Run(
    "llama.cpp from Python",
    "python",
    """import xllamacpp  # after `hf download {repo} model.gguf --local-dir .`
knobs = xllamacpp.CommonParams(); knobs.model.path = "model.gguf"
print(xllamacpp.Server(knobs).handle_chat_completions({{"messages": [{{"role": "user", "content": "Hello!"}}]}}))""",
)
GENAI = Run(
    "onnxruntime-genai",
    "python",
    """import onnxruntime_genai as og  # after `hf download {repo} --local-dir model`
model = og.Model("model"); tokenizer = og.Tokenizer(model); generator = og.Generator(model, og.GeneratorParams(model))
prompt = tokenizer.apply_chat_template('[{{"role": "user", "content": "Hello!"}}]', add_generation_prompt=True)
generator.append_tokens(tokenizer.encode(prompt))
while not generator.is_done() and generator.token_count() < 200: generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))""",
)
MLX_LM = Run(
    "mlx-lm",
    "python",
    """from mlx_lm import load, generate  # pip install mlx-lm
model, tokenizer = load("{repo}")
prompt = tokenizer.apply_chat_template([{{"role": "user", "content": "Hello!"}}], add_generation_prompt=True)
print(generate(model, tokenizer, prompt=prompt, max_tokens=64))""",
)
QNN = Run(
    "onnxruntime-qnn",
    "python",
    """import onnxruntime as ort, onnxruntime_qnn as qnn  # after `hf download {repo} --local-dir model`
ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
npu = [device for device in ort.get_ep_devices() if device.ep_name == "QNNExecutionProvider"][:1]
options = ort.SessionOptions(); options.add_provider_for_devices(npu, {{"backend_path": qnn.get_qnn_htp_path()}})
for value in ort.InferenceSession("model/chunk.onnx", options).get_inputs(): print(value)""",
    tried=False,
)
EXECUTORCH = Run(
    "ExecuTorch",
    "python",
    """from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner  # pip install executorch
runner = TextLLMRunner("model/model.pte", "model/tokenizer.json")  # after `hf download {repo} --local-dir model`
runner.generate("Once upon a time", GenerationConfig(max_new_tokens=64, temperature=0), print)""",
    tried=False,
)
FLOAT_INPUTS = "Inputs and KV cache stay in float in transformers; the scores are measured with both quantized."
FORMATS = {  # by the export's name of it
    "compressed-tensors": Format(
        "transformers",
        ("compressed-tensors",),
        (TRANSFORMERS, VLLM),
        (
            FLOAT_INPUTS,
            "transformers unpacks the weights at the first forward: the file is small, the model in memory is not.",
            "vLLM 0.32 reads such a file where embedding and head are in float, and refuses a quantized embedding.",
        ),
    ),
    "gguf": Format(
        "gguf",
        ("llama.cpp",),
        (LLAMA_CLI, XLLAMACPP),
        ("llama.cpp quantizes inputs to 8 bits in its own way, whatever the scheme says of them.",),
    ),
    "onnx": Format("onnx", ("onnxruntime", "onnxruntime-genai"), (GENAI,)),
    "mlx": Format(
        "mlx", ("mlx",), (MLX_LM,), ("mlx-lm leaves inputs and KV cache in float, whatever the scheme says.",)
    ),
    "qnn": Format(
        "onnx",
        ("qnn", "qualcomm"),
        (QNN,),
        (
            "It was run in Qualcomm's simulator, on no device.",
            "Texts are no longer than `context` in qnn.json; whoever runs it keeps the KV cache "
            "(pipeline/export/qnn/decoder.py says how).",
        ),
    ),
    "executorch": Format(
        "executorch",
        ("executorch", "xnnpack"),
        (EXECUTORCH,),
        ("It was run on a computer's processor, on no phone.", "Texts are no longer than 2,048 tokens."),
    ),
    "dequantized": Format(
        "transformers",
        (),
        (TRANSFORMERS,),
        (FLOAT_INPUTS, "The weights lie on the INT4 grid, but are stored in float: this file is not small."),
    ),
}
