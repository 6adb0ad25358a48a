"""One model as the bridges see it: named points on its residual stream, read and replaced by hooks.

A model of L layers has 2L + 1 locations: `embed`, then `0.attn`, `0.mlp`, `1.attn`, ... (the residual stream
after the embedding, after each attention, after each MLP). Both sides run their own, unmodified forward pass.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.model.hooks import keep
from circuits.model.options import ONE_STACK
from circuits.model.subject import hash_of_weights
from circuits.model.transformer import SparseTransformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    Model: TypeAlias = SparseTransformer | TransformerBridge
else:  # importing TransformerLens's wrapper changes the interpreter's warning filters; only its users should see that
    Model: TypeAlias = nn.Module
"""A model with hooks on its residual stream: ours, or TransformerLens's wrapper of a Hugging Face model."""
Edit: TypeAlias = Callable[[Tensor], Tensor]
"""From the value at a location [batch, pos, d_model] to the one that takes its place."""
Role = Literal["dense", "sparse"]


def locations(n_layers: int) -> tuple[str, ...]:
    """Names of the 2 * n_layers + 1 residual-stream points, in forward order.

    Examples:
        >>> circuits.bridges.locations(2)
        ('embed', '0.attn', '0.mlp', '1.attn', '1.mlp')
    """
    return ("embed", *(f"{layer}.{part}" for layer in range(n_layers) for part in ("attn", "mlp")))


class Side:
    """The dense or the sparse model behind one interface. Raises ValueError for a model without the hooks."""

    def __init__(self, model: Model, role: Role) -> None:
        if not _has_hooks(model):
            raise ValueError(
                f"{role}: got a {type(model).__name__}; expected a SparseTransformer or a TransformerBridge. Wrap "
                "a Hugging Face model with TransformerBridge.boot_transformers(name, hf_model=..., tokenizer=...)."
            )
        ONE_STACK.check(
            model, "a bridge", instead="Bridge a decoder: a location is a point on one residual stream."
        )
        self.model, self.role = model, role
        self.is_ours = isinstance(model, SparseTransformer)
        self.n_layers, self.d_model = int(model.cfg.n_layers), int(model.cfg.d_model)
        self.d_vocab, self.n_ctx = int(model.cfg.d_vocab), int(model.cfg.n_ctx)

    @cached_property
    def locations(self) -> tuple[str, ...]:
        """The points that it has, in forward order. A wrapped model is run once, on a few tokens, to see which."""
        every = locations(self.n_layers)
        if self.is_ours or self._has_middles():
            return every
        return tuple(place for place in every if not place.endswith("attn"))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        keep: Collection[str] = (),
        replace: Mapping[str, Edit] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[str, Tensor]]:
        """Logits, and the values [batch, pos, d_model] at the locations to keep, after any replacement."""
        kept: dict[str, Tensor] = {}
        replace = replace or {}
        hooks: list[tuple[str, Callable[..., Any]]] = []
        for place in self.locations:
            if place in keep or place in replace:
                edit = partial(_edit, place, replace.get(place), kept if place in keep else None)
                hooks += self._hooks(place, edit)
        with self.model.hooks(fwd_hooks=hooks):
            return self.model(tokens), kept

    def fingerprint(self) -> str:
        """A hash of the weights: the same bits, the same 16 hexadecimal digits."""
        if self.is_ours:
            return self.model.fingerprint()
        return hash_of_weights(self.model.original_model.named_parameters())

    def _hooks(self, place: str, edit: Edit) -> list[tuple[str, Callable[..., Any]]]:
        if place == "embed":
            return [("blocks.0.hook_resid_pre", lambda x, hook: edit(x))]
        layer, part = place.split(".")
        if part == "mlp":
            return [(f"blocks.{layer}.hook_resid_post", lambda x, hook: edit(x))]
        if self.is_ours:
            return [(f"blocks.{layer}.hook_resid_mid", lambda x, hook: edit(x))]
        return _middle_hooks(layer, edit)

    def _has_middles(self) -> bool:
        """Whether each point after attention is where the wrapped model's arithmetic says it is; one pass for all."""
        tokens = torch.zeros(1, min(4, self.n_ctx), dtype=torch.int64, device=self.device)
        summed: dict[str, Tensor] = {}
        said: dict[str, Tensor] = {}
        hooks: list[tuple[str, Callable[..., Any]]] = []
        for layer in map(str, range(self.n_layers)):
            hooks += _middle_hooks(layer, partial(_edit, layer, None, summed))
            hooks.append((f"blocks.{layer}.hook_resid_mid", partial(keep, said, layer)))
        try:
            with torch.no_grad(), still(self.model), self.model.hooks(fwd_hooks=hooks):
                self.model(tokens)
            for layer in map(str, range(self.n_layers)):
                torch.testing.assert_close(summed[layer], said[layer], rtol=1e-3, atol=1e-4)
        except (KeyError, AssertionError, AttributeError):
            return False
        return True


def _has_hooks(model: Any) -> bool:
    if isinstance(model, SparseTransformer):
        return True
    from transformer_lens.model_bridge import TransformerBridge

    return isinstance(model, TransformerBridge)


def _edit(place: str, replace: Edit | None, kept: dict[str, Tensor] | None, x: Tensor) -> Tensor:
    x = x if replace is None else replace(x)
    if kept is not None:
        kept[place] = x
    return x


def _middle_hooks(layer: str, edit: Edit) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that edit a wrapped model's residual stream after attention.

    Its own `hook_resid_mid` is only the input of the norm before the MLP: a value put there never reaches the
    skip connection. So the attention's output is changed instead, by as much as the sum is: where an edit changes
    nothing, the pass keeps its bits, however large the stream is beside what attention adds.
    """
    before: dict[str, Tensor] = {}
    return [
        (f"blocks.{layer}.hook_resid_pre", partial(keep, before, layer)),
        (f"blocks.{layer}.hook_attn_out", partial(_edit_sum, before, layer, edit)),
    ]


def _edit_sum(before: dict[str, Tensor], layer: str, edit: Edit, attn_out: Tensor, hook: Any) -> Tensor:
    total = before.pop(layer) + attn_out
    return attn_out + (edit(total) - total)


@contextmanager
def still(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the weights; every flag is as it was afterwards."""
    parameters = [(p, p.requires_grad) for model in models for p in model.parameters()]
    modules = [(m, m.training) for model in models for m in model.modules()]
    try:
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        for module, _ in modules:
            module.training = False
        yield
    finally:
        for parameter, flag in parameters:
            parameter.requires_grad_(flag)
        for module, flag in modules:
            module.training = flag
