import asyncio
import math
import time

from nashtune import recipe
from nashtune.judging.scripted import ScriptedOracle
from nashtune.records import Message, Prompt, Response
from nashtune.sampling.engine import Request, SamplingParams
from nashtune.sampling.scripted import END_TOKEN, VOCABULARY, ScriptedEngine

PROMPT = Prompt.make([Message("user", "What is rain?")])


def oracle(**settings):
    return ScriptedOracle(recipe.ScriptedOracle(kind="scripted", **settings))


def answers(*texts):
    return [Response(f"r{k}", PROMPT.id, k, "student", "t", text) for k, text in enumerate(texts)]


def judge(scripted, texts, seed=1):
    return asyncio.run(scripted.judge(PROMPT, answers(*texts), seed))


def requests(n, k=5):
    return [Request(f"p{i}", PROMPT.messages, (), tuple(range(100 * i, 100 * i + k))) for i in range(n)]


def test_length_preferences_follow_the_documented_curves():
    texts = ["", "w " * 6, "w " * 24]
    assert judge(oracle(prefer="longer"), texts).scores == (1.0, 3.5, 5.0)
    assert judge(oracle(prefer="shorter"), texts).scores == (6.0, 5.0, 3.5)


def test_hash_scores_depend_on_the_text_alone_and_spread_over_1_to_6():
    texts = [f"answer {i}" for i in range(600)]
    first = judge(oracle(), texts, seed=1).scores or ()
    assert judge(oracle(), texts[::-1], seed=2).scores == first[::-1]
    counts = [first.count(float(s)) for s in range(1, 7)]
    assert sum(counts) == 600
    assert min(counts) > 60


def test_unusable_share_is_drawn_by_seed_and_carries_no_scores():
    scripted = oracle(unusable_rate=0.25)
    outcomes = [judge(scripted, ["a", "b"], seed) for seed in range(800)]
    bad = [j for j in outcomes if j.outcome == "unusable"]
    assert 150 < len(bad) < 250
    assert all(j.scores is None and j.reason for j in bad)
    assert [j.outcome for j in outcomes] == [judge(scripted, ["a", "b"], seed).outcome for seed in range(800)]
    assert judge(oracle(unusable_rate=1.0), ["a"]).outcome == "unusable"


def test_engine_is_a_function_of_prompt_and_seed():
    engine, params = ScriptedEngine(), SamplingParams()
    whole = {(c.prompt_id, c.k): c for c in engine.generate(requests(20), params)}
    parts = [c for r in reversed(requests(20)) for c in engine.generate([r], params)]
    assert len(whole) == 100
    assert all(whole[c.prompt_id, c.k] == c for c in parts)
    assert len({c.text for c in parts}) == 100
    for c in parts:
        words = [VOCABULARY[t - 1] for t in c.token_ids if t != END_TOKEN]
        assert c.text == " ".join(words)
        assert c.finish == "stop"
        assert c.token_ids[-1] == END_TOKEN
        assert c.logprob is not None
        assert -math.inf < c.logprob < 0


def test_engine_cuts_at_max_new_tokens_and_is_greedy_at_temperature_0():
    long = list(ScriptedEngine().generate(requests(40), SamplingParams()))
    short = list(ScriptedEngine().generate(requests(40), SamplingParams(max_new_tokens=10)))
    assert {c.finish for c in short} == {"stop", "length"}
    for a, b in zip(long, short, strict=True):
        assert b.token_ids == a.token_ids[:10]
        assert (b.finish == "length") == (len(a.token_ids) > 10)
    greedy = list(ScriptedEngine().generate(requests(1), SamplingParams(temperature=0)))
    assert len({c.text for c in greedy}) == 1


def test_engine_is_fast():
    start = time.process_time()
    assert sum(1 for _ in ScriptedEngine().generate(requests(2000), SamplingParams())) == 10_000
    assert time.process_time() - start < 3.0  # measured 0.4 s
