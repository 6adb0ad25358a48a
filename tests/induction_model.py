"""Small bridges, and the hand-made induction model: what the tests of heads and of composition look at."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from docs.experiments.decoys import D_VOCAB, INDUCTION, PREVIOUS, induction_model

__all__ = ["D_VOCAB", "INDUCTION", "PREVIOUS", "bridge", "induction_model"]


def bridge(kind: str) -> Any:
    """A TransformerBridge of a small random GPT-2 or Llama (grouped heads, rotary); nothing is downloaded."""
    shape: dict[str, Any]
    if kind == "gpt2":
        shape = dict(n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=32)
        hf: Any = GPT2LMHeadModel(GPT2Config(**shape))
    else:
        shape = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32)
        hf = LlamaForCausalLM(
            LlamaConfig(**shape, intermediate_size=64, vocab_size=50, max_position_embeddings=32)
        )
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="w1",
        eos_token="w1",
        pad_token="w1",
        unk_token="w0",
        name_or_path="local",
        add_bos_token=True,
    )
    hf.config.architectures = [type(hf).__name__]
    return TransformerBridge.boot_transformers("local", hf_model=hf.eval(), tokenizer=tokenizer)
