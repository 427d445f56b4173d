"""The compact, pairwise, self, panel and cascade oracles, against a real server on loopback and a real (tiny) model."""

import asyncio
import dataclasses
import json
import math

import pytest
from judge_server import JudgeServer, score
from tiny_chat import write_tiny_policy

from nashtune.errors import OracleError
from nashtune.judging.cascade import choose, reversed_presentation, sureness, win_rate_bounds
from nashtune.judging.chat import Choice
from nashtune.judging.compact import read_scores
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.registry import Resources, open_oracle, oracle_needs, parts_of
from nashtune.judging.replies import UnusableReply
from nashtune.judging.self_oracle import expected_score
from nashtune.recipe import parse_recipe
from nashtune.records import Judgment, Message, Policy, Prompt, Response

PROMPT = Prompt.make([Message("system", "Be brief."), Message("user", "What is rain?")])
WORDS = (3, 24, 8, 14)  # the server scores them 1, 5, 2, 3
TRUTH = tuple(score("w " * n) for n in WORDS)


def answers(words=WORDS, teacher=1):
    return [
        Response(f"r{k}", PROMPT.id, k, "teacher" if k == teacher else "student", "t", "w " * n)
        for k, n in enumerate(words)
    ]


def section(oracle):
    return parse_recipe({"name": "x", "policy": {"model": "m"}, "prompts": {"source": "p"}, "oracle": oracle}).oracle


def resources(policy=None):
    return Resources(ledger=lambda: None, payer=lambda: None, policy=lambda: policy)


def engine(server, **more):
    return {"base_url": server.url, "model": "judge", "price": "free", **more}


def judge(oracle, candidates=None, seed=5, policy=None) -> Judgment:
    opened = open_oracle(section(oracle), resources(policy))

    async def run():
        try:
            return await opened.judge(PROMPT, answers() if candidates is None else candidates, seed)
        finally:
            await opened.aclose()

    return asyncio.run(run())


# ---- compact


@pytest.mark.parametrize("seed", range(4))
def test_compact_scores_come_back_in_the_candidates_order(seed):
    with JudgeServer() as server:
        found = judge({"kind": "compact", "engine": engine(server), "replies": 2}, seed=seed)
    assert found.scores == TRUTH
    assert (found.outcome, found.usage.calls) == ("ok", 1)  # two replies in one call, by n


def test_compact_averages_its_replies_and_orders():
    with JudgeServer(["vary", "vary"]) as server:
        found = judge({"kind": "compact", "engine": engine(server), "replies": 2, "orders": 2})
    assert found.scores == tuple(s - 0.5 for s in TRUTH)
    assert found.usage.calls == 2


def test_compact_asks_again_where_the_server_ignores_n():
    with JudgeServer(["one"]) as server:
        found = judge({"kind": "compact", "engine": engine(server), "replies": 3})
        assert [body.get("n", 1) for body in server.requests] == [3, 1, 1]
    assert (found.scores, found.usage.calls) == (TRUTH, 3)


def test_compact_takes_the_expected_score_from_log_probs():
    with JudgeServer() as server:
        found = judge({"kind": "compact", "engine": engine(server), "use": "logprobs"})
        assert server.requests[0]["temperature"] == 0
    assert found.scores == pytest.approx([s - 0.25 for s in TRUTH])


@pytest.mark.parametrize(
    ("behaviour", "settings", "reason"),
    [
        ("range", {"replies": 1}, "out of range"),
        ("refusal", {"replies": 1}, "refusal"),
        ("truncated", {"replies": 1}, "truncated"),
        ("nologprobs", {"use": "logprobs"}, "no log-probs"),
        ("400:maximum context length exceeded", {"replies": 1}, "refused by the server"),
    ],
)
def test_compact_keeps_an_unusable_reply_as_such(behaviour, settings, reason):
    with JudgeServer([behaviour]) as server:
        found = judge({"kind": "compact", "engine": engine(server), **settings})
    assert found.outcome == "unusable"
    assert reason in found.reason
    assert found.scores is None


