"""Pointsman in front of two real vLLM servers."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

CHAT = "/v1/chat/completions"
# The first test waits for both servers to start.
pytestmark = pytest.mark.timeout(600)


def chat(text: str, **more) -> dict:
    """A greedy request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **more}


def post(url: str, path: str, body: dict, timeout: float = 120) -> bytes:
    answer = httpx.post(url + path, json=body, timeout=timeout)
    assert answer.status_code == 200, answer.text
    return answer.content


def without_identity(answer: bytes) -> bytes:
    """An answer without what vLLM makes anew for each request: its id and its time."""
    return re.sub(rb'"(id|created)":\s*("[^"]*"|\d+)', rb'"\1":0', joined(answer))


def joined(answer: bytes) -> bytes:
    """A stream with its text in one piece: a busy vLLM puts several tokens into one event, by chance."""
    if not answer.startswith(b"data:"):
        return answer
    text, rest = "", []
    for line in answer.decode().splitlines():
        event = json.loads(line[6:]) if line.startswith("data: {") else None
        choice = event["choices"][0] if event and event["choices"] else {}
        place = choice.get("delta", choice)
        name = "content" if "delta" in choice else "text"
        if event and place.get(name):
            text += place.pop(name)
        if line and not (choice and choice.get("finish_reason") is None):
            rest.append(json.dumps(event) if event else line)
    return (text + "\n" + "\n".join(rest)).encode()


@pytest.mark.parametrize(
    "path, body",
    [
        (CHAT, chat("Which track does the train to Leipzig take?")),
        (CHAT, chat("Which track?", stream=True, stream_options={"include_usage": True})),
        ("/v1/completions", {"model": "tiny", "prompt": "def main():", "temperature": 0, "max_tokens": 24}),
        ("/v1/completions", {"model": "tiny", "prompt": [5, 6, 7, 8], "temperature": 0, "max_tokens": 8, "stream": True}),
    ],
    ids=["chat", "chat streamed", "completion", "tokens streamed"],
)
def test_answers_are_byte_for_byte_those_of_the_server(servers, pointsman, path, body):
    gateway = pointsman("DEFAULT")
    post(servers[0].url, path, body)  # What is cached afterwards shows in the answer's usage.
    direct = without_identity(post(servers[0].url, path, body))
    post(servers[1].url, path, body)
    for _ in range(4):
        assert without_identity(post(gateway.url, path, body)) == direct
    assert sum(gateway.picks().values()) == 4


def test_errors_are_those_of_the_server(servers, pointsman):
    body = chat("x", max_tokens=-1)
    direct = httpx.post(servers[0].url + CHAT, json=body)
    through = httpx.post(pointsman("DEFAULT").url + CHAT, json=body)
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert direct.status_code == 400


def test_the_models_of_both_servers_are_listed_once_and_others_unknown(pointsman):
    gateway = pointsman("DEFAULT")
    listed = [model["id"] for model in httpx.get(gateway.url + "/v1/models").json()["data"]]
    assert sorted(listed) == ["lora-a", "lora-b", "tiny"]
    refused = httpx.post(gateway.url + CHAT, json=chat("x", model="tinny"))
    assert refused.status_code == 404 and "lora-a" in refused.json()["error"]["message"]


def test_requests_for_an_adapter_go_where_it_is_active(servers, pointsman):
    gateway = pointsman("DEFAULT")
    home, other = servers[1], servers[0]
    held = threading.Event()

    def hold():
        """Keeps the adapter active on one server most of the time: vLLM reports what runs, not what is loaded. With
        pauses, since a vLLM that computes all the time on a small machine answers nothing else."""
        while not held.is_set():
            post(home.url, CHAT, chat("hold", model="lora-a", max_tokens=300, ignore_eos=True))
            time.sleep(0.2)

    def asked() -> float:
        """How many requests `home` has been given through the gateway, for whatever reason."""
        return sum(count for (address, _), count in gateway.picks().items() if address == home.address)

    def active(server) -> bool:
        return "lora-a" in adapters(gateway, server)

    def at_home_alone() -> bool:
        if active(other):
            # vLLM tells what ran in its last step: without another it says so for ever.
            post(other.url, CHAT, chat("another step", max_tokens=2))
        return active(home) and not active(other)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        before = asked()
        for _ in range(10):
            # A request that comes in a pause goes to the other server, and then the adapter is active there.
            wait_until(at_home_alone, 120, "the adapter is active at home alone")
            post(gateway.url, CHAT, chat("which track", model="lora-a", max_tokens=4))
        assert asked() - before >= 7, gateway.picks()
        assert gateway.picks().get((home.address, "adapter"), 0) >= 5, gateway.picks()
    finally:
        held.set()
        holder.join()


