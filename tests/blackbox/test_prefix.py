"""PREFIX_CACHE: prompts that share a prefix go to the server that holds it, as long as load allows (annotations.md)."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.manifests import MAX_BLOCKS, STRATEGY
from harness.pages import Load
from harness.traffic import burst
from harness.upstream import counts, forget, scraped_again
from harness.wait import until

PREFIX = {STRATEGY: "PREFIX_CACHE"}
_seeds = iter(range(10**9))


def words(size_bytes: int) -> str:
    """New text of that size."""
    return random.Random(next(_seeds)).randbytes(size_bytes).hex()[:size_bytes]


def server_of(pointsman, servers, ask) -> int:
    """Which server a request goes to."""
    forget(servers)
    assert ask().status_code == 200
    return counts(servers).index(1)


def test_each_of_many_prefixes_has_a_home_and_the_homes_are_spread(start, upstreams, pool_file):
    servers = upstreams(8)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    homes = []
    for _ in range(40):
        prefix = words(3000)
        visits = {
            server_of(pointsman, servers, lambda prefix=prefix: pointsman.complete(prefix + words(300))) for _ in range(4)
        }
        assert len(visits) == 1, "the prefix is at one server, and that is idle"
        homes += visits
    assert len(set(homes)) >= 6, homes


def conversation(turns: list[str]) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]


def test_a_conversation_stays_where_it_began(start, upstreams, pool_file):
    servers = upstreams(6)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    for _ in range(10):
        turns, visits = [words(700)], set()
        for _ in range(4):
            body = {"model": "tiny", "messages": conversation(turns)}
            visits.add(
                server_of(pointsman, servers, lambda body=body: pointsman.client.post("/v1/chat/completions", json=body))
            )
            turns += [words(200), words(200)]
        assert len(visits) == 1


SHAPES = {
    "completion": ("/v1/completions", lambda text: {"prompt": text}),
    "chat": ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}),
    "chat parts": (
        "/v1/chat/completions",
        lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
    ),
    "system": (
        "/v1/chat/completions",
        lambda text: {"messages": [{"role": "system", "content": text}, {"role": "user", "content": words(50)}]},
    ),
    "Anthropic": (
        "/v1/messages",
        lambda text: {"max_tokens": 1, "system": text, "messages": [{"role": "user", "content": words(50)}]},
    ),
    "Responses": ("/v1/responses", lambda text: {"input": text}),
    "Responses with instructions": ("/v1/responses", lambda text: {"instructions": text, "input": words(50)}),
    "embeddings": ("/v1/embeddings", lambda text: {"input": text}),
    "tokens": ("/v1/completions", lambda text: {"prompt": [1000 + ord(c) for c in text]}),
    "tools": (
        "/v1/chat/completions",
        lambda text: {
            "messages": [{"role": "user", "content": words(50)}],
            "tools": [{"type": "function", "function": {"name": "f", "description": text}}],
        },
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model", ["model first", "model last"])
def test_prefixes_are_seen_in_every_api_and_key_order(shape, model, start, upstreams, pool_file):
    servers = upstreams(4)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    path, body_of = SHAPES[shape]

    def ask(text: str):
        body = body_of(text)
        body = {"model": "tiny", **body} if model == "model first" else {**body, "model": "tiny"}
        return pointsman.client.post(path, json=body)

    for _ in range(6):
        text = words(2000)
        assert len({server_of(pointsman, servers, lambda text=text: ask(text)) for _ in range(4)}) == 1


def test_escapes_and_white_space_do_not_hide_a_prefix(start, upstreams, pool_file):
    servers = upstreams(4)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    for _ in range(5):
        text = "é" + words(1500)
        escaped = "".join(rf"\u{ord(c):04x}" for c in text)
        bodies = [
            f'{{"model":"tiny","prompt":"{text}"}}',
            f'{{"model":"tiny","prompt":"{escaped}"}}',
            f'{{\n  "prompt" :\t"{text}" ,\n  "model" : "tiny"\n}}',
        ]
        visits = {
            server_of(pointsman, servers, lambda body=body: pointsman.client.post("/v1/completions", content=body.encode()))
            for body in bodies
        }
        assert len(visits) == 1


def test_adapters_do_not_share_a_prefix(start, upstreams, pool_file):
    (server,) = upstreams(1, models=["tiny", "lora-a"], load=Load(max_lora=2))
    pointsman = start("-f", pool_file([server], PREFIX).path)
    prompt = words(640)
    hit = "inference_extension_prefix_indexer_hit_bytes_sum"
    pointsman.complete(prompt)
    pointsman.complete(prompt, model="lora-a")
    assert pointsman.metrics().value(hit) == 0, "another adapter's KV cache is another"
    pointsman.complete(prompt, model="lora-a")
    assert pointsman.metrics().value(hit) == 640


def test_only_leading_blocks_match(start, upstreams, pool_file):
    (server,) = upstreams(1)
    pointsman = start("-f", pool_file([server], {**PREFIX, MAX_BLOCKS: "100"}).path)
    hit = "inference_extension_prefix_indexer_hit_bytes_sum"

    def hit_by(prompt: str) -> float:
        before = pointsman.metrics().value(hit)
        assert pointsman.complete(prompt).status_code == 200
        return pointsman.metrics().value(hit) - before

    head, middle, tail = words(640), words(640), words(640)
    assert hit_by(head + middle + tail) == 0
    assert hit_by(head + middle + words(640)) == 1280
    assert hit_by(head + words(640) + tail) == 640, "what follows a difference does not match"
    assert hit_by(words(64) + head + middle) == 0
    assert hit_by(head[:100]) == 64, "one whole block"
    assert hit_by(head[:63]) == 0, "a tail shorter than a block is ignored"


def test_a_short_shared_head_makes_no_hot_spot(start, upstreams, pool_file):
    servers = upstreams(8)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    head = "You are a helpful assistant. " * 5
    pointsman.complete(head + words(2000))
    forget(servers)
    burst(servers, [lambda: pointsman.complete(head + words(2000))] * 64)
    assert max(counts(servers)) <= 12, counts(servers)


def test_a_hot_endpoint_gives_way(start, upstreams, pool_file):
    servers = upstreams(4)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    prefix = words(1000)
    home = server_of(pointsman, servers, lambda: pointsman.complete(prefix))
    forget(servers)
    burst(servers, [lambda: pointsman.complete(prefix + words(500))] * 64)
    assert min(counts(servers)) >= 4, "64 at once are more than one prefix is worth"
    servers[home].load = Load(waiting=100, running=64, kv_usage=0.99)
    scraped_again(servers)
    forget(servers)
    for _ in range(10):
        assert pointsman.complete(prefix + words(500)).status_code == 200
    assert servers[home].requests == []


def test_a_little_load_does_not_drive_a_long_prefix_away(start, upstreams, pool_file):
    servers = upstreams(4)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    prefix = words(8000)
    home = server_of(pointsman, servers, lambda: pointsman.complete(prefix))
    servers[home].load = Load(running=2, kv_usage=0.1)
    scraped_again(servers)
    visits = [server_of(pointsman, servers, lambda: pointsman.complete(prefix + words(100))) for _ in range(5)]
    assert visits == [home] * 5


def test_a_prefix_whose_request_never_got_there_is_not_recorded(start, upstreams, pool_file):
    servers = upstreams(3)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    for server in servers:
        server.down()
    for _ in range(5):
        assert pointsman.complete(words(640)).status_code == 502
    assert pointsman.metrics().value("inference_extension_prefix_indexer_size") == 0


def test_a_prefix_is_recorded_where_the_second_try_went(start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers, PREFIX)
    pointsman = start("-f", file.path)
    servers[0].down()
    prompt = words(2000)
    for _ in range(10):
        assert pointsman.complete(prompt).status_code == 200
    assert counts(servers) == [0, 10]
    assert pointsman.metrics().value("inference_extension_prefix_indexer_size") == 2000 // 64


def test_an_endpoint_that_leaves_takes_its_blocks_along(start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers, PREFIX)
    pointsman = start("-f", file.path)
    for _ in range(20):
        assert pointsman.complete(words(640)).status_code == 200
    size = "inference_extension_prefix_indexer_size"
    assert pointsman.metrics().value(size) == 200
    kept = 10 * len(servers[1].requests)
    file.upstreams = servers[1:]
    file.save()
    until(lambda: pointsman.metrics().value(size) == kept, within=2, what="what it held is forgotten")


def test_the_choice_is_the_same_while_many_ask(start, upstreams, pool_file):
    servers = upstreams(4)
    pointsman = start("-f", pool_file(servers, PREFIX).path)
    prefixes = [words(6000) for _ in range(8)]
    for prefix in prefixes:
        assert pointsman.complete(prefix).status_code == 200
    homes = {seen.json()["prompt"][:6000]: n for n, server in enumerate(servers) for seen in server.requests}
    forget(servers)

    def client(prefix: str) -> None:
        for _ in range(10):
            assert pointsman.complete(prefix + words(100)).status_code == 200

    with ThreadPoolExecutor(len(prefixes)) as clients:
        list(clients.map(client, prefixes))
    at_home = sum(
        homes[seen.json()["prompt"][:6000]] == n for n, server in enumerate(servers) for seen in server.requests
    )
    assert at_home >= 72, f"{at_home} of 80"
