"""A folder that `save_pretrained` of transformers wrote, as a subject: read from disk, nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuits.interop.lens import LensSubject
from circuits.model.sites import SiteName


def load_hf(folder: str | Path, *, sites: Sequence[SiteName] | None = None) -> LensSubject:
    """The causal language model and the tokenizer in a folder, wrapped and in eval mode.

    sites: those of `LensSubject`, such as ("attn_head", "mlp_neuron"). Code in the folder is not run, and weights are
    read from safetensors alone. Raises ValueError for a folder without model or tokenizer, one that lacks weights, and
    for an architecture that TransformerLens has no adapter of.

    Examples:
        >>> from tokenizers import ByteLevelBPETokenizer
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> shape = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=257, bos_token_id=0, eos_token_id=0)
        >>> GPT2LMHeadModel(shape).save_pretrained("gpt2")
        >>> bytes_alone = ByteLevelBPETokenizer()
        >>> bytes_alone.train_from_iterator([""], vocab_size=257, special_tokens=["<s>"], show_progress=False)
        >>> marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<s>")
        >>> _ = PreTrainedTokenizerFast(tokenizer_object=bytes_alone._tokenizer, **marks).save_pretrained("gpt2")
        >>> subject = circuits.interop.load_hf("gpt2", sites=["attn_head"])
        >>> list(subject.widths.values())
        [2]
    """
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = _read(Path(folder))
    try:
        bridge: Any = TransformerBridge.boot_transformers(str(folder), hf_model=model, tokenizer=tokenizer)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"folder: {folder} holds a {type(model).__name__}, of which TransformerLens has no adapter ({error}); "
            "expected a decoder such as GPT-2, Llama or Pythia."
        ) from None
    return LensSubject(bridge.eval(), sites=sites)


def _read(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"folder: {folder} has no config.json; expected a folder that save_pretrained of transformers wrote, with "
            "its model and its tokenizer."
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **here
        )
        model, told = loaded
        tokenizer = AutoTokenizer.from_pretrained(folder, **here)
        lacking = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in told[kind])
        if lacking:  # transformers would fill them with random numbers
            raise ValueError(f"it lacks {len(lacking)} weights, such as {lacking[0]}")
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"folder: {folder} cannot be read ({said[0] if said else type(error).__name__}); expected a causal "
            "language model and a tokenizer that save_pretrained wrote."
        ) from None
    model.config.architectures = [type(model).__name__]
    return model.eval(), tokenizer
