"""Passes over activations [batch, pos, ...]: attention, another layout, masks of whole features."""

from jaxtyping import Float
from torch import Tensor

from circuits.kernels.checks import check_like
from circuits.kernels.dispatch import chosen, implementation, load


def causal_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
    impl: str = "auto",
) -> Float[Tensor, "batch pos head d_head"]:
    """Each query's mean of the values up to it, weighted by `exp(s_j) / (exp(sink) + sum_i exp(s_i))`.

    s = q k / sqrt(d_head). Differentiable in q, k, v and the sink. `cpu` is torch's own flash attention, without a
    [query, key] matrix in memory; float32 and float64. There is no `triton`.

    Raises:
        ValueError: shapes that disagree, or an impl that cannot run it.

    Source: Gao et al. 2025 (arXiv 2511.13653), attention sinks; Dao et al. 2022 (arXiv 2205.14135).

    Examples:
        >>> q, k, v = torch.ones(3, 1, 2, 1, 4)
        >>> circuits.kernels.causal_attention(q, k, v, None).shape
        torch.Size([1, 2, 1, 4])
    """
    if not q.shape == k.shape == v.shape or (sink is not None and sink.shape != q.shape[2:3]):
        shapes = [None if t is None else tuple(t.shape) for t in (q, k, v, sink)]
        raise ValueError(f"q, k, v, sink have shapes {shapes}; expected q, k, v alike and sink [head]")
    z: Tensor = implementation("causal_attention", impl, q).causal_attention(q, k, v, sink)
    return z


def token_major(
    x: Float[Tensor, "batch pos *width"], impl: str = "auto"
) -> Float[Tensor, "batch pos *width"]:
    """`x.contiguous()`, differentiable: feature-major is how the sparse products leave activations.

    `cpu` is one compiled pass where x lies feature-major. There is no `triton`.

    Raises:
        ValueError: an impl that cannot run it.

    Examples:
        >>> circuits.kernels.token_major(torch.ones(4, 2, 3).permute(1, 2, 0)).is_contiguous()
        True
    """
    backend = chosen("token_major", impl, x)
    if x.is_contiguous():
        return x
    y: Tensor = load(backend).token_major(x)
    return y


def replace_features(
    x: Float[Tensor, "batch pos *width"],
    mask: Float[Tensor, "*width"],
    value: Float[Tensor, "*width"],
    impl: str = "auto",
) -> Float[Tensor, "batch pos *width"]:
    """`x * mask + value * (1 - mask)`, the mask being the same for every token; differentiable in x and mask.

    Args:
        x: activations.
        mask: 1 keeps a feature, 0 replaces it; anything between mixes.
        value: what replaces it, in its own units. `naive` is differentiable in it as well.
        impl: see `chosen_impl`. `cpu` is one compiled pass, where x lies feature-major on the CPU (as it does under
            `sparse_compute`) and the value needs no gradient. There is no `triton`.

    Raises:
        ValueError: shapes that disagree, or an impl that cannot run it.

    Examples:
        >>> x, mask, value = torch.ones(1, 1, 2), torch.tensor([1.0, 0.0]), torch.tensor([7.0, 7.0])
        >>> circuits.kernels.replace_features(x, mask, value)
        tensor([[[1., 7.]]])
    """
    width = tuple(x.shape[2:])
    check_like("mask", mask, width, mask)
    check_like("value", value, width, value)
    y: Tensor = implementation("replace_features", impl, x, mask, value).replace_features(x, mask, value)
    return y
