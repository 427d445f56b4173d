"""Published reference data, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REFERENCE_DATA = Path(
    os.environ.get("NASHTUNE_REFERENCE_DATA") or Path(__file__).parent.parent.parent / "shared" / "data"
)
needs_reference_data = pytest.mark.skipif(
    not (REFERENCE_DATA / "alpacaeval_prompts.parquet").is_file(),
    reason="no reference data ($NASHTUNE_REFERENCE_DATA, else ../shared/data)",
)
