"""Writing a token at a time, with the logits that a plain forward over all that was written gives; what is given and
not written, as a prompt, is read many tokens at a time.

Three ways, the fastest first: an attention of ours over keys and values that are allocated once; the model's own
attention and cache; no cache, all of the text anew for each token. `choose` takes the first whose logits on a short
text are those of a plain forward. It compares in float32, where a difference is not rounding, and on tokens that
depend on nothing but the model, so that the same model always writes in the same way.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from pipeline.corpus.decode_attention import DECODE_ATTENTION, PreallocatedLayer

COMPARED = 12  # tokens of the text on which ways are compared, more where a window is to be passed
TOLERANCE = 5e-5  # of the range of the logits, in float32, whose rounding makes a tenth of it
NARROW_TOLERANCE = 1e-3  # the same for a model that is run in bfloat16 or float16, whose own rounding is above it
PREFILL = 2**12  # tokens of a forward over what is read and not written, of all texts together

Step = Callable[[Tensor], Tensor]
"""From all tokens so far, int64 [batch, n], to the logits of the next, [batch, vocabulary]; n grows from call to call
by as many tokens as are known."""


@contextmanager
def _preallocated(model: PreTrainedModel, length: int) -> Iterator[Step]:
    """Our attention, on a cache of ours. Any layer that keeps something else than keys and values is refused."""
    cache = Cache(layers=[PreallocatedLayer(length) for _ in range(require_keys_and_values(model))])
    before = model.config._attn_implementation

    def forward(new: Tensor, **keep: int) -> Tensor:
        return model(input_ids=new, use_cache=True, past_key_values=cache, **keep).logits

    try:
        model.set_attn_implementation(DECODE_ATTENTION)
        yield _reader(model, forward)
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _own_cache(model: PreTrainedModel, length: int) -> Iterator[Step]:
    """The model's own attention, on a cache that it makes: keys and values, states, or both."""
    name, cache = _cache_name(model), None

    def forward(new: Tensor, **keep: int) -> Tensor:
        nonlocal cache
        out = model(input_ids=new, use_cache=True, **{name: cache}, **keep)
        cache = getattr(out, name, None)
        if cache is None:
            raise ValueError("it gives no cache back")
        return out.logits

    yield _reader(model, forward)


