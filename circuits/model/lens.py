"""What TransformerLens's tools ask of a model, beyond hooks: one base class holds this contract.

`cfg` is the view of our config that they read and switch; the methods are those they call. Which tool needs what was
found by hiding one attribute at a time from transformer-lens 4.3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix, HookedRootModule
from transformer_lens.config import TransformerLensConfig
from transformer_lens.utilities import composition_scores

from circuits.model.cache import SUM_OF_PARTS, cache_of
from circuits.model.config import ModelConfig
from circuits.model.hooks import Turn
from circuits.model.layers import Unembed
from circuits.model.mlp import act_fn
from circuits.model.options import ONE_STACK, WHOLE


def check_device(given: Any) -> None:
    """Raise ValueError for the name of a device that torch does not know, or finds none of."""
    if not isinstance(given, str | torch.device):
        return
    try:
        device = torch.device(given)
    except RuntimeError:
        raise ValueError(
            f"device: got {given!r}; expected 'cpu', or 'cuda' where there is an NVIDIA GPU. `circuits doctor` says "
            "whether there is."
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: got {str(given)!r}; expected 'cpu', since this PyTorch finds no NVIDIA GPU. `circuits doctor` "
            "says what is missing."
        )


def lens_config(config: ModelConfig) -> TransformerLensConfig:
    """The same shape in TransformerLens's words; its switches start off."""
    lens = TransformerLensConfig(
        d_model=config.d_model,
        d_head=config.d_head,
        n_layers=config.n_layers,
        n_ctx=config.n_ctx,
        n_heads=config.n_heads,
        d_mlp=config.d_mlp,
        d_vocab=config.d_vocab,
        act_fn=act_fn(config),
        eps=config.norm_eps,
        normalization_type="RMSPre",
        default_prepend_bos=False,
    )
    lens.use_hook_mlp_in = lens.use_attn_in = lens.parallel_attn_mlp = False
    return lens


