"""What the network does between the gateway and its servers, and between clients and the gateway: resets, half-closes,
silence and slowness at any byte."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.faults import Faults, rule
from harness.wait import until

TOKENS = 8


@pytest.fixture
def between():
    """Puts a proxy before these addresses."""
    made: list[Faults] = []

    def between(*addresses: str, seed: int = 0) -> Faults:
        made.append(Faults(*addresses, seed=seed))
        return made[-1]

    yield between
    for faults in made:
        faults.close()


@pytest.fixture
def faulty(start, upstreams, between):
    """Two servers, of which the first is reached through the proxy, and a gateway before them."""

    def faulty(*arguments: object, count: int = 2):
        servers = upstreams(count)
        for server in servers:
            server.answers(tokens=TOKENS)
        faults = between(servers[0].address)
        addresses = [faults.addresses[0], *(server.address for server in servers[1:])]
        words = [word for address in addresses for word in ("--endpoint", address)]
        return servers, faults, start(*words, *arguments)

    return faulty


def ask_until_met(pointsman, faults: Faults, ask) -> list[httpx.Response]:
    """Asks until a fault was met; all the answers."""
    before, answers = faults.met(), []

    def asked() -> bool:
        answers.append(ask(pointsman))
        return faults.met() > before

    until(asked, within=30, what="a request meets the fault")
    return answers


def whole(pointsman) -> httpx.Response:
    return pointsman.complete("word " * 100)


def streamed(pointsman) -> httpx.Response:
    return pointsman.complete("word " * 100, stream=True)


def words_of(answer: httpx.Response) -> str:
    """The text of a stream."""
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event).get("choices", [])]
    return "".join(choice["text"] for choice in choices)


def assert_nothing_is_left(pointsman) -> None:
    until(
        lambda: pointsman.metrics().value("pointsman_endpoint_in_flight_requests") == 0,
        within=10,
        what="nothing is in flight when nobody waits",
    )


ALL_WORDS = "".join(f"word{number} " for number in range(TOKENS))
REQUEST_BYTES = [0, 80, 600]


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize("does", ["reset", "half_close"])
def test_a_request_broken_off_at_any_byte_is_sent_to_the_next(ask, does, faulty):
    _, faults, pointsman = faulty()
    for at in REQUEST_BYTES:
        faults.rules(rule("up", at, does))
        answers = ask_until_met(pointsman, faults, ask)
        assert [answer.status_code for answer in answers] == [200] * len(answers), f"at byte {at}"
    assert_nothing_is_left(pointsman)


@pytest.mark.parametrize("does", ["reset", "half_close"])
def test_an_answer_broken_off_in_its_head_is_asked_for_again(does, faulty):
    _, faults, pointsman = faulty()
    for at in [0, 9, 50]:
        faults.rules(rule("down", at, does))
        for answer in ask_until_met(pointsman, faults, streamed):
            assert answer.status_code == 200 and words_of(answer) == ALL_WORDS, f"at byte {at}: {answer.text}"
    assert_nothing_is_left(pointsman)


@pytest.mark.parametrize("does", ["reset", "half_close"])
def test_a_stream_broken_off_at_any_byte_is_whole_or_says_that_it_is_not(does, faulty):
    servers, faults, pointsman = faulty()
    for at in (60, 150, 400, 700):
        faults.rules(rule("down", at, does))
        for answer in ask_until_met(pointsman, faults, streamed):
            assert answer.status_code == 200
            words = words_of(answer)
            assert ALL_WORDS.startswith(words), f"at byte {at}: {answer.text}"
            done, error = "[DONE]" in answer.text, '"error"' in answer.text
            assert done != error, f"at byte {at}: {answer.text}"
            assert not done or words == ALL_WORDS, f"at byte {at}: {answer.text}"
    assert_nothing_is_left(pointsman)


def test_a_whole_answer_broken_off_is_never_taken_for_whole(faulty):
    _, faults, pointsman = faulty()
    for at in (100, 200):
        faults.rules(rule("down", at, "reset"))

        def ask(pointsman):
            try:
                answer = whole(pointsman)
            except httpx.RemoteProtocolError:
                return None
            assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == "word " * TOKENS
            return answer

        ask_until_met(pointsman, faults, ask)
    assert_nothing_is_left(pointsman)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_server_that_falls_silent_before_its_first_byte_is_given_up_for_the_next(way, faulty):
    _, faults, pointsman = faulty("--first-byte-timeout", "500ms")
    faults.rules(rule(way, 30, "blackhole"))
    for answer in ask_until_met(pointsman, faults, streamed):
        assert answer.status_code == 200 and words_of(answer) == ALL_WORDS
    assert_nothing_is_left(pointsman)


def test_a_stream_that_falls_silent_ends_with_an_error_event(faulty):
    _, faults, pointsman = faulty("--stream-idle-timeout", "500ms")
    faults.rules(rule("down", 400, "blackhole"))
    answers = ask_until_met(pointsman, faults, streamed)
    broken = [answer for answer in answers if "[DONE]" not in answer.text]
    assert len(broken) == 1 and '"error"' in broken[0].text, [answer.text for answer in answers]
    assert_nothing_is_left(pointsman)


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_comes_byte_by_byte_comes_whole(way, faulty):
    servers, faults, pointsman = faulty()
    faults.rules(rule(way, 0, {"trickle_ms": 1}))
    for answer in ask_until_met(pointsman, faults, streamed):
        assert answer.status_code == 200 and words_of(answer) == ALL_WORDS
    assert all(seen.json()["prompt"] == "word " * 100 for server in servers for seen in server.requests)


def test_a_late_answer_is_waited_for(faulty):
    servers, faults, pointsman = faulty()
    faults.rules(rule("down", 0, {"delay_ms": 700}))
    for answer in ask_until_met(pointsman, faults, streamed):
        assert words_of(answer) == ALL_WORDS
    assert pointsman.metrics().value("pointsman_retries_total") == 0



@pytest.mark.parametrize("at", [5, 100, 300, 3000])
def test_a_client_whose_upload_is_reset_leaves_nothing_behind(at, start, upstreams, between):
    (server,) = upstreams(1)
    pointsman = start("--endpoint", server.address)
    faults = between(pointsman.gateway.removeprefix("http://"))
    faults.rules(rule("up", at, "reset"))
    body = {"model": "tiny", "prompt": "w" * 4000}
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{faults.addresses[0]}/v1/completions", json=body, trust_env=False)
    assert pointsman.complete().status_code == 200
    assert_nothing_is_left(pointsman)


def test_a_client_that_is_cut_off_while_it_reads_frees_the_server_at_once(start, upstreams, between):
    (server,) = upstreams(1)
    server.answers(tokens=1000, token_interval_s=0.05)
    pointsman = start("--endpoint", server.address)
    faults = between(pointsman.gateway.removeprefix("http://"))
    faults.rules(rule("down", 600, "reset"))
    with pytest.raises(httpx.TransportError):
        body = {"model": "tiny", "prompt": "w", "stream": True}
        httpx.post(f"http://{faults.addresses[0]}/v1/completions", json=body, trust_env=False)
    until(lambda: server.requests[0].gone_at is not None, within=2, what="the server sees that nobody waits")
    assert_nothing_is_left(pointsman)


def test_a_client_that_comes_byte_by_byte_is_served(start, upstreams, between):
    (server,) = upstreams(1)
    pointsman = start("--endpoint", server.address)
    faults = between(pointsman.gateway.removeprefix("http://"))
    faults.rules(rule("up", 4, {"trickle_ms": 1}))
    body = {"model": "tiny", "prompt": "w" * 500}
    answer = httpx.post(f"http://{faults.addresses[0]}/v1/completions", json=body, trust_env=False, timeout=30)
    assert answer.status_code == 200 and server.requests[0].json() == body
