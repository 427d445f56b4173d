"""Where calls go: a server's address, the key to it, and a client."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

import openai

from nashtune.errors import OracleError
from nashtune.judging.chat import well_formed
from nashtune.recipe import EngineSection

SHORTEST_SECRET = 16  # characters; a shorter key ("none", "EMPTY") is no secret and may be an ordinary word


class Endpoint:
    """An engine's server. ``url`` is its address without closing slash. Raises OracleError for an
    address that is none, and where the key to a server other than this machine's is not there."""

    def __init__(self, engine: EngineSection) -> None:
        self._engine = engine
        self.url, self._loopback = _public_url(engine.base_url)
        self._api_key = self._read_api_key()

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._api_key,
            base_url=self._engine.base_url,
            max_retries=0,  # a POST that the SDK repeats could be billed twice without the ledger knowing
            timeout=None,  # asyncio.timeout bounds the whole request, the SDK's only the gaps between bytes
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not self._loopback, timeout=None),
        )

    def _read_api_key(self) -> str:
        if self._engine.api_key_file is not None:
            return self._fit_for_a_header(self._read_file(self._engine.api_key_file))
        if key := os.environ.get(self._engine.api_key_env, "").strip():
            return self._fit_for_a_header(key)
        if self._loopback:
            return "none"
        raise OracleError(f"{self.url}: {self.key_source()} is not set; it holds the API key")

    def _read_file(self, name: str) -> str:
        accepted = "accepted: a file with the key alone"
        try:
            key = Path(name).expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise OracleError(f"engine.api_key_file: {name}: {error.strerror}; {accepted}") from None
        except UnicodeDecodeError:
            raise OracleError(f"engine.api_key_file: {name}: not a text file; {accepted}") from None
        if not key:
            raise OracleError(f"engine.api_key_file: {name}: empty; {accepted}")
        return key

    def _fit_for_a_header(self, key: str) -> str:
        """An HTTP client would name a key that it cannot send in its error message."""
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise OracleError(
                f"{self.url}: {self.key_source()} holds {len(key)} characters that are no API key; accepted: one word of "
                "printable ASCII characters"
            )
        return key

    def key_source(self) -> str:
        """Where the key is looked for."""
        file = self._engine.api_key_file
        return (
            f"the file {file} (engine.api_key_file)"
            if file
            else (f"the environment variable {self._engine.api_key_env} (engine.api_key_env)")
        )

    def redact(self, text: str) -> str:
        """What a server says, fit to be kept: it may repeat the key it was given, which must reach neither the ledger nor a
        message, and it may hold halves of surrogate pairs."""
        text = well_formed(text)
        return text.replace(self._api_key, "[key]") if len(self._api_key) >= SHORTEST_SECRET else text


def _public_url(base_url: str) -> tuple[str, bool]:
    """The address (which the recipe checked) without closing slash; whether it is this machine's."""
    parts = urlsplit(base_url)
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    if parts.hostname == "localhost":
        return url, True
    try:
        return url, ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return url, False
