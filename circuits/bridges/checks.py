"""What bridges ask of models, text and locations before and while they are fitted."""

from collections.abc import Sequence

from torch import Tensor

from circuits.bridges.maps import Pair
from circuits.bridges.sides import Side
from tasks import Corpus
from tasks.tokenizer_files import check_same_tokenizer


def resolve_pairs(dense: Side, sparse: Side, pairs: Sequence[Pair] | None) -> tuple[Pair, ...]:
    """The pairs to tie. Raises ValueError for locations that do not exist, or none given at unequal depths."""
    if pairs is None:
        if dense.locations != sparse.locations:
            raise ValueError(
                f"pairs: got None, but the dense model has locations {dense.locations} and the sparse one "
                f"{sparse.locations}; expected pairs such as (('embed', 'embed'), ...). Choose which to tie."
            )
        return tuple(Pair(place, place) for place in dense.locations)
    for pair in pairs:
        for side in (dense, sparse):
            place = getattr(pair, side.role)
            if place not in side.locations:
                raise ValueError(
                    f"pairs: got {place!r} for the {side.role} model; expected one of {side.locations}."
                )
    return tuple(pairs)


def check_text(side: Side, text: Corpus) -> None:
    """Raise ValueError when a model has another vocabulary or tokenizer than the text."""
    if side.d_vocab != text.tokenizer.d_vocab:
        raise ValueError(
            f"{side.role}: got a model of {side.d_vocab} tokens; expected {text.tokenizer.d_vocab}, the vocabulary of "
            f"the text {text.name!r}. Both models must be trained on the text's tokenizer."
        )
    theirs = side.model.tokenizer
    check_same_tokenizer(
        theirs,
        text.tokenizer,
        name=side.role,
        got=f"the text {text.name!r}",
        expected="text in the model's tokens",
        do="Bridges need one tokenizer for both models: train both on one text.",
    )
    if theirs is None or theirs == text.tokenizer:
        return
    sample = text.tokenizer.decode(text.val[:256].tolist())
    options = {} if side.is_ours else {"add_special_tokens": False}
    try:
        agrees = list(theirs.encode(sample, **options)) == text.tokenizer.encode(sample)
    except ValueError:
        agrees = False
    if not agrees:
        raise ValueError(
            f"{side.role}: its tokenizer does not encode the text {text.name!r} as {text.tokenizer.name!r} does; "
            "expected the same ids for the same text. Bridges need one tokenizer for both models."
        )


def check_finite(side: Side, values: dict[str, Tensor]) -> None:
    """Raise ValueError when activations at a location hold NaN or infinity."""
    for place, value in values.items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"text: the {side.role} model's activations at {place!r} hold NaN or infinity; expected finite "
                "numbers. Check the model's weights, or lower its learning rate if it is being trained."
            )
