"""How fast an endpoint is asked: buckets, pauses, and calls in flight that follow what the server says."""

import asyncio

import pytest

from nashtune.errors import BudgetError, OracleError
from nashtune.judging.pace import Bucket, Pace, duration
from nashtune.judging.prices import find_price
from nashtune.recipe import EngineSection
from nashtune.store.ledger import Caps, Ledger, Terms


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def pace(time: Time, most: int = 100, **limits: float) -> Pace:
    return Pace(most, **limits, clock=time.clock, sleep=time.sleep)


def go(pace: Pace, time: Time, calls: int, tokens: float = 1) -> list[float]:
    """When each of so many calls was let through."""
    passed: list[float] = []

    async def one() -> None:
        async with pace.slot(tokens):
            passed.append(time.now - 1000)

    async def together() -> None:
        await asyncio.gather(*(one() for _ in range(calls)))

    asyncio.run(together())
    return passed


def test_requests_and_tokens_a_minute_are_kept_after_the_first_minutes_worth() -> None:
    time = Time()
    assert go(pace(time, requests_per_minute=60), time, 63)[-3:] == pytest.approx([1, 2, 3])
    time = Time()
    assert go(pace(time, tokens_per_minute=600), time, 8, tokens=100)[-2:] == pytest.approx([10, 20])


def test_a_call_larger_than_a_minutes_tokens_waits_for_a_full_bucket_and_goes() -> None:
    time = Time()
    assert go(pace(time, tokens_per_minute=600), time, 2, tokens=1800)[0] == 0
    assert time.now - 1000 == pytest.approx(180)  # what it took beyond the bucket is owed


def test_a_pause_holds_everyone_back_for_as_long_as_the_server_asks() -> None:
    time = Time()
    held = pace(time)
    held.pause(90_000)
    held.pause(5)
    assert go(held, time, 3) == pytest.approx([90_000] * 3)


def test_headers_lower_limits_and_empty_what_is_saved_up() -> None:
    time = Time()
    told = pace(time, requests_per_minute=6000)
    told.read({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "2"})
    assert go(told, time, 4) == pytest.approx([0, 0, 1, 2])
    told.read({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"})
    assert go(told, time, 1)[0] == pytest.approx(362)
    told.read({"x-ratelimit-limit-requests": "soon", "x-ratelimit-reset-requests": "?"})  # nonsense changes nothing


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("7", 7),
        ("soon", None),
        ("", None),
        ("-3", None),
    ],
)
def test_reset_times(text: str, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_calls_in_flight_rise_halve_once_for_one_jam_and_never_pass_the_most() -> None:
    time = Time()
    wide = pace(time, most=16)
    assert wide.limit == 4
    for _ in range(20):
        wide.went_well()
    assert wide.limit == 16
    wide.congested()
    wide.congested()  # at about the same time: one sign
    assert wide.limit == 8
    time.now += 2
    wide.congested()
    assert wide.limit == 4
    for _ in range(4):
        wide.went_well()
    assert 4.8 < wide.limit < 5.1  # now by one a round
    for _ in range(9):
        time.now += 2
        wide.congested()
    assert wide.limit == 1


def test_no_more_in_flight_than_the_limit() -> None:
    held, most = pace(Time(), most=3), 0

    async def one() -> None:
        nonlocal most
        async with held.slot(1):
            most = max(most, held.in_flight)
            await asyncio.sleep(0.001)

    async def together() -> None:
        await asyncio.gather(*(one() for _ in range(12)))

    asyncio.run(together())
    assert (most, held.in_flight) == (3, 0)


def test_a_bucket_without_a_rate_never_waits() -> None:
    assert Bucket(None).wait(1e9, 0) == 0


# ---- prices and caps


def test_prices_come_from_the_list_or_the_recipe() -> None:
    listed = find_price(EngineSection(model="gpt-4o"))
    assert listed.cost(1_000_000, 1_000_000) > 0
    assert "genai-prices" in listed.source
    assert find_price(EngineSection(model="gpt-4o"), batch=True).cost(10, 10) == pytest.approx(listed.cost(10, 10) / 2)
    own = find_price(
        EngineSection.model_validate({"model": "x", "price": {"input": 2, "output": 8, "cached_input": 0.5}})
    )
    assert own.cost(1_000_000, 500_000, 200_000) == pytest.approx(1.6 + 0.1 + 4)
    third = {"model": "x", "price": {"input": 3, "output": 3, "batch_factor": 0.25}}
    assert find_price(EngineSection.model_validate(third), batch=True).input == pytest.approx(0.75e-6)
    assert find_price(EngineSection(model="x", price="free")).cost(1e9, 1e9) == 0
    with pytest.raises(OracleError, match=r"'no-such-model'.*accepted: a listed model.*price: free"):
        find_price(EngineSection(model="no-such-model", base_url="http://127.0.0.1:1/v1"))


REPLY = '{"model": "m", "usage": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}}'


def test_caps_hold_for_run_and_iteration_at_the_worst_case_until_a_reply_says_less(tmp_path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        terms = Terms("run", 1, exposure=0.4, input_price=0.001, cached_price=0.0005, output_price=0.01)
        for key in "abc":
            ledger.plan(key, {})
        assert ledger.begin("a", terms, Caps(run=1.0)) == 1
        assert ledger.begin("b", terms, Caps(run=1.0)) == 1
        with pytest.raises(BudgetError, match=r"budget\.usd: 1 dollars .* 0\.8000 are spent or reserved .* 0\.4000"):
            ledger.begin("c", terms, Caps(run=1.0))
        ledger.done("a", 1, REPLY)  # 60 * 0.001 + 40 * 0.0005 + 10 * 0.01 = 0.18
        assert ledger.totals("run")["cost_usd"] == pytest.approx(0.18)
        assert ledger.begin("c", terms, Caps(run=1.0)) == 1
        ledger.failed("b", 1, "status 429", unbilled=True)
        ledger.failed("c", 1, "no reply in time")  # may have been billed: counts in full
        assert ledger.totals("run")["exposure_usd"] == pytest.approx(0.4)
        with pytest.raises(BudgetError, match="usd_per_iteration"):
            ledger.begin("b", terms, Caps(run=1.0, iteration=0.9))
        assert ledger.begin("b", Terms("run", 2, exposure=0.4), Caps(run=1.0, iteration=0.9)) == 2
        ledger.check()
    with Ledger(tmp_path / "l.sqlite") as again, pytest.raises(BudgetError, match=r"0\.9800 are spent or reserved"):
        again.begin("c", terms, Caps(run=1.0))  # what an earlier process spent counts
