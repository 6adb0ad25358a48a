"""The logit lens of a model of ours: what each stage of the residual stream would answer, the bigram table beside it.

TransformerLens's own refuses a model with a bigram table, whose logits are more than the unembedded stream. Here the
table's part is added at every stage, as the model adds it at the last. Source: nostalgebraist 2020.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.model.cache import SUM_OF_PARTS
from circuits.model.hooks import keep
from circuits.model.kinds import of_ours
from circuits.model.options import ONE_STACK
from circuits.model.transformer import SparseTransformer


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """Logits that each stage of the stream would give by itself."""

    labels: tuple[str, ...]
    "`0_pre`, `0_mid` and so on, and `final`, as TransformerLens calls them."
    values: Float[Tensor, "stage batch pos d_vocab"]
    "With the bigram table's part; the last stage is what the model answers."
    bigram: Float[Tensor, "batch pos d_vocab"] | None
    "The table's part alone, the same at every stage; None where the model has no table."


@of_ours
def logit_lens(model: SparseTransformer, tokens: Int[Tensor, "batch pos"]) -> LogitLens:
    """Every stage of the residual stream through the final norm and the unembedding, plus the bigram table's part.

    Raises ValueError for an encoder-decoder, and for a stream that is not read through one norm at the end.
    """
    ONE_STACK.check(model, "logit_lens", instead="Run the decoder: model.decode(tokens, memory).")
    SUM_OF_PARTS.check(model, "logit_lens", instead="Look at the last stage: model(tokens).")
    names = [
        f"blocks.{i}.hook_resid_{stage}" for i in range(model.config.n_layers) for stage in ("pre", "mid")
    ]
    names.append(f"blocks.{model.config.n_layers - 1}.hook_resid_post")
    kept: dict[str, Tensor] = {}
    watched = [*names, "hook_bigram"] if model.bigram is not None else names
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(keep, kept, name)) for name in watched]):
        model(tokens)
        bigram = kept.get("hook_bigram")
        stages = [_unembedded(model, kept[name]) for name in names]
    values = torch.stack(stages if bigram is None else [stage + bigram for stage in stages])
    labels = (*(f"{name.split('.')[1]}_{name.rpartition('_')[2]}" for name in names[:-1]), "final")
    return LogitLens(labels=labels, values=values, bigram=bigram)


def _unembedded(model: SparseTransformer, stream: Float[Tensor, "batch pos d_model"]) -> Tensor:
    x = model.ln_final(stream)
    logits: Tensor = model.unembed(x, model.W_E) if model.config.tied else model.unembed(x)
    return logits
