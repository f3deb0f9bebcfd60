"""Sequence parallelism for diffusers' Stable Diffusion 3 transformer, on xfuser's attention (Ulysses).

xfuser's own processor for this transformer takes a pipeline's cache when it is made on one rank, fails in the
second attention of 3.5 Medium, and either repeats the whole text on every rank or needs global state for its
padding. This one shares image and text alike: each rank has its part of both, the text padded to a whole
number of tokens a rank. The padding comes last, so its keys are simply left out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from xfuser.core.distributed import (
    get_sequence_parallel_rank,
    get_sequence_parallel_world_size,
    get_sp_group,
)
from xfuser.model_executor.layers.usp import USP


def parallelize(transformer: Any) -> None:
    """Make a loaded transformer share its work among the ranks of xfuser's present group.

    Adds no parameters. The input is the whole latent on every rank, and so is the output.
    """
    padding = _TextPadding()
    for block in transformer.transformer_blocks:
        block.attn.processor = _SharedAttention(padding)
        # Stable Diffusion 3.5 Medium has a second attention among the image tokens alone.
        if getattr(block, "attn2", None) is not None:
            block.attn2.processor = _SharedAttention(padding)

    def share_image(_module: Any, _arguments: Any, tokens: torch.Tensor) -> torch.Tensor:
        return _own_part(tokens)

    def share_text(_module: Any, _arguments: Any, tokens: torch.Tensor) -> torch.Tensor:
        padding.tokens = -tokens.shape[1] % get_sequence_parallel_world_size()
        return _own_part(torch.nn.functional.pad(tokens, (0, 0, 0, padding.tokens)))

    def gather_image(_module: Any, _arguments: Any, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(get_sp_group().all_gather(tokens.contiguous(), dim=1))

    transformer.pos_embed.register_forward_hook(share_image)
    transformer.context_embedder.register_forward_hook(share_text)
    transformer.proj_out.register_forward_hook(gather_image)


@dataclass(slots=True)
class _TextPadding:
    """How many tokens the text was lengthened by in the present forward pass."""

    tokens: int = 0


class _SharedAttention:
    """Computes what diffusers' joint attention computes, on this rank's part of image and text."""

    def __init__(self, padding: _TextPadding) -> None:
        self._padding = padding

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        **_unused: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend; shapes (batch, tokens of this rank, channels)."""
        image_length = hidden_states.shape[1]
        queries = [_heads(attn.to_q, hidden_states, attn, attn.norm_q)]
        keys = [_heads(attn.to_k, hidden_states, attn, attn.norm_k)]
        values = [_heads(attn.to_v, hidden_states, attn)]
        if encoder_hidden_states is not None:
            queries.append(_heads(attn.add_q_proj, encoder_hidden_states, attn, attn.norm_added_q))
            keys.append(_heads(attn.add_k_proj, encoder_hidden_states, attn, attn.norm_added_k))
            values.append(_heads(attn.add_v_proj, encoder_hidden_states, attn))
        query, key, value = (torch.cat(parts, dim=2) for parts in (queries, keys, values))
        valid = self._valid_keys(query, len(keys))
        attended: torch.Tensor = USP(query, key, value, combine_qkv_a2a=True, attn_layer=attn, attention_kwargs=valid)
        attended = attended.transpose(1, 2).flatten(2, 3).to(query.dtype)
        image, text = attended[:, :image_length], attended[:, image_length:]
        image = torch.as_tensor(attn.to_out[1](attn.to_out[0](image)))
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)

    def _valid_keys(self, query: torch.Tensor, streams: int) -> dict[str, int] | None:
        """How many keys there are without the padding, which the last rank's text ends with."""
        if streams == 1 or not self._padding.tokens:
            return None
        return {"valid_kv_len": get_sequence_parallel_world_size() * query.shape[2] - self._padding.tokens}


def _heads(project: Any, tokens: torch.Tensor, attn: Any, norm: Any = None) -> torch.Tensor:
    """(batch, heads, tokens, channels of a head)."""
    split: torch.Tensor = project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return split if norm is None else torch.as_tensor(norm(split))


def _own_part(tokens: torch.Tensor) -> torch.Tensor:
    """This rank's share of (batch, tokens, channels).

    Raises:
        ValueError: the degree does not divide the tokens.
    """
    degree = get_sequence_parallel_world_size()
    if tokens.shape[1] % degree:
        raise ValueError(f"{tokens.shape[1]} tokens cannot be shared by {degree} ranks")
    own: torch.Tensor = tokens.chunk(degree, dim=1)[get_sequence_parallel_rank()]
    return own
