"""Calls that belong together: one budget, one report, KV caches that are found again."""

import asyncio

import pytest

from fsgen_router import Budget, Finished, InvalidRequest, Router, RouterClosed, Usage
from fsgen_router.reference import world

QUESTIONS = [problem.prompt for problem in world.problems("test", 6)]
ROUTED = {"policy": "entropy>0.8", "seed": 0}


@pytest.fixture(scope="module")
def router():
    with Router("reference:fast?n_seq=4", "reference:slow?n_seq=4", **ROUTED) as made:
        yield made


def conversation(router: Router, questions: list[str]) -> list[str]:
    with router.session(max_tokens=60) as session:
        return [session.chat(question).text for question in questions]


def test_a_conversation_goes_on(router: Router) -> None:
    with router.session(max_tokens=40) as session:
        first = session.chat(QUESTIONS[0])
        assert session.messages == [{"role": "user", "content": QUESTIONS[0]}, first.message]
        second = session.chat(QUESTIONS[1])
        messages = [{"role": "user", "content": QUESTIONS[0]}, first.message, {"role": "user", "content": QUESTIONS[1]}]
        assert second.text == router.chat(messages, max_tokens=40).text
        session.chat(messages[:1])  # a conversation in the place of this one
        assert session.messages == [*messages[:1], first.message]
        with pytest.raises(InvalidRequest, match="empty"):
            session.chat("")
        assert len(session.messages) == 2
    with pytest.raises(RouterClosed, match="session was closed"):
        session.chat("again")


def test_one_budget_and_one_report_for_all_its_answers(router: Router) -> None:
    with router.session(budget=Budget(slow_tokens=24), policy="every:4", method="replace") as session:
        answers = [session.chat(question) for question in QUESTIONS[:3]]
        assert [answer.usage.slow_tokens > 0 for answer in answers] == [True, True, False]
        assert all("cap on slow tokens" in (answer.degraded or "") for answer in answers[1:])
        assert session.budget is not None
        assert session.budget.spent.slow_tokens == session.usage.slow_tokens == 24
    report = session.report()
    assert session.usage.tokens == sum(answer.usage.tokens for answer in answers)
    assert session.usage.fast.decode == sum(answer.usage.fast.decode for answer in answers)
    for name, comparison in report.comparisons.items():
        parts = [answer.report().comparisons[name] for answer in answers]
        known = [part.routed for part in parts if part.routed is not None]
        assert comparison.routed == (pytest.approx(sum(known)) if len(known) == 3 else None), name
    assert sum(report.degraded.values()) == 2
    assert "3 answers" in str(report)
    assert report.to_dict()["answers"] == 3
    assert answers[0].usage is not session.usage, "an answer's own counters stay its own"
    assert answers[0].usage.tokens < session.usage.tokens


def test_a_session_without_answers_reports_nothing(router: Router) -> None:
    session = router.session()
    assert session.usage == Usage()
    assert session.report().to_dict()["comparisons"] == {}
    assert "0 answers" in str(session.report())


def test_wrong_options_are_refused_at_once(router: Router) -> None:
    with pytest.raises(InvalidRequest, match="max_token"):
        router.session(max_token=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequest, match="budget=5"):
        router.session(budget=5)  # type: ignore[arg-type]
    with router.session(budget=Budget(slow_calls=1)) as session, pytest.raises(InvalidRequest, match="budget="):
        session.chat("a", budget=Budget(slow_calls=2))


def test_a_stream_that_is_given_up_is_no_part_of_the_conversation(router: Router) -> None:
    with router.session(policy="always", max_tokens=30, budget=Budget(slow_tokens=1000)) as session:
        for _ in range(9):  # more than there are places: each is given back
            events = session.stream_chat(QUESTIONS[0])
            next(events)
            events.close()
            session.stream_chat(QUESTIONS[0]).close()
        assert session.messages == []
        assert session.budget is not None
        assert session.budget.spent.slow_tokens >= 9
        assert session.budget.reserved.slow_tokens == 0
        *_, last = session.stream_chat(QUESTIONS[0])
        assert isinstance(last, Finished)
        assert len(session.messages) == 2


async def test_coroutines_share_a_sessions_budget(router: Router) -> None:
    async with router.session(budget=Budget(slow_calls=20), policy="every:3", method="replace") as session:
        asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
        answers = await asyncio.gather(*(session.achat(messages, max_tokens=40) for messages in asked))
        assert session.budget is not None
        assert session.budget.spent.slow_calls == sum(answer.usage.escalations for answer in answers) == 20
        assert session.usage.tokens == sum(answer.usage.tokens for answer in answers)


@pytest.mark.parametrize("n_seq", [1, 2, 4])
def test_conversations_that_take_each_others_places_say_the_same(router: Router, n_seq: int) -> None:
    conversations = [QUESTIONS[:3], QUESTIONS[3:], QUESTIONS[1:4]]
    alone = [conversation(router, questions) for questions in conversations]
    with Router(f"reference:fast?n_seq={n_seq}", f"reference:slow?n_seq={n_seq}", **ROUTED) as narrow:
        sessions = [narrow.session(max_tokens=60) for _ in conversations]
        for turn in range(3):
            for number, session in enumerate(sessions):
                answer = session.chat(conversations[number][turn])
                assert answer.text == alone[number][turn]
                if n_seq == 4 and turn:  # a place for each: all of the turns before was found, but the last token
                    found = answer.usage.fast.cached
                    assert found > answer.usage.prompt_tokens - len(conversations[number][turn]) - 12
                    assert answer.usage.slow.cached > 0 or not answer.usage.slow.forwards
