"""A model's transformer in bfloat16, on CPUs that multiply it.

Weights are laid out for the CPU once, and the softmax of attention is a power of two for each
score and a product for their sums, without the passes that take each row's largest score away. What
adds up from layer to layer, and what is normalised, stays in float32.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from nexus_integrations.backends.model import UnitVectors

_ATTENTION = "nexus_bfloat16"
_ROWS = 256  # of an input that weights are laid out for; for others from 16 on it is the same
_LOWEST = 2.0**-100  # of a sum of powers: below it scores are lost that would count
_LONGEST = 256  # tokens of the texts that a model is tried on
_NEAR = 0.99  # the least cosine to float32, for tokens at random, which lose more than texts


def in_bfloat16(vectors: UnitVectors, vocabulary: int, max_length: int) -> UnitVectors:
    """Return a copy of a model whose linear layers compute in bfloat16, to be run under autocast.

    Attention is this module's where the model has transformers' interface for it, and its own where
    not. A model that fails under this, or gives other vectors, keeps its layers. `vocabulary` is
    the number of its tokens, `max_length` how many it reads of a text. The copy can be neither
    copied nor saved.
    """
    half = copy.deepcopy(vectors)
    if _is_fast_here(half):
        for module in list(half.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, _PackedLinear(child))
        _set_attention(half)
        if _agree(half, vectors, vocabulary, min(max_length or _LONGEST, _LONGEST)):
            return half
        half = copy.deepcopy(vectors)
    for module in half.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    return half


def _agree(half: UnitVectors, exact: UnitVectors, vocabulary: int, length: int) -> bool:
    ids = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    with torch.autocast("cpu", enabled=False):
        expected = exact(ids, mask)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = half(ids, mask)
    except Exception:  # models fail in many ways, deep in two libraries
        return False
    return bool((found * expected).sum(dim=1).min() > _NEAR)


def _is_fast_here(model: nn.Module) -> bool:
    """Return whether this CPU and PyTorch lay weights out for products in bfloat16."""
    try:
        on_cpu = all(tensor.device.type == "cpu" for tensor in model.parameters())
        if not on_cpu or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        _PackedLinear(nn.Linear(16, 16))(torch.zeros(1, 16))
    except (AttributeError, RuntimeError):  # built without oneDNN, or with another one
        return False
    return True


class _PackedLinear(nn.Module):
    """A linear layer, float32 or bfloat16 in, bfloat16 out."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight  # some models ask for its type
        self._packed = torch.ops.mkldnn._reorder_linear_weight(
            layer.weight.detach().bfloat16(), _ROWS
        )
        self._bias = None if layer.bias is None else layer.bias.detach().bfloat16()

    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            rows.bfloat16(), self._packed, self._bias, "none", [], ""
        )


def _set_attention(model: nn.Module) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, _mask)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa":
            module.set_attn_implementation(_ATTENTION)


def _mask(
    *, mask_function: Any, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """Return the texts' mask, (n, length), or who sees whom, (n, 1, length, length)."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    if mask_function is not bidirectional_mask_function:
        return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)
    return None if attention_mask is None or attention_mask.all() else attention_mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the softmax of the products times the values, (n, length, heads, width).

    `query` is (n, heads, length, width). Scores are small in a trained model, so that none is taken
    away from its row; where a sum tells that this lost something, the usual way is taken.
    """
    texts, heads, length, width = query.shape
    scale = scaling if scaling is not None else width**-0.5
    plain = (
        key.shape == query.shape == value.shape
        and (attention_mask is None or attention_mask.ndim == 2)
        and not getattr(module, "is_causal", True)
        and not kwargs.get("is_causal")
        and kwargs.get("position_bias") is None
    )
    if plain:
        # One head after another in memory: products are faster by more than the copies cost.
        queries, keys, values = (
            part.contiguous().view(texts * heads, length, width) for part in (query, key, value)
        )
        scores = torch.bmm(queries * (scale * math.log2(math.e)), keys.transpose(1, 2))
        powers = scores.exp2_()
        seen = values.new_ones(texts * heads, length, 1)
        if attention_mask is not None:  # padding adds nothing to sums and values
            seen = seen.view(texts, heads, length) * attention_mask[:, None]
            seen = seen.to(values.dtype).view(texts * heads, length, 1)
            values = values * seen
        sums = torch.bmm(powers, seen)
        low, high = torch.aminmax(sums)
        if low >= _LOWEST and high.isfinite():
            found = torch.bmm(powers, values).div_(sums)
            return found.view(query.shape).transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = attention_mask[:, None, None, :].bool()
    from transformers import AttentionInterface

    usual = AttentionInterface()["sdpa"]
    return usual(  # type: ignore[no-any-return]
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