class LensModel(HookedRootModule):
    """A model that TransformerLens's tools take for one of theirs."""

    cfg: TransformerLensConfig
    tokenizer: Any
    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"]
    blocks: nn.ModuleList
    unembed: Unembed

    def __init__(self) -> None:
        super().__init__()
        self.turn = Turn()

    @contextmanager
    def hooks(self, *args: Any, **kwargs: Any) -> Iterator["LensModel"]:
        """TransformerLens's, by turns: other threads wait with their passes until these hooks are gone."""
        with self.turn, super().hooks(*args, **kwargs) as hooked:
            yield hooked

    def run_with_cache(self, *args: Any, return_cache_object: bool = True, **kwargs: Any) -> Any:
        """Run and keep every hooked activation; the cache is a `SparseCache`, or a dict when asked."""
        remove_batch_dim = kwargs.pop("remove_batch_dim", False)
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            cache = cache_of(self, cache, has_batch_dim=not remove_batch_dim)
        return out, cache

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's. Raises ValueError for a device that there is none of."""
        for given in (*args[:1], kwargs.get("device")):
            check_device(given)
        return super().to(*args, **kwargs)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding weights."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias."""
        return self.unembed.b_U

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "... d_model"]:
        """Columns of W_U for token ids or a token's text: the direction that raises each token's logit."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        if isinstance(tokens, int):
            return self.W_U[:, tokens]
        return self.W_U.T[tokens.squeeze() if tokens.numel() == 1 else tokens]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases that layers before `layer` (and this layer's attention, if mlp_input) add."""
        SUM_OF_PARTS.check(self, "accumulated_bias", instead="Read the biases of sublayers one by one.")
        blocks: Any = self.blocks
        total = torch.zeros_like(self.W_pos[0])
        for i in range(layer):
            total = total + blocks[i].attn.b_O
            if include_mlp_biases:
                total = total + blocks[i].mlp.b_out
        return total + blocks[layer].attn.b_O if mlp_input else total

    def blocks_with(self, submodule: str) -> list[tuple[int, nn.Module]]:
        """(layer, block) pairs that have the submodule `attn` or `mlp`: here, all of them."""
        return [(i, block) for i, block in enumerate(self.blocks) if hasattr(block, submodule)]

    def to_tokens(self, text: str | list[str], **_: Any) -> Int[Tensor, "batch pos"]:
        """Token ids of one text or of several of equal length. Raises ValueError without a tokenizer."""
        rows = [self._tokenizer().encode(t) for t in ([text] if isinstance(text, str) else text)]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"text: the texts have {sorted({len(row) for row in rows})} tokens; expected one length. "
                "Tokenize them one by one, or pad them."
            )
        return torch.tensor(rows, dtype=torch.int64, device=self.W_E.device)

    def to_str_tokens(self, text: str | Int[Tensor, "..."], **_: Any) -> list[str]:
        """The tokens of a text, or of one row of ids, each as its text."""
        ids = self.to_tokens(text)[0] if isinstance(text, str) else text.reshape(-1)
        return [self._tokenizer().decode([id]) for id in ids.tolist()]

    def to_string(self, tokens: Int[Tensor, "..."] | list[int]) -> Any:
        """The text of a row of ids; of several rows [batch, pos], a list of texts."""
        if isinstance(tokens, Tensor) and tokens.ndim == 2:
            return [self._tokenizer().decode(row.tolist()) for row in tokens]
        return self._tokenizer().decode(tokens.tolist() if isinstance(tokens, Tensor) else list(tokens))

    def to_single_token(self, text: str) -> int:
        """The id of a text that is exactly one token. Raises ValueError otherwise."""
        return self._tokenizer().id(text)

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of all layers."""
        return self._stacked("W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights of all layers."""
        return self._stacked("W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights of all layers."""
        return self._stacked("W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of all layers."""
        return self._stacked("W_O")

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q W_K^T` of every head [layer, head, d_model, d_model], as its two factors."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V W_O` of every head [layer, head, d_model, d_model], as its two factors."""
        return FactoredMatrix(self.W_V, self.W_O)

    def tl_parameters(self) -> dict[str, Tensor]:
        """Weights of all sublayers by TransformerLens's names, which its `SVDInterpreter` reads."""
        ONE_STACK.check(self, "tl_parameters", instead="Read the weights of its stacks: model.linear(...).")
        found: dict[str, Tensor] = {"unembed.W_U": self.W_U}
        for i, block in self.blocks_with("attn"):
            parts: Any = block
            found |= {
                f"blocks.{i}.attn.{name}": getattr(parts.attn, name) for name in ("W_Q", "W_K", "W_V", "W_O")
            }
            found |= {f"blocks.{i}.mlp.{name}": getattr(parts.mlp, name) for name in ("W_in", "W_out")}
        return found

    def all_head_labels(self) -> list[str]:
        """`L0H0` and so on, layer by layer."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer head later_layer later_head"]:
        """Composition of every head with every later one by "Q", "K" or "V", 0 for others and where a head is all zero.

        Source: Elhage et al. 2021. With null models and significance: `circuits.composition.composition`.
        """
        if mode not in ("Q", "K", "V"):
            raise ValueError(f"mode: got {mode!r}; expected 'Q', 'K' or 'V'.")
        read = {"Q": self.QK, "K": self.QK.T, "V": self.OV}[mode]
        scores = composition_scores(self.OV, read, broadcast_dims=True).nan_to_num(nan=0.0)
        layer = torch.arange(self.cfg.n_layers, device=scores.device)
        return scores * (layer[:, None, None, None] < layer[:, None])

    def _stacked(self, name: str) -> Any:
        ONE_STACK.check(
            self, name, instead="Of its kinds of heads: circuits.heads.stacks.group_weights(model)."
        )
        blocks: Any = self.blocks
        return torch.stack([getattr(block.attn, name) for block in blocks])

    def set_use_attn_result(self, on: bool) -> None:
        """Compute `hook_result`, each head's own contribution."""
        self._check_one_stack(on, "use_attn_result")
        self.cfg.use_attn_result = on

    def set_use_split_qkv_input(self, on: bool) -> None:
        """Give each head its own hooked copy of the residual stream for q, k and v."""
        self._check_one_stack(on, "use_split_qkv_input")
        self.cfg.use_split_qkv_input = on

    def set_use_hook_mlp_in(self, on: bool) -> None:
        """Pass the MLP's residual input through `hook_mlp_in`."""
        self.cfg.use_hook_mlp_in = on

    def set_use_attn_in(self, on: bool) -> None:
        """Not offered: the split q, k, v inputs do the same and more. Raises ValueError when asked for."""
        if on:
            raise ValueError("use_attn_in: got True; use set_use_split_qkv_input(True) instead.")

    def _check_one_stack(self, on: bool, name: str) -> None:
        if on:
            ONE_STACK.check(self, name, instead="Heads that look at the encoder have no such hooks.")
            WHOLE.check(self, name, instead="Look at its heads as they are: hook_q, hook_z.")

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("tokenizer: this model has none; pass tokenizer= to SparseTransformer.")
        return self.tokenizer
