"""A decoder with a KV cache, of the operators that ExecuTorch's runtimes for language models have.

Inputs: tokens, int64 [1, tokens], and where the first of them stands, int64 [1]. Output: logits, float32 [1, tokens,
vocabulary]. Keys and values are kept in the program, float32 [1, places, key heads, head size]; what a token does not
see yet is never read, so that a text begins anew with position 0.

Linears are multiplied by XNNPACK, 4-bit codes two a byte. The embedding's codes have a byte each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from pipeline.export.executorch import kernel_inputs
from pipeline.models import layout
from pipeline.quant.activations import Quantizer
from pipeline.quant.model import QuantizedModel

NIBBLE, BYTE = (-8, 7), (-128, 127)  # ranges of codes; the first is stored two a byte


class Linear(nn.Module):
    """A linear of int8 codes [out, in] and scales [out, 1], whose input is on a grid, or nearly in float."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bits: int, bias: Tensor | None, quantizer: Quantizer | None):
        super().__init__()
        self.inputs, self.range = kernel_inputs.inputs_of(quantizer), NIBBLE if bits <= 4 else BYTE
        own = self.inputs is not None and self.inputs.is_kernels_own
        self.register_buffer("codes", F.pad(codes, (0, 0 if own else kernel_inputs.ENDS)))
        self.register_buffer("scale", scale.reshape(-1).contiguous())
        self.register_buffer("zero", torch.zeros(len(codes), dtype=torch.int64))
        self.register_buffer("bias", bias)

    def forward(self, parts: Tensor) -> Tensor:
        """[1, tokens, out] of what `kernel_inputs.parts` makes of its input."""
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric.default(parts, torch.int8)
        rows = ops.quantize_per_token.default(parts, scale, zero, *BYTE, torch.int8)
        rows = ops.dequantize_per_token.default(rows, scale, zero, *BYTE, torch.int8, torch.float32)
        weight = ops.dequantize_per_channel.default(self.codes, self.scale, self.zero, 0, *self.range, torch.int8)
        products = F.linear(rows, weight)
        y = products[:1]
        for part in range(1, len(parts)):
            y = y + products[part : part + 1]
        return y if self.bias is None else y + self.bias


class FloatLinear(nn.Module):
    """A linear in float32; the arguments are as `Linear` has them."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows by codes and scales."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.ops.quantized_decomposed.embedding_byte.default(self.codes, self.scale, None, *BYTE, tokens)


class FloatEmbedding(nn.Module):
    """Rows in the dtype that they are stored in."""

    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight).float()


class Norm(nn.Module):
    """RMSNorm. The mean is a product, which XNNPACK has a kernel for."""

    gain: Tensor
    share: Tensor

    def __init__(self, gain: Tensor, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("gain", gain.float())
        self.register_buffer("share", torch.full((1, len(gain)), 1 / len(gain)))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(F.linear(x * x, self.share) + self.epsilon) * self.gain


class Decoder(nn.Module):
    """A quantized model as ExecuTorch computes it.

    model: the float model, which gives config and structure. quantized: its numbers. places: of the KV cache.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, model: PreTrainedModel, quantized: QuantizedModel, places: int) -> None:
        super().__init__()
        self.quantized, config = quantized, model.config
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // heads
        (prefix, layers), (decoder_name, decoder) = layout.decoder_layers(model), layout.text_decoder(model)
        embedding, head = layout.embedding(model), layout.head(model)
        assert embedding is not None
        assert head is not None
        self.embedding = self._embedding(embedding.name)
        self.layers = nn.ModuleList(
            Layer(self, f"{prefix}.{number}", layer, (heads, key_heads, self.size), places)
            for number, layer in enumerate(layers)
        )
        self.norm = self.norm_of(f"{decoder_name}.norm", decoder.norm)
        self.head = self.linear_of(head.name, instead=embedding.name)
        rotary: Any = decoder.rotary_emb
        turns = torch.arange(places)[:, None].float() * rotary.inv_freq.float()[None]
        turns = torch.cat([turns, turns], dim=-1)[:, None]  # [places, 1, size]
        self.register_buffer("cosine", turns.cos() * rotary.attention_scaling)
        self.register_buffer("sine", turns.sin() * rotary.attention_scaling)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        start: Any = position[0].item()
        length, places = tokens.shape[1], self.cosine.shape[0]
        torch._check(start >= 0)
        torch._check(start + length <= places)
        torch._check(start < places)
        angles = self.cosine.narrow(0, start, length), self.sine.narrow(0, start, length)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, start, angles)
        return multiplied(self.norm(x), self.head)[0]

    def _embedding(self, name: str) -> nn.Module:
        if name in self.quantized.codes:
            return Embedding(self.quantized.codes[name], self.quantized.steps[name].scale)
        return FloatEmbedding(self.quantized.floats[f"{name}.weight"])

    def norm_of(self, name: str, module: Any) -> Norm:
        """The RMSNorm of this name."""
        return Norm(self.quantized.floats[f"{name}.weight"], module.variance_epsilon)

    def linear_of(self, name: str, instead: str = "") -> nn.Module:
        """The linear of this name; where it has no weight of its own, that of `instead`."""
        quantized = self.quantized
        bias = quantized.floats.get(f"{name}.bias")
        owner = name if name in quantized.codes or f"{name}.weight" in quantized.floats else instead
        if owner not in quantized.codes:
            return FloatLinear(quantized.floats[f"{owner}.weight"], bias)
        bits, scale = quantized.schemes[owner].bits, quantized.steps[owner].scale
        bias = None if bias is None else bias.float()
        return Linear(quantized.codes[owner], scale, bits, bias, quantized.inputs.get(name))


