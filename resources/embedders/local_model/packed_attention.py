"""Forward passes over texts laid end to end, so that nothing is padded.

The transformer sees one sequence. Attention stays within each text by its start in that sequence:
transformers hands `cu_seq_lens_q` through to the attention function registered here, which calls
`torch.nn.attention.varlen.varlen_attn` on CUDA. No mask of (tokens × tokens) ever exists.
"""

import inspect
import itertools
from typing import Any

import numpy as np

from resources.embedders.local_model.model_compiler import UnsupportedModelError, has_full_attention
from resources.embedders.local_model.token_batches import TextTokenizer, positions, token_batches

IMPLEMENTATION = "packed_varlen"


def register_packed_attention() -> None:
    """Makes `IMPLEMENTATION` known to transformers; may be called again."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float | None = None,
        cu_seq_lens_q: Any = None,
        max_length_q: int = 0,
        **_: Any,
    ) -> tuple[Any, None]:
        """Takes (1, heads, tokens, head size) thrice, returns (1, tokens, heads, head size)."""
        if cu_seq_lens_q is None or attention_mask is not None or getattr(module, "is_causal", 0):
            raise UnsupportedModelError("its attention does not receive the texts' starts")
        q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
        size = q.shape[-1]
        if scaling is not None and abs(scaling * size**0.5 - 1) > 1e-6:
            q = q * (scaling * size**0.5)
        if not q.is_cuda:
            return _attend_in_turn(q, k, v, cu_seq_lens_q)[None], None
        from torch.nn.attention.varlen import varlen_attn

        starts, longest = cu_seq_lens_q, max_length_q
        output: Any = varlen_attn(q, k, v, starts, starts, longest, longest)
        return output[None], None

    def _attend_in_turn(q: Any, k: Any, v: Any, cu_seq_lens: Any) -> Any:
        attention = torch.nn.functional.scaled_dot_product_attention
        bounds = cu_seq_lens.tolist()
        parts = [
            attention(*(tensor[start:end].transpose(0, 1) for tensor in (q, k, v))).transpose(0, 1)
            for start, end in itertools.pairwise(bounds)
        ]
        return torch.cat(parts)

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda **_: None)


class PackedModel:
    """A SentenceTransformer whose transformer runs packed; its other modules run as they are."""

    def __init__(self, model: Any, tokens: TextTokenizer) -> None:
        """Puts packed attention into the model's layers.

        Args:
            model: a SentenceTransformer; it no longer takes padded batches afterwards.
            tokens: gives the type ids of special tokens.

        Raises:
            UnsupportedModelError: this kind of model cannot be packed.
        """
        transformer, *self._modules = list(model)
        self._backbone = getattr(transformer, "auto_model", None)
        config = getattr(self._backbone, "config", None)
        if self._backbone is None or not has_full_attention(config):
            kind = repr(getattr(config, "model_type", None))
            decoding = " that decode" if getattr(config, "is_decoder", False) else ""
            raise UnsupportedModelError(f"models of type {kind}{decoding} are not packed")
        if any(not getattr(module, "include_prompt", True) for module in self._modules):
            raise UnsupportedModelError("its pooling leaves the prompt's tokens out")
        register_packed_attention()
        self._backbone.set_attn_implementation(IMPLEMENTATION)
        if self._backbone.config._attn_implementation != IMPLEMENTATION:
            raise UnsupportedModelError("transformers cannot change its attention")
        self._tokens = tokens
        parameters = inspect.signature(self._backbone.forward).parameters
        self._takes_types = "token_type_ids" in parameters
        self._padding_id = _padding_id_of_positions(self._backbone)

    def inputs(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `forward` takes, as it is copied to the device.

        Args:
            tokens: shape (sum of lengths,), int64.
            lengths: shape (n,), int; n >= 1 texts of at least one token, longest first.

        Returns:
            Ids, positions and, if the model takes them, type ids: shape (2 or 3, tokens), int64;
            and the start of each text, ended by the number of tokens: shape (n + 1,), int32.
        """
        starts = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=starts[1:])
        rows = [tokens, positions(lengths)]
        if self._padding_id is not None:
            # As `create_position_ids_from_input_ids` of transformers' RoBERTa counts.
            real = tokens != self._padding_id
            count = np.concatenate(([0], np.cumsum(real)))
            within = count[1:] - np.repeat(count[starts[:-1]], lengths)
            rows[1] = np.where(real, within, 0) + self._padding_id
        if self._takes_types:
            rows.append(self._tokens.token_types(lengths))
        return np.stack(rows), starts

    def forward(self, inputs: Any, starts: Any, lengths: np.ndarray) -> Any:
        """Gives the vectors of a batch of packed texts.

        Args:
            inputs: from `inputs`, on the device.
            starts: from `inputs`, on the device.
            lengths: shape (n,), on the host: nothing here waits for the device.

        Returns:
            A tensor on the device: shape (n, dimension before truncation), float32.
        """
        import torch

        longest = int(lengths[0])
        types = {"token_type_ids": inputs[2:3]} if self._takes_types else {}
        backbone: Any = self._backbone
        with torch.inference_mode():
            hidden = backbone(
                input_ids=inputs[0:1],
                position_ids=inputs[1:2],
                **types,
                cu_seq_lens_q=starts,
                cu_seq_lens_k=starts,
                max_length_q=longest,
                max_length_k=longest,
            ).last_hidden_state[0]
            # Modules expect rows of equal length. Texts are sorted: one or two groups, mostly.
            groups = token_batches(lengths, 2 * len(hidden))
            return torch.cat([self._pooled(hidden, starts, lengths, rows) for rows in groups])

    def _pooled(self, hidden: Any, starts: Any, lengths: np.ndarray, rows: np.ndarray) -> Any:
        import torch

        first, last, longest = int(rows[0]), int(rows[-1]) + 1, int(lengths[rows[0]])
        begins, ends = starts[first:last, None], starts[first + 1 : last + 1, None]
        place = begins + torch.arange(longest, device=hidden.device)
        # Padding repeats the text's own last token: another's NaN would pass through the mask.
        features = {
            "token_embeddings": hidden[torch.minimum(place, ends - 1)].float(),
            "attention_mask": (place < ends).long(),
        }
        for module in self._modules:
            features = module(features)
        return features["sentence_embedding"].float()


def _padding_id_of_positions(backbone: Any) -> int | None:
    """The padding id behind which RoBERTa-like models count positions; None for others.

    The rule of sentence-transformers (#3879): learned positions beside an integer padding_idx.
    """
    import torch

    for module in backbone.modules():
        padding = getattr(module, "padding_idx", None)
        learned = getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(learned, torch.nn.Embedding):
            return padding
    return None
