"""What a model costs: genai-prices' list, or what the recipe says."""

from __future__ import annotations

from dataclasses import dataclass

from nashtune.errors import OracleError
from nashtune.recipe import EngineSection, HostedSection

SAMPLE = 1000  # tokens: list prices may rise for very long prompts, which judging does not send


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars a token, and where the figures come from."""

    input: float
    cached: float
    """An input token that the server had in its prefix cache."""
    output: float
    source: str

    def cost(self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0) -> float:
        """Dollars for one call."""
        return (
            (prompt_tokens - cached_tokens) * self.input + cached_tokens * self.cached + completion_tokens * self.output
        )

    def times(self, factor: float) -> Price:
        return Price(self.input * factor, self.cached * factor, self.output * factor, f"{self.source} x {factor:g}")


FREE = Price(0.0, 0.0, 0.0, "free (recipe)")
HOSTED = Price(0.0, 0.0, 0.0, "hosted")


def find_price(engine: EngineSection | HostedSection, *, batch: bool = False) -> Price:
    """The price of ``engine.model``; half (``price.batch_factor``) in batches. Raises OracleError for an unknown model: what
    a call costs must be known before it is sent. A hosted model costs no dollars, but time of one's own machines."""
    if isinstance(engine, HostedSection):
        return HOSTED
    if engine.price == "free":
        return FREE
    factor = 0.5
    if engine.price is not None:
        given = engine.price
        cached = given.input if given.cached_input is None else given.cached_input
        price = Price(given.input / 1e6, cached / 1e6, given.output / 1e6, "recipe")
        factor = given.batch_factor
    else:
        price = _listed(engine)
    return price.times(factor) if batch else price


def _listed(engine: EngineSection) -> Price:
    import genai_prices

    def dollars(**tokens: int) -> float:
        usage = genai_prices.Usage(**tokens)
        try:
            found = genai_prices.calc_price(usage, engine.model, provider_api_url=engine.base_url)
        except LookupError:
            found = genai_prices.calc_price(usage, engine.model)
        return float(found.total_price) / SAMPLE

    try:
        one, cached, output = (
            dollars(input_tokens=SAMPLE),
            dollars(input_tokens=SAMPLE, cache_read_tokens=SAMPLE),
            dollars(output_tokens=SAMPLE),
        )
    except LookupError:
        raise OracleError(
            f"engine.model: {engine.model!r} at {engine.base_url} is not in the price list of genai-prices "
            f"{genai_prices.__version__}; accepted: a listed model, `engine.price` with `input` and `output` (dollars per "
            "million tokens), or `engine.price: free` for a server of your own"
        ) from None
    return Price(one, cached, output, f"genai-prices {genai_prices.__version__}")