def test_compact_needs_half_of_its_replies():
    with JudgeServer(["range"]) as server:
        found = judge({"kind": "compact", "engine": engine(server), "replies": 1, "orders": 2})
    assert (found.outcome, found.scores) == ("ok", TRUTH)
    with JudgeServer(["range", "range"]) as server:
        found = judge({"kind": "compact", "engine": engine(server), "replies": 1, "orders": 3})
    assert found.outcome == "unusable"


def test_a_digit_token_is_weighed_against_tokens_of_its_own_form_only():
    tokens = ("{", '"scores"', ": [", "4", ",", " 5", "]", "}")
    top = [{t: 0.0} for t in tokens]
    top[3] = {"4": math.log(0.5), "3": math.log(0.25), "45": math.log(0.2), "four": math.log(0.05)}
    top[5] = {" 5": math.log(0.9), "6": math.log(0.1)}
    choice = Choice("".join(tokens), "stop", "", tokens, tuple(top))
    first, second = read_scores(choice, 2, True)
    assert first == pytest.approx((0.5 * 4 + 0.25 * 3) / 0.75)
    assert second == pytest.approx(0.9 * 5 + 0.1 * 6)
    joined = dataclasses.replace(choice, tokens=("{", '"scores"', ": [", "4, 5", "]", "}"), top_logprobs=tuple(top[:6]))
    with pytest.raises(UnusableReply, match="several scores"):
        read_scores(joined, 2, True)


# ---- pairwise


