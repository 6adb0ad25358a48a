"""TransformerLens's cache, exact where AbsTopK acts: what a head, a neuron or a bias adds is what AbsTopK let through.

A layer's output is AbsTopK of a sum: of heads and a bias, or of neurons and a bias. Where it kept a coordinate, each
part of the sum adds there what it says; where it did not, none adds anything.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

from circuits.model.options import Says
from circuits.model.sites import Site

SUM_OF_PARTS = Says(few_bits=None, compose=None, act=None, embed_scale=None, experts=None, factor_ratio=None)
"""Whose residual stream is the sum of its embedding and of what sublayers wrote, read through RMSNorm."""


class SparseCache(ActivationCache):
    """An `ActivationCache` whose head results, neuron results and biases sum to the residual stream.

    The model's own `hook_result` stays what it is, each head's output before the bias and AbsTopK.
    """

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "SparseCache":
        """As in TransformerLens."""
        part = super().apply_slice_to_batch_dim(batch_slice)
        return SparseCache(part.cache_dict, self.model, has_batch_dim=part.has_batch_dim)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Any:
        """As in TransformerLens, of what AbsTopK let through; what it left out is in no term."""
        stack, labels = super().stack_head_results(
            layer, return_labels=True, incl_remainder=incl_remainder, pos_slice=pos_slice
        )
        n_heads, layers = self.model.cfg.n_heads, range(self._layer(layer))
        if len(layers) and any(self._acts(i, "attn_out") for i in layers):
            let = torch.stack([self._let_through(i, "attn_out", pos_slice) for i in layers])
            lost = stack[: len(layers) * n_heads] * ~let.repeat_interleave(n_heads, dim=0)
            stack[: len(lost)] -= lost
            if incl_remainder:
                stack[-1] += lost.sum(0)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Any = None,
        pos_slice: Any = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """As in TransformerLens, of what AbsTopK let through."""
        if not self._acts(layer, "mlp_out"):
            return super().get_neuron_results(layer, neuron_slice, pos_slice, project_output_onto)
        found = super().get_neuron_results(layer, neuron_slice, pos_slice)
        let = self._let_through(layer, "mlp_out", pos_slice)
        found = found * (let if found.ndim == let.ndim else let.unsqueeze(-2))
        return found if project_output_onto is None else found @ project_output_onto

    def stack_neuron_results(
        self, layer: int | None, *args: Any, project_output_onto: Tensor | None = None, **options: Any
    ) -> Any:
        """As in TransformerLens, of what AbsTopK let through."""
        whole = project_output_onto is not None and options.get("apply_ln", False)
        if not whole or not any(self._acts(i, "mlp_out") for i in range(self._layer(layer))):
            return super().stack_neuron_results(
                layer, *args, project_output_onto=project_output_onto, **options
            )
        # TransformerLens's own short cut multiplies weights before it looks at activations: there is no room to mask.
        found = super().stack_neuron_results(layer, *args, **options)
        stack, *labels = found if isinstance(found, tuple) else (found,)
        return (stack @ project_output_onto, *labels) if labels else stack @ project_output_onto

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """As in TransformerLens, of what AbsTopK let through: the sum is the residual stream."""
        stack, labels = super().get_full_resid_decomposition(
            layer, mlp_input, expand_neurons, apply_ln, pos_slice, True, project_output_onto
        )
        last = self._layer(layer)
        sums = [(i, site) for i in range(last) for site in ("attn_out", "mlp_out")]
        sums = [(i, site) for i, site in sums if expand_neurons or site == "attn_out"]
        sums += [(last, "attn_out")] if mlp_input else []
        if any(self._acts(i, site) for i, site in sums):
            bias = torch.stack([self._bias(i, site, pos_slice) for i, site in sums]).sum(0, keepdim=True)
            if apply_ln:
                bias = self.apply_ln_to_stack(bias, last, pos_slice=pos_slice, mlp_input=mlp_input)
            stack[-1] = bias[0] if project_output_onto is None else bias[0] @ project_output_onto
        return (stack, labels) if return_labels else stack

    def _layer(self, layer: int | None) -> int:
        return self.model.cfg.n_layers if layer is None or layer == -1 else layer

    def _acts(self, layer: int, site: str) -> bool:
        return acts_at(self.model.config, layer, site)

    def _let_through(self, layer: int, site: str, pos_slice: Any) -> Bool[Tensor, "... d_model"]:
        """Where AbsTopK passed the output of a sublayer on, or it was zero all along."""
        name = f"blocks.{layer}.hook_{site}"
        if name not in self.cache_dict:
            raise ValueError(
                f"cache: it holds no {name}, which says what AbsTopK let through of layer {layer}; expected it. Run "
                "run_with_cache without names_filter, or let the filter pass that hook."
            )
        where = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        value = where.apply(self.cache_dict[name], dim=-2)
        return value != 0 if self._acts(layer, site) else torch.ones_like(value, dtype=torch.bool)

    def _bias(self, layer: int, site: str, pos_slice: Any) -> Float[Tensor, "... d_model"]:
        """What the bias of a sublayer added."""
        block: Any = self.model.blocks[layer]
        bias = block.attn.b_O if site == "attn_out" else block.mlp.b_out
        return bias * self._let_through(layer, site, pos_slice)


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: "StackCache", *_: Any, **__: Any) -> Any:
        SUM_OF_PARTS.check(
            self.model, f"cache.{name}", instead='Read single activations: cache["name of a hook"].'
        )
        raise AssertionError("only models that are refused have this cache")

    refuse.__doc__ = "Refused, by the option that takes the meaning from it. Raises ValueError."
    return refuse


class StackCache(SparseCache):
    """The cache of a model whose residual stream is no plain sum of parts: what adds parts up refuses, by name."""

    accumulated_resid = _refused("accumulated_resid")
    apply_ln_to_stack = _refused("apply_ln_to_stack")
    compute_head_results = _refused("compute_head_results")
    decompose_resid = _refused("decompose_resid")
    get_full_resid_decomposition = _refused("get_full_resid_decomposition")
    get_neuron_results = _refused("get_neuron_results")
    logit_attrs = _refused("logit_attrs")
    stack_activation = _refused("stack_activation")
    stack_head_results = _refused("stack_head_results")
    stack_neuron_results = _refused("stack_neuron_results")

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "StackCache":
        """As in TransformerLens."""
        part = ActivationCache.apply_slice_to_batch_dim(self, batch_slice)
        return StackCache(part.cache_dict, self.model, has_batch_dim=part.has_batch_dim)


def cache_of(model: Any, cache_dict: dict[str, Tensor], *, has_batch_dim: bool) -> SparseCache:
    """The cache that is right for a model."""
    kind = SparseCache if SUM_OF_PARTS.holds(model) else StackCache
    return kind(cache_dict, model, has_batch_dim=has_batch_dim)


def acts_at(config: Any, layer: int, site: Any) -> bool:
    """Whether AbsTopK leaves something out at a site."""
    k = config.topk(Site(layer, site))
    return k is not None and k < config.width(Site(layer, site))