class Layer(nn.Module):
    """A layer as Llama has it. shape: query heads, key heads, size of a head."""

    keys: Tensor
    values: Tensor
    other_half: Tensor

    def __init__(self, of: Decoder, name: str, module: Any, shape: tuple[int, int, int], places: int):
        super().__init__()
        (self.heads, self.key_heads, self.size), attention = shape, module.self_attn
        self.scaling = attention.scaling
        self.before_attention = of.norm_of(f"{name}.input_layernorm", module.input_layernorm)
        self.before_mlp = of.norm_of(f"{name}.post_attention_layernorm", module.post_attention_layernorm)
        self.q, self.k, self.v, self.o = (of.linear_of(f"{name}.self_attn.{part}_proj") for part in "qkvo")
        self.gate, self.up, self.down = (of.linear_of(f"{name}.mlp.{part}_proj") for part in ("gate", "up", "down"))
        normed = hasattr(attention, "q_norm")
        self.q_norm = of.norm_of(f"{name}.self_attn.q_norm", attention.q_norm) if normed else nn.Identity()
        self.k_norm = of.norm_of(f"{name}.self_attn.k_norm", attention.k_norm) if normed else nn.Identity()
        half = torch.eye(self.size // 2)
        self.register_buffer("other_half", torch.block_diag(-half, half).roll(self.size // 2, dims=1))
        for cache in ("keys", "values"):
            self.register_buffer(cache, torch.zeros(1, places, self.key_heads, self.size))

    def forward(self, x: Tensor, start: Any, angles: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self._attention(self.before_attention(x), start, angles)
        gate, up = multiplied(self.before_mlp(x), self.gate, self.up)
        (down,) = multiplied(gate * torch.sigmoid(gate) * up, self.down)
        return x + down

    def _attention(self, x: Tensor, start: Any, angles: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = multiplied(x, self.q, self.k, self.v)
        query = self._turned(self.q_norm(query.view(1, -1, self.heads, self.size)), angles)
        key = self._turned(self.k_norm(key.view(1, -1, self.key_heads, self.size)), angles)
        ops = torch.ops.llama
        ops.update_cache(key, self.keys, start)
        ops.update_cache(value.view(1, -1, self.key_heads, self.size), self.values, start)
        mixed = ops.custom_sdpa(query, self.keys, self.values, start, None, 0.0, True, self.scaling)
        (output,) = multiplied(mixed.view(1, -1, self.heads * self.size), self.o)
        return output

    def _turned(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """The rotary embedding of [1, tokens, heads, size]; one half of a head turns with the other.

        The halves change places by a product, since XNNPACK cuts nothing whose length it does not know beforehand.
        """
        cosine, sine = angles
        return x * cosine + F.linear(x, self.other_half) * sine


def multiplied(x: Tensor, *linears: nn.Module) -> list[Tensor]:
    """The outputs of linears that read x; where their grids are alike, it is put on them once."""
    made: dict[kernel_inputs.Inputs | None, Tensor] = {}
    outputs = []
    for linear in linears:
        if isinstance(linear, Linear):
            if linear.inputs not in made:
                made[linear.inputs] = kernel_inputs.parts(x, linear.inputs)
            outputs.append(linear(made[linear.inputs]))
        else:
            outputs.append(linear(x))
    return outputs