def test_pairwise_asks_both_orders_of_every_pair():
    with JudgeServer() as server:
        found = judge({"kind": "pairwise", "engine": engine(server)})
        assert len(server.requests) == len(WORDS) * (len(WORDS) - 1)
    wanted = [[0.5 if i == j else float(TRUTH[i] > TRUTH[j]) for j in range(4)] for i in range(4)]
    assert found.matrix == tuple(map(tuple, wanted))
    assert found.measures["flipped"] == (0, 0, 0, 0)
    assert found.win_rates() == (0, 1, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_a_judge_that_prefers_the_first_place_says_nothing_and_is_seen():
    with JudgeServer(["first"] * 12) as server:
        found = judge({"kind": "pairwise", "engine": engine(server)})
    assert {p for row in found.matrix for p in row} == {0.5}
    assert found.measures["flipped"] == (1, 1, 1, 1)


def test_pairwise_reads_log_probs_and_can_spare_students_among_themselves():
    with JudgeServer() as server:
        found = judge({"kind": "pairwise", "engine": engine(server), "use": "logprobs", "pairs": "teacher"})
        assert len(server.requests) == 6
    assert found.matrix[1] == (0.75, 0.5, 0.75, 0.75)
    assert found.matrix[0] == (0.5, 0.25, None, None)


def test_a_comparison_with_an_unusable_order_stays_unknown():
    with JudgeServer(["refusal"]) as server:
        found = judge({"kind": "pairwise", "engine": engine(server, concurrency=1)})
    assert found.outcome == "ok"
    assert sum(p is None for row in found.matrix for p in row) == 2
    with JudgeServer(["refusal"] * 12) as server:
        assert judge({"kind": "pairwise", "engine": engine(server)}).outcome == "unusable"


# ---- self


def test_the_policy_grades_itself_alike_alone_and_in_company(tmp_path):
    folder = write_tiny_policy(tmp_path / "policy")
    policy = Policy(folder, "f", "tiny")
    short = judge({"kind": "self", "dtype": "float32"}, policy=policy)  # 256 tokens of context do not hold the rubric
    assert (short.outcome, short.scores) == ("unusable", None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    together = judge({"kind": "self", "dtype": "float32"}, policy=policy)
    alone = [judge({"kind": "self", "dtype": "float32"}, [answer], policy=policy).scores[0] for answer in answers()]
    assert together.scores == pytest.approx(alone, abs=1e-3)
    assert all(0 <= s <= 6 for s in together.scores)
    assert all(0 < mass <= 1 for mass in together.measures["score_mass"])


def test_expected_score_by_hand():
    assert expected_score([math.log(1 / 7)] * 7) == pytest.approx(3)
    assert expected_score([-math.inf] * 6 + [-50.0]) == 6


# ---- panel


def scripted(prefer, **more):
    return {"oracle": {"kind": "scripted", "prefer": prefer, **more}, "weight": 1}


def test_a_panel_averages_preferences_and_reports_agreement():
    members = [scripted("longer"), scripted("longer"), scripted("shorter")]
    found = judge({"kind": "panel", "members": members})
    assert found.preference(1, 0) == pytest.approx(2 / 3)
    assert found.measures["agreement"] == (0, 0, 0, 0)
    same = judge({"kind": "panel", "members": members[:2]})
    assert same.measures["agreement"] == (1, 1, 1, 1)
    heavy = judge({"kind": "panel", "members": [members[0], members[2] | {"weight": 3}]})
    assert heavy.preference(1, 0) == pytest.approx(1 / 4)


def test_a_panel_goes_on_without_a_member_down_to_its_quorum():
    lost = scripted("longer", unusable_rate=1.0)
    found = judge({"kind": "panel", "members": [lost, scripted("longer")]})
    assert found.outcome == "ok"
    assert found.preference(1, 0) == 1
    found = judge({"kind": "panel", "members": [lost, scripted("longer")], "quorum": 2})
    assert found.outcome == "unusable"
    assert "1 of 2 members usable" in found.reason


# ---- cascade


def cascade(server, **more):
    strong = {"kind": "compact", "engine": engine(server), "replies": 1}
    cheap = {"kind": "scripted", "prefer": "longer"}
    return {"kind": "cascade", "cheap": cheap, "strong": strong, "audit": 0, **more}


def test_a_cascade_shows_the_strong_judge_teacher_best_and_worst_alone():
    candidates = answers((3, 9, 8, 24, 14), teacher=1)
    with JudgeServer() as server:
        found = judge(cascade(server), candidates)
        assert len(server.requests) == 1
        assert server.requests[0]["messages"][0]["content"].count("END OF ANSWER") == 3
    known = [i for i, s in enumerate(found.scores) if s is not None]
    assert known == [0, 1, 3]
    assert [found.scores[i] for i in known] == [score("w " * n) for n in (3, 9, 24)]
    assert set(found.order) == {0, 1, 3}


def test_a_close_call_is_asked_again_in_reverse():
    candidates = answers((3, 4, 4), teacher=0)
    with JudgeServer() as server:
        judge(cascade(server), candidates)
        first, second = (body["messages"][0]["content"] for body in server.requests)
    assert shown(first) == shown(second)[::-1]


def shown(message):
    from judge_server import answers_in

    return answers_in(message)


def test_the_presentation_is_turned_round_by_the_same_permutation():
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2), (3, 1, 0, 2)):
        turned = reversed_presentation(order)
        assert sorted(turned) == list(range(len(order)))
        assert [turned[index] for index in order] == list(order)[::-1]


def test_the_audit_share_goes_whole_to_the_audit_oracle():
    with JudgeServer() as server:
        auditor = {"kind": "rubric", "engine": engine(server)}
        found = judge(cascade(server, audit=1.0, audit_oracle=auditor))
        assert len(server.requests) == 2
    assert found.scores == TRUTH
    assert found.measures["audit"] == TRUTH
    assert sum(value is not None for value in found.measures["cascade"]) == 3
    assert found.usage.calls == 2


def test_where_the_cheap_oracle_has_no_word_the_strong_one_sees_all():
    lost = {"kind": "scripted", "unusable_rate": 1.0}
    with JudgeServer() as server:
        found = judge(cascade(server, cheap=lost))
    assert found.scores == TRUTH


