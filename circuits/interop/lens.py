"""Any model that TransformerLens wraps, as a subject: GPT-2, Llama and their like, with their own forward pass.

    from transformer_lens.model_bridge import TransformerBridge
    subject = LensSubject(TransformerBridge.boot_transformers("gpt2").eval())

    subject = LensSubject(bridge, sites=("attn_head", "mlp_neuron"))    # whole heads, and neurons

Its sites are those that its hooks reach. The weights are dense, so that no edge is a weight: what stands between the
nodes of a circuit are measured effects (`circuits.circuit.effects`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from circuits.model.sites import ROWS, WHOLE_HEADS, Site, SiteName, all_sites
from circuits.model.subject import hash_of_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    Bridge: TypeAlias = TransformerBridge
else:  # importing TransformerLens's wrapper changes the interpreter's warning filters; only its users should see that
    Bridge: TypeAlias = nn.Module

HOOKS: dict[SiteName, str] = {
    name: ROWS[name].hook
    for name in ("attn_q", "attn_k", "attn_v", "attn_head", "attn_out", "mlp_neuron", "mlp_out")
}
"""Hook points inside a layer. They are called as ours are; attn_in and mlp_in are left out, since a wrapped model's
`hook_in` comes before its norm and ours after it."""
DEFAULT: tuple[SiteName, ...] = ("attn_q", "attn_k", "attn_v", "attn_out", "mlp_neuron", "mlp_out")
"""Sites whose coordinates are nodes unless others are asked for; whole heads are asked for by name."""


class LensSubject:
    """A wrapped model in eval mode, with those of the sites in `HOOKS` that it has, layer by layer.

    A node of `attn_head` is all channels of what one head carries over, before W_O. With grouped queries, k and v have
    a channel for each head that there is of them, and are narrower than q. Raises ValueError for anything but a
    TransformerBridge in eval mode, and for one that no hook reaches.
    """

    def __init__(self, bridge: Bridge, *, sites: Sequence[SiteName] | None = None) -> None:
        """sites: names of those whose nodes are looked at; others are left as they are. None: `DEFAULT`.

        "attn_head": whole heads; "mlp_neuron": neurons; the others: single channels.
        """
        _check(bridge)
        _check_sites(sites)
        self.bridge = bridge
        self.tokenizer: Any = bridge.tokenizer
        found = _measured(bridge)
        self._widths = {site: n for site, n in found.items() if site.name in (sites or DEFAULT)}
        if not self._widths:
            raise ValueError(
                f"bridge: none of the hook points {list(HOOKS.values())} is met when it runs; expected a decoder "
                "with attention and MLP. TransformerLens's adapter of this architecture has no names for them."
            )

    @property
    def widths(self) -> Mapping[Site, int]:
        """Number of coordinates of every site, in forward order."""
        return self._widths

    @property
    def d_vocab(self) -> int:
        """Number of logits."""
        return int(self.bridge.cfg.d_vocab)

    @property
    def n_ctx(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def like(self) -> Shaped[Tensor, "..."]:
        """The first weight that is no whole number: the type and place of activations."""
        return next(p for p in self.bridge.parameters() if p.is_floating_point())

    def sites(self) -> list[Site]:
        """Every site that its hooks reach, in forward order."""
        return list(self._widths)

    def hook_name(self, site: Site) -> str:
        """The hook point of a site, as the wrapped model's own aliases call it."""
        return f"blocks.{site.layer}.{HOOKS[site.name]}"

    def hooks(self, fwd_hooks: list[tuple[str, Callable[..., Any]]]) -> AbstractContextManager[Any]:
        """Run with hooks, as `HookedRootModule.hooks`."""
        return self.bridge.hooks(fwd_hooks=fwd_hooks)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """No gradients to weights inside, so that a pass need not keep what they would be made of."""
        needed = [parameter.requires_grad for parameter in self.bridge.parameters()]
        try:
            self.bridge.requires_grad_(False)
            yield
        finally:
            for parameter, need in zip(self.bridge.parameters(), needed, strict=True):
                parameter.requires_grad_(need)

    def fingerprint(self) -> str:
        """A hash of the weights: 16 hexadecimal digits, those that bridges know the same model by."""
        return hash_of_weights(self.bridge.original_model.named_parameters())

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the wrapped model's own forward pass."""
        return self.bridge(tokens)


def _check(bridge: Any) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    if not isinstance(bridge, TransformerBridge):
        raise ValueError(
            f"bridge: got a {type(bridge).__name__}; expected a TransformerBridge. Wrap a Hugging Face model with "
            "TransformerBridge.boot_transformers(name, hf_model=..., tokenizer=...). A SparseTransformer needs none."
        )
    if bridge.training:
        raise ValueError(
            "bridge: it is in training mode, where dropout makes every run another function; call bridge.eval()."
        )


def _check_sites(sites: Any) -> None:
    if sites is None:
        return
    unknown = [name for name in sites if name not in HOOKS]
    if isinstance(sites, str) or unknown or not sites:
        raise ValueError(
            f"sites: got {sites!r}; expected some of {list(HOOKS)}, or None for {list(DEFAULT)}."
        )


def _measured(bridge: Any) -> dict[Site, int]:
    """Widths of the sites that a run on one token meets, in forward order."""
    found: dict[Site, int] = {}

    def look(site: Site) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            found[site] = value.shape[2] if site.name in WHOLE_HEADS else value.flatten(2).shape[-1]

        return keep

    wanted = [site for site in all_sites(int(bridge.cfg.n_layers), headed=True) if site.name in HOOKS]
    known = set(bridge.hook_dict)
    looks = [(name, look(s)) for s in wanted if (name := f"blocks.{s.layer}.{HOOKS[s.name]}") in known]
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(bridge.parameters()).device)
    with torch.no_grad(), bridge.hooks(fwd_hooks=looks):
        bridge(token)
    return {site: found[site] for site in wanted if site in found}