def _reader(model: PreTrainedModel, forward: Callable[..., Tensor]) -> Step:
    """The Step of a forward that continues what it has read: from new tokens, int64 [batch, n], to logits.

    Several tokens are read in a forward where the model keeps keys and values alone, and works out the logits of the
    last token without the others', which would not fit in memory.
    """
    in_blocks = "logits_to_keep" in inspect.signature(model.forward).parameters and _keeps_keys_and_values(model)
    read = 0

    def step(tokens: Tensor) -> Tensor:
        nonlocal read
        new, read = tokens[:, read:], tokens.shape[1]
        for part in new.split(max(1, PREFILL // len(new)) if in_blocks else 1, dim=1):
            logits = forward(part, **({"logits_to_keep": 1} if part.shape[1] > 1 else {}))
        return logits[:, -1]

    return step


@contextmanager
def _no_cache(model: PreTrainedModel, length: int) -> Iterator[Step]:
    """A plain forward over all of the text."""
    yield lambda tokens: model(input_ids=tokens, use_cache=False).logits[:, -1]


WAYS: dict[str, Callable[[PreTrainedModel, int], AbstractContextManager[Step]]] = {
    "an attention and a cache of ours": _preallocated,
    "its own attention and cache": _own_cache,
    "no cache": _no_cache,
}
"""What one writes with, the fastest first: from the model and the length of the text to a context that gives a Step."""


def _cache_name(model: PreTrainedModel) -> str:
    """What the model's forward calls its cache."""
    known = inspect.signature(model.forward).parameters
    names = [name for name in ("past_key_values", "cache_params") if name in known]
    if not names:
        raise ValueError("it takes no cache")
    return names[0]


@dataclass(frozen=True)
class Way:
    """name: of WAYS. passed_over: why each faster one was not taken, by name."""

    name: str
    passed_over: dict[str, str]


@torch.inference_mode()
def choose(model: PreTrainedModel, length: int) -> Way:
    """The fastest way in which a model writes what it would without.

    Args:
        model: a causal LM in eval mode; unchanged when this returns, but held in float32 until then.
        length: tokens that will be written, start token included.

    Raises:
        ValueError: it cannot read a text, its logits are not finite, or change with the tokens that come after.
    """
    tokens = _text(model, length)
    half = tokens.shape[1] // 2
    passed_over = {}
    with _in_float32(model) as narrow:
        tolerance = NARROW_TOLERANCE if narrow else TOLERANCE
        try:
            plain = model(input_ids=tokens, use_cache=False).logits
        except Exception as error:  # a model's code may fail in any way
            raise ValueError(
                f"{type(model).__name__} cannot read a text of {tokens.shape[1]} tokens: {error}"
            ) from error
        finite = plain.amax(dim=-1).isfinite().all(dim=0)
        if not bool(finite.all()):
            position = int(finite.int().argmin()) + 1
            raise ValueError(
                f"the logits of {type(model).__name__} are not finite at token {position} of a text; is the teacher "
                "sound?"
            )
        if half and not _agree(model(input_ids=tokens[:, :half], use_cache=False).logits, plain[:, :half], tolerance):
            raise ValueError(
                f"{type(model).__name__} changes its predictions with the tokens that come after them; only a causal "
                "language model can write"
            )
        for name in WAYS:
            if WAYS[name] is _no_cache:  # which is the plain forward
                break
            reason = _differs(model, name, tokens, plain, tolerance)
            if reason is None:
                break
            passed_over[name] = reason
    return Way(name, passed_over)


def _text(model: PreTrainedModel, length: int) -> Tensor:
    """Tokens [2, n], n long enough to pass every window and chunk of the config that a text of this length passes."""
    n = min(length, max([COMPARED, *(span + 4 for span in spans(model) if span < length)]))
    return (7919 * torch.arange(1, 2 * n + 1) % model.get_input_embeddings().weight.shape[0]).view(2, n)


def require_keys_and_values(model: PreTrainedModel) -> int:
    """In how many layers a model keeps something of the tokens before.

    Raises:
        ValueError: in one of them it is something else than keys and values.
    """
    if _cache_name(model) != "past_key_values":
        raise ValueError("it has no cache of keys and values")
    layers = DynamicCache(config=model.config).layers
    others = {type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)}
    if others:
        raise ValueError(f"its cache has layers of the kind {', '.join(sorted(others))}")
    return len(layers)


def _keeps_keys_and_values(model: PreTrainedModel) -> bool:
    try:
        return require_keys_and_values(model) > 0
    except ValueError:
        return False


def spans(model: PreTrainedModel) -> list[int]:
    """How many tokens the windows and chunks hold that the config names."""
    config = model.config.get_text_config(decoder=True).to_dict()
    named = {name: span for name, span in config.items() if "window" in name or "chunk" in name}
    return [span for name, span in named.items() if type(span) is int and span > 0 and not name.endswith("layers")]


def _differs(model: PreTrainedModel, name: str, tokens: Tensor, plain: Tensor, tolerance: float) -> str | None:
    """Why logits written in this way are not the plain ones [batch, n, vocabulary]; None: they are.

    A token is read at a time, then several, before any other and behind others.
    """
    length = tokens.shape[1]
    singly, several = range(1, length + 1), sorted({max(1, length // 2), max(1, length - 1), length})
    try:
        for ends in (singly, several):
            with WAYS[name](model, length) as step:
                for end in ends:
                    if not _agree(step(tokens[:, :end]), plain[:, end - 1], tolerance):
                        at_once = ", several read at once" if ends is several else ""
                        return f"its logits differ from a plain forward's at token {end}{at_once}"
    except Exception as error:  # a model's code may fail in any way on what it was not written for
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def _agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Whether logits are the same but for rounding; those of -inf (tokens that cannot come) at the same places."""
    possible = theirs > -torch.inf
    if ours.shape != theirs.shape or not torch.equal(ours > -torch.inf, possible):
        return False
    ours, theirs = ours[possible], theirs[possible]
    return bool((ours - theirs).abs().max() <= tolerance * (theirs.max() - theirs.min()))


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[bool]:
    """Hold all that is stored in fewer bits in float32; what it was is restored exactly. Gives whether any was."""
    narrow = {}
    with torch.inference_mode(False), torch.no_grad():  # what is made here must be fit for training later
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                narrow[tensor] = tensor.dtype
                tensor.data = tensor.data.float()
    try:
        yield bool(narrow)
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, dtype in narrow.items():
                tensor.data = tensor.data.to(dtype)