def test_where_the_cheap_oracle_is_sure_its_verdict_stands_and_the_strong_one_is_not_asked():
    duels = len(WORDS) * (len(WORDS) - 1)
    with JudgeServer() as server:
        trusting = cascade(server, cheap={"kind": "pairwise", "engine": engine(server)}, trust=0.9, shown=9)
        sure = judge(trusting)
        assert len(server.requests) == sure.usage.calls == duels
        server.script.extend(["first"] * duels)  # every comparison even: sure of nothing
        unsure = judge(trusting)
        assert len(server.requests) == 2 * duels + 1
        audited = judge(trusting | {"audit": 1.0})
    assert (sure.oracle, sure.scores) == ("cascade", None)
    assert sure.win_rates() == (0, 1, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert unsure.scores == TRUTH, "whole, as `shown` is no fewer than the candidates"
    assert audited.scores == TRUTH
    assert audited.measures == {"cascade": sure.win_rates(), "audit": TRUTH}


def test_sureness_by_hand():
    matrix = ((None, 0.9, 0.5), (0.1, None, 0.3), (0.5, 0.7, None))
    assert sureness(Judgment("p", ("a", "b", "c"), "x", matrix=matrix)) == pytest.approx((0.9 + 0.5 + 0.7) / 3)
    holed = ((None, 0.9, None), (0.1, None, 0.3), (None, 0.7, None))
    assert sureness(Judgment("p", ("a", "b", "c"), "x", matrix=holed)) is None
    assert sureness(Judgment("p", ("a",), "x", matrix=((None,),))) is None


def test_bounds_and_choice_by_hand():
    matrix = ((None, 0.5, 1.0), (0.5, None, 1.0), (0.0, 0.0, None))
    judgment = Judgment("p", ("r0", "r1", "r2"), "x", matrix=matrix)
    bounds = win_rate_bounds(judgment, z=2)
    assert bounds[0].high == pytest.approx(0.75 + 2 * 0.5 / 2)  # the error of (0.5, 1) is sqrt(0.25 + 0) / 2
    assert (bounds[2].low, bounds[2].high) == (0, 0)
    assert choose(judgment, answers((1, 2, 3), teacher=9), 2, 1.0) == (0, 2)


def test_an_unfit_judge_is_not_let_into_a_cascade(tmp_path):
    cheap = {"kind": "preference_model", "folder": str(tmp_path / "none")}
    strong = {"kind": "scripted"}
    with pytest.raises(OracleError, match="none"):
        open_oracle(section({"kind": "cascade", "cheap": cheap, "strong": strong}), resources())


def test_parts_and_needs_of_nested_oracles():
    fluent = {"kind": "rules", "guard": {"min_fluency": -3.0}}
    nested = section({"kind": "panel", "members": [{"oracle": fluent}, {"oracle": {"kind": "scripted"}}]})
    assert [part.kind for part in parts_of(nested)] == ["panel", "rules", "scripted"]
    assert oracle_needs(nested) == {"0"}


def test_calls_are_bought_once_across_runs_that_share_a_ledger(tmp_path):
    from nashtune.judging.dispatch import Payer
    from nashtune.store.ledger import Ledger

    with JudgeServer() as server, Ledger(tmp_path / "shared.sqlite") as ledger:
        for run in ("first", "second"):
            shared = Resources(lambda: ledger, lambda run=run: Payer(run, 1), lambda: None)  # type: ignore[arg-type]
            opened = open_oracle(section({"kind": "pairwise", "engine": engine(server)}), shared)
            asyncio.run(opened.judge(PROMPT, answers(), 5))
        assert len(server.requests) == 12
        assert ledger.totals("first")["done"] == 12
        assert ledger.totals("second")["calls"] == 0


def test_dispatcher_is_free_to_be_used_without_a_ledger():
    with JudgeServer() as server:
        opened = Dispatcher(section({"kind": "compact", "engine": engine(server)}).engine)
        assert opened.price.input == 0
