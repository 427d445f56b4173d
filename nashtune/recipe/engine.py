"""Servers that answer prompts: address, prices, limits, batches."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from nashtune.recipe.base import NEUTRAL, Section


class PriceSection(Section):
    """What a model costs, where genai-prices does not list it or you pay otherwise (dollars per million tokens)."""

    input: float = Field(ge=0)
    """Prompt tokens."""
    output: float = Field(ge=0)
    """Tokens of the reply."""
    cached_input: float | None = Field(default=None, ge=0)
    """Prompt tokens the server had in its cache; null takes `input`."""
    batch_factor: float = Field(default=0.5, gt=0, le=1)
    """What the batch API multiplies prices by."""


class EngineSection(Section):
    """An OpenAI-compatible server that answers prompts."""

    base_url: str = "https://api.openai.com/v1"
    """Address of the server's OpenAI-compatible API."""
    model: str
    """Model name sent with each request."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=NEUTRAL)
    """Environment variable that holds the key; never written anywhere."""
    api_key_file: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A file with the key alone, in place of the environment variable."""
    price: PriceSection | Literal["free"] | None = Field(default=None, json_schema_extra=NEUTRAL)
    """null takes the model's price from genai-prices (an unlisted model is an error); `free` is for a server of your own."""
    concurrency: int = Field(default=16, ge=1, json_schema_extra=NEUTRAL)
    """Most requests in flight at once; fewer while the server shows signs of congestion."""
    requests_per_minute: float | None = Field(default=None, gt=0, json_schema_extra=NEUTRAL)
    """Rate limit; null learns it from the server's headers, where it sends any."""
    tokens_per_minute: float | None = Field(default=None, gt=0, json_schema_extra=NEUTRAL)
    """Rate limit in tokens, prompt and reply together; null learns it from the server's headers."""
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        default="auto", json_schema_extra=NEUTRAL
    )
    """The server's name for the longest reply; auto tries max_tokens and changes over where the server asks for it."""
    on_model_change: Literal["stop", "accept"] = Field(default="stop", json_schema_extra=NEUTRAL)
    """What to do where the server answers with another model than when the run began."""
    probe: bool = Field(default=True, json_schema_extra=NEUTRAL)
    """Find out with seven tiny calls what a judge's server can do before anything is judged; false trusts the recipe."""
    batch: bool = Field(default=False, json_schema_extra=NEUTRAL)
    """Send calls by the batch API: about half the price, up to a day's wait."""
    batch_size: int = Field(default=10_000, ge=1, json_schema_extra=NEUTRAL)
    """Most calls in one batch."""
    batch_poll_s: float = Field(default=60, gt=0, json_schema_extra=NEUTRAL)
    """Seconds between looks at a batch."""
    timeout_s: float = Field(default=120, gt=0, json_schema_extra=NEUTRAL)
    """Seconds until a request is given up and tried again."""
    max_attempts: int = Field(default=6, ge=1, json_schema_extra=NEUTRAL)
    """Tries of one request before the run stops with an error."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        """An address is saved with the run and shown in reports, so it may carry no secret."""
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("accepted: http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")
        if "@" in url.netloc or url.query or url.fragment:
            raise ValueError(
                "it carries a user, a password, a query or a fragment, which would be saved with the run; accepted: the address "
                "alone, and a key by api_key_env or api_key_file"
            )
        return value
