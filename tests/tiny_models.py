"""Tiny Hugging Face models and a character tokenizer, built on the spot: in memory or as a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CHARACTERS = "0123456789+-*=() abcdefghijklmnopqrstuvwxyz\n.,:?#"
ARCHITECTURES = ("qwen3", "llama", "gpt2")
TEMPLATE = "{% for m in messages %}{{ m['role'][:1] }}:{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def tiny_tokenizer(pad_is_eos: bool = False, chat: bool = False) -> Any:
    """One token per character; 0 is <pad> (or absent), <eos> ends. With ``pad_is_eos`` the two are one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<eos>"] if pad_is_eos else ["<pad>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<eos>",
        pad_token="<eos>" if pad_is_eos else "<pad>",
        unk_token="?",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(
    architecture: str = "qwen3",
    *,
    tied: bool = True,
    vocabulary: int = len(CHARACTERS) + 2,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    scale: float = 10.0,
    **config: Any,
) -> Any:
    """A randomly initialised causal LM with logits far from uniform (``scale`` multiplies the weights of the matrices)."""
    import transformers

    common = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if architecture == "gpt2":
        shape = {"n_embd": hidden, "n_layer": layers, "n_head": 2, "n_positions": 512}
        settings = transformers.GPT2Config(**{**common, **shape, **config})
    else:
        shape = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "intermediate_size": 2 * hidden,
            "max_position_embeddings": 4096,
        }
        kind = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}[architecture]
        settings = kind(**{**common, **shape, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model.to(dtype).eval()


def tiny_directory(folder: Path, architecture: str = "qwen3", *, pad_is_eos: bool = False, chat: bool = False, **options: Any) -> Path:
    """A directory that ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` load."""
    tokenizer = tiny_tokenizer(pad_is_eos, chat)
    model = tiny_model(architecture, vocabulary=len(tokenizer), **options)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
