"""Scripts of other libraries, for their own environments: what they make of the weights that tests/bench/gptq.py names.

Each takes the teacher's folder, the corpus's, how many of its sequences, the group (0: a row), the row's option and a
folder, where it leaves the linears' weights as the codes stand for them, in float32, and the seconds of the
quantization. It needs torch, transformers, safetensors and the library alone.
"""

from typing import NamedTuple


class Peer(NamedTuple):
    """A row of the table: the library, whose script runs, and the option that the script gets."""

    library: str
    option: str


PEERS = {
    "llm-compressor": Peer("llm-compressor", ""),  # its observer; empty: its own default
    "llm-compressor, mse": Peer("llm-compressor", "mse"),
    "auto-round": Peer("auto-round", "200"),  # steps a layer, its own default
    "auto-round, light": Peer("auto-round", "50"),  # of its recipe of that name
}
READ = """
import json, sys, time
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

teacher, corpus, sequences, group, option, out = *sys.argv[1:3], *map(int, sys.argv[3:5]), *sys.argv[5:7]
model = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(teacher)
tokens = load_file(corpus + "/corpus.safetensors")["tokens"][:sequences].long()
"""
WRITE = """
save_file(left, out + "/weights.safetensors")
json.dump({"seconds": seconds}, open(out + "/seconds.json", "w"))
"""
LLM_COMPRESSOR = """
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier

data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group" if group else "channel"}
weights |= ({"group_size": group} if group else {}) | ({"observer": option} if option else {})
recipe = GPTQModifier(ignore=["lm_head"], config_groups={"all": {"targets": ["Linear"], "weights": weights}})
begun = time.monotonic()
oneshot(model=model, dataset=data, recipe=recipe, tokenizer=tokenizer, num_calibration_samples=sequences,
        max_seq_length=tokens.shape[1])
seconds = time.monotonic() - begun
left = {}
for name, module in model.named_modules():
    if hasattr(module, "weight_scale"):
        scale = module.weight_scale.float().repeat_interleave(group or module.in_features, dim=1)
        left[name] = ((module.weight.float() / scale).round().clamp(-8, 7) * scale).contiguous()
"""
AUTO_ROUND = """
from auto_round import AutoRound

data = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens]
begun = time.monotonic()
rounding = AutoRound(model, tokenizer, bits=4, group_size=group or -1, sym=True, iters=int(option), dataset=data,
                     nsamples=sequences, seqlen=tokens.shape[1], amp=False, device_map="cpu")
model, _ = rounding.quantize()
seconds = time.monotonic() - begun
left = {name: module.weight.float().contiguous() for name, module in model.named_modules() if hasattr(module, "scale")}
"""
SCRIPTS = {"llm-compressor": READ + LLM_COMPRESSOR + WRITE, "auto-round": READ + AUTO_ROUND + WRITE}
