"""Llama-shaped chat models with random weights, from tiny to 7B, written as ordinary transformers folders.

python bench/random_models.py SHAPE FOLDER [DEVICE]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# hidden, intermediate, layers, heads, key-value heads, vocabulary, embeddings tied. The shapes are those of SmolLM2-135M and
# -360M, Llama-3.2-1B and Llama-2-7B, whose configurations are public.
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "tiny": (64, 128, 2, 4, 2, 512, True),
    "30M": (256, 768, 12, 4, 2, 49152, True),
    "135M": (576, 1536, 30, 9, 3, 49152, True),
    "360M": (960, 2560, 32, 15, 5, 49152, True),
    "1B": (2048, 8192, 16, 32, 8, 128256, True),
    "7B": (4096, 11008, 32, 32, 32, 32000, False),
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens and the two chat tokens; loses nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    return fast


def model_folder(name: str, work: Path, device: str = "cpu") -> Path:
    """The folder of a shape, written once per work folder by a process of its own (its memory must not count as a part's);
    any other name is a folder already."""
    if name not in SHAPES:
        return Path(name)
    folder = work / f"model-{name}"
    if not folder.is_dir():
        subprocess.run([sys.executable, __file__, name, str(folder), device], check=True, stdout=sys.stderr)
    return folder


def write(name: str, folder: Path, device: str) -> None:
    """Random bfloat16 weights (seed 0) and the byte tokenizer; the folder appears whole."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SHAPES[name]
    tokenizer: Any = byte_tokenizer()
    config: Any = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def multiplied_parameters(folder: Path) -> int:
    """Weights that each token is multiplied by: all but an input embedding of its own. 2 FLOP each in a forward pass
    (attention over earlier tokens left out), 6 with the backward pass."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    whole = sum(p.numel() for p in model.parameters())  # a tied embedding is counted once, as the output's
    return whole if config.tie_word_embeddings else whole - model.get_input_embeddings().weight.numel()


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "cpu")
