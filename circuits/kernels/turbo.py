"""Attention in few bits, as operations: a whole text at once, and one more token after packed keys and values."""

from jaxtyping import Float
from torch import Tensor

from circuits.kernels.dispatch import implementation
from circuits.kernels.quantised import TILE, Stored


def turbo_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
    *,
    n_r: int = -6,
    tile: int = TILE,
    impl: str = "auto",
) -> Float[Tensor, "batch pos head d_head"]:
    """Causal attention of INT8 tiles of q, k, v and weights, with SAS for the exponential; no gradients.

    A tile's scale is that of all its tokens, so the last bits of an early output depend on later tokens of its tile.
    There is no `cpu`; `triton` sums int8 products in int32.

    Raises:
        ValueError: shapes that disagree, or an impl that cannot run it.

    Source: Kang et al. 2024, "TurboAttention" (arXiv 2412.08585), algorithm 1.

    Examples:
        >>> q, k, v = torch.ones(3, 1, 2, 1, 4)
        >>> circuits.kernels.turbo_attention(q, k, v, None).shape
        torch.Size([1, 2, 1, 4])
    """
    if not q.shape == k.shape == v.shape:
        shapes = [tuple(t.shape) for t in (q, k, v)]
        raise ValueError(f"q, k, v: got shapes {shapes}; expected three alike, [batch, pos, head, d_head].")
    z: Tensor = implementation("turbo_attention", impl, q).turbo_attention(q, k, v, sink, n_r, tile)
    return z


def turbo_decode(
    q: Float[Tensor, "batch 1 head d_head"],
    stored: Stored,
    sink: Float[Tensor, " head"] | None,
    *,
    n_r: int = -6,
    impl: str = "auto",
) -> Float[Tensor, "batch 1 head d_head"]:
    """Attention of one token to everything stored, itself included; no gradients.

    `cpu` and `triton` read the packed bytes and sum whole numbers.

    Raises:
        ValueError: nothing stored, shapes that disagree, or an impl that cannot run it.

    Source: Kang et al. 2024, "TurboAttention" (arXiv 2412.08585), algorithm 2.

    Examples:
        >>> from circuits.model.mixers.past import TurboConfig, begun
        >>> past = begun(torch.ones(1, 80, 2, 8), torch.ones(1, 80, 2, 8), TurboConfig())
        >>> circuits.kernels.turbo_decode(torch.ones(1, 1, 2, 8), past, None).shape
        torch.Size([1, 1, 2, 8])
    """
    batch, _, n_heads, d_head = q.shape
    expected = (batch, n_heads, stored.keys.tile, d_head)
    if stored.n_tokens == 0 or tuple(stored.recent_keys.shape) != expected:
        raise ValueError(
            f"stored: got {stored.n_tokens} tokens in buffers {tuple(stored.recent_keys.shape)}; expected at least "
            f"one, in buffers {expected}, as q says."
        )
    z: Tensor = implementation("turbo_decode", impl, q).turbo_decode(q, stored, sink, n_r)
    return z