def adapters(gateway, server) -> list[str]:
    entry = next(entry for entry in gateway.state()["endpoints"] if entry["address"] == server.address)
    return (entry["engine"] or {}).get("adapters") or []


def test_prefix_cache_hits_more_of_vllms_own_cache_than_default(servers, pointsman):
    documents = [f"Document {number}. " + f"The points of track {number} are set. " * 60 for number in range(6)]
    questions = [f"{document}\n{question}" for document in documents for question in ("Who?", "When?", "Why?")]

    def hits(strategy: str) -> float:
        for server in servers:
            server.reset_prefix_cache()
        before = sum(server.counter("vllm:prefix_cache_hits_total") for server in servers)
        gateway = pointsman(strategy)
        for question in questions:
            post(gateway.url, CHAT, chat(question, max_tokens=1))
        return sum(server.counter("vllm:prefix_cache_hits_total") for server in servers) - before

    by_load, by_prefix = hits("DEFAULT"), hits("PREFIX_CACHE")
    print(f"prefix cache hits in tokens: DEFAULT {by_load}, PREFIX_CACHE {by_prefix}")
    assert by_prefix > by_load


def test_the_openai_client_works_streaming_and_not(pointsman):
    client = openai.OpenAI(base_url=pointsman("PREFIX_CACHE").url + "/v1", api_key="none")
    messages = [{"role": "user", "content": "Which track?"}]
    whole = client.chat.completions.create(messages=messages, model="tiny", temperature=0, max_tokens=16)
    pieces = client.chat.completions.create(messages=messages, model="tiny", temperature=0, max_tokens=16, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 16 or whole.choices[0].finish_reason == "stop"
    assert [model.id for model in client.models.list()].count("tiny") == 1
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(messages=messages, model="tinny")


# The last one: a server does not come back from it.
def test_a_server_killed_under_load_fails_nothing_but_what_it_was_streaming(servers, pointsman):
    gateway = pointsman("DEFAULT")
    victim = servers[1]
    outcomes = []

    def ask(number: int):
        streamed = number % 2 == 0
        body = chat(f"request {number}", max_tokens=100, ignore_eos=True, stream=streamed)
        outcomes.append(streamed_outcome(gateway, body) if streamed else whole_outcome(gateway, body))

    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(ask, number) for number in range(160)]
        wait_until(lambda: len(outcomes) >= 40, 120, "the load runs")
        victim.kill()
        for request in asked:
            request.result()
    print({outcome: outcomes.count(outcome) for outcome in set(outcomes)})
    assert set(outcomes) <= {"whole", "broken after its first byte, and said so"}, outcomes
    assert len(outcomes) == 160
    # It was in the middle of the load: what it had not begun to answer was asked elsewhere, or its stream broke.
    assert gateway.retries() + outcomes.count("broken after its first byte, and said so") > 0
    wait_until(lambda: gateway.in_flight() == 0, 10, "the ledger is empty")


def whole_outcome(gateway, body: dict) -> str:
    answer = httpx.post(gateway.url + CHAT, json=body, timeout=120)
    return "whole" if answer.status_code == 200 and answer.json()["choices"] else f"{answer.status_code} {answer.text}"


def streamed_outcome(gateway, body: dict) -> str:
    with httpx.stream("POST", gateway.url + CHAT, json=body, timeout=120) as answer:
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.read().decode()}"
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    if events[-1] == "[DONE]":
        return "whole"
    if len(events) > 1 and "error" in json.loads(events[-1]):
        return "broken after its first byte, and said so"
    return f"ended silently: {events[-2:]}"


def wait_until(true, seconds: float, what: str):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
