"""Saturation, waiting and priority (annotations.md, sections 1 and 2), through the HTTP gateway."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from harness import pages
from harness.errors import assert_error
from harness.http1 import Wire
from harness.http2 import Http2
from harness.manifests import QUEUE_CAPACITY, QUEUE_TTL, QUEUEING, ManifestFile, pool_v1, slice_of
from harness.upstream import MetricsFault, Upstream, scraped_again
from harness.wait import holds, until

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"model": "tiny", "prompt": "one"}'
NEXT = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
GROUP = "inference.networking.x-k8s.io/v1alpha2"
FULL = 0.9
"""Of the KV cache: nobody has room."""
ONE_AT_A_TIME = 5
"""Waiting requests with which an endpoint has room for one more."""


def objective(name: str, priority: int | None) -> dict:
    spec = {"poolRef": {"name": "pool"}, **({} if priority is None else {"priority": priority})}
    return {"apiVersion": GROUP, "kind": "InferenceObjective", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def model(name: str, criticality: str) -> dict:
    spec = {"poolRef": {"name": "pool"}, "modelName": name, "criticality": criticality}
    return {"apiVersion": GROUP, "kind": "InferenceModel", "metadata": {"name": name.lower(), "namespace": "default"}, "spec": spec}


DOCUMENTS = [
    *(objective(name, priority) for name, priority in [("high", 10), ("plain", None), ("low", -10), ("lowest", -20)]),
    *(model(name, name) for name in ("Critical", "Standard", "Sheddable")),
]


class House:
    """A gateway before servers, its pool's annotations, and clients in threads."""

    def __init__(self, start, servers: list[Upstream], file: ManifestFile, annotations: dict, *arguments: object) -> None:
        self.servers, self.file = servers, file
        self.annotate(annotations)
        self.pointsman = start("-f", file.path, *arguments)
        self.clients = ThreadPoolExecutor(200)

    def annotate(self, annotations: dict) -> None:
        self.file.write(pool_v1(annotations), *map(slice_of, self.servers), *DOCUMENTS)

    def saturate(self, kv_usage: float = FULL, waiting: int = 0) -> None:
        self.tell(kv_usage, waiting)
        scraped_again(self.servers)

    def tell(self, kv_usage: float = 0.1, waiting: int = 0) -> None:
        """What the servers say of themselves from now on."""
        for server in self.servers:
            server.load.kv_usage, server.load.waiting = kv_usage, waiting

    def ask(self, prompt: str = "x", *, model: str = "tiny", headers: dict | None = None, **objective: str) -> Future:
        named = {"x-gateway-inference-objective": objective["objective"]} if objective else {}
        return self.clients.submit(self.pointsman.complete, prompt, model=model, headers={**named, **(headers or {})})

    def ask_and_wait(self, prompt: str = "x", **options) -> Future:
        """Asks, and returns once the request waits: so requests come in a known order."""
        before = self.waiting()
        asked = self.ask(prompt, **options)
        until(lambda: self.waiting() == before + 1 or asked.done(), within=10, what=f"{prompt!r} waits")
        assert not asked.done(), asked.result().text
        return asked

    def waiting(self) -> int:
        return int(self.pointsman.metrics().value("inference_extension_flow_control_queue_size"))

    def prompts(self) -> list[str]:
        """Of what the servers were asked, in order."""
        seen = sorted((seen for server in self.servers for seen in server.requests), key=lambda seen: seen.at)
        return [seen.json()["prompt"] for seen in seen]


@pytest.fixture
def house(tmp_path, start, upstreams) -> Callable[..., House]:
    made: list[House] = []

    def house(annotations: dict | None = None, *arguments: object, servers: int = 1) -> House:
        annotations = {QUEUEING: "enabled", **(annotations or {})}
        file = ManifestFile(tmp_path / "pool.yaml")
        # Whatever DOCUMENTS name is for the servers to know.
        made.append(House(start, upstreams(servers), file, annotations, *arguments))
        return made[-1]

    yield house
    for each in made:
        each.tell()
        each.clients.shutdown(wait=False, cancel_futures=True)


def test_without_queueing_only_negative_priority_is_refused(house):
    house = house({QUEUEING: "disabled"})
    assert house.pointsman.complete(headers={"x-gateway-inference-objective": "low"}).status_code == 200, "there is room"
    house.saturate()
    assert house.pointsman.complete().status_code == 200
    assert house.pointsman.complete(headers={"x-gateway-inference-objective": "high"}).status_code == 200
    for refused in (
        house.pointsman.complete(headers={"x-gateway-inference-objective": "low"}),
        house.pointsman.complete(headers={"x-llm-d-inference-objective": "low"}),
        house.pointsman.complete(model="Sheddable"),
    ):
        assert_error(refused, 429, "shed")


def test_a_request_waits_while_nobody_has_room(house):
    house = house()
    assert house.pointsman.complete("before").status_code == 200
    house.saturate()
    waits = house.ask_and_wait("waits")
    holds(lambda: not waits.done(), over=0.5, what="it waits")
    assert house.prompts() == ["before"]
    metrics = house.pointsman.metrics()
    assert metrics.value("pointsman_queue_waiting_requests", priority="0") == 1
    assert metrics.value("inference_extension_flow_control_queue_bytes") > 0
    assert metrics.value("pointsman_queue_oldest_seconds") > 0
    assert metrics.value("inference_extension_flow_control_pool_saturation") == 1
    house.tell()
    assert waits.result(20).status_code == 200
    assert house.waiting() == 0
    metrics = house.pointsman.metrics()
    assert metrics.value("inference_extension_flow_control_request_queue_duration_seconds_count") == 1
    assert metrics.value("pointsman_queue_left_total", reason="dispatched") == 1


def test_one_endpoint_with_room_is_enough(house):
    house = house(servers=3)
    house.saturate()
    house.servers[1].load.kv_usage = 0.1
    scraped_again(house.servers)
    for _ in range(6):
        assert house.pointsman.complete().status_code == 200
    assert [len(server.requests) for server in house.servers] == [0, 6, 0]


def test_strictly_by_priority_and_first_come_first_served_within_one(house):
    house = house()
    house.saturate()
    order = [("low", "low-1"), ("plain", "plain-1"), ("high", "high-1"), ("low", "low-2"), ("high", "high-2"), ("plain", "plain-2")]
    asked = [house.ask_and_wait(prompt, objective=named) for named, prompt in order]
    house.tell(waiting=ONE_AT_A_TIME)
    assert [answer.result(20).status_code for answer in asked] == [200] * 6
    assert house.prompts() == ["high-1", "high-2", "plain-1", "plain-2", "low-1", "low-2"]


def test_priority_is_the_objectives_else_the_models_else_0(house):
    house = house()
    house.saturate()
    asked = [
        house.ask_and_wait("sheddable", model="Sheddable"),
        house.ask_and_wait("unknown objective", model="Critical", objective="nobody"),
        house.ask_and_wait("standard", model="Standard"),
        house.ask_and_wait("objective beats model", model="Sheddable", objective="high"),
        house.ask_and_wait("critical", model="Critical"),
    ]
    house.tell(waiting=ONE_AT_A_TIME)
    assert [answer.result(20).status_code for answer in asked] == [200] * 5
    assert house.prompts() == ["critical", "objective beats model", "unknown objective", "standard", "sheddable"]


def test_a_client_that_is_not_believed_jumps_no_queue(house):
    house = house({}, "--client-headers", "distrust")
    house.saturate()
    asked = [house.ask_and_wait("first", objective="low"), house.ask_and_wait("second", objective="high")]
    house.tell(waiting=ONE_AT_A_TIME)
    assert [answer.result(20).status_code for answer in asked] == [200] * 2
    assert house.prompts() == ["first", "second"]


def test_who_sends_much_does_not_push_others_back(house):
    house = house()
    house.saturate()
    flood = [house.ask_and_wait(f"flood-{number}", headers={"x-gateway-inference-fairness-id": "flood"}) for number in range(20)]
    few = [house.ask_and_wait(f"few-{number}", headers={"x-gateway-inference-fairness-id": "few"}) for number in range(4)]
    house.tell(waiting=ONE_AT_A_TIME)
    assert {answer.result(30).status_code for answer in flood + few} == {200}
    first = house.prompts()[:10]
    assert [prompt for prompt in first if prompt.startswith("few")] == ["few-0", "few-1", "few-2", "few-3"]


def test_it_waits_no_longer_than_its_ttl(house):
    house = house({QUEUE_TTL: "700ms"})
    house.saturate()
    begun = time.monotonic()
    assert_error(house.ask().result(20), 429, "queue_timeout")
    assert time.monotonic() - begun >= 0.7
    assert house.waiting() == 0
    assert house.pointsman.metrics().value("pointsman_queue_left_total", reason="queue_timeout") == 1


def test_a_new_ttl_holds_for_what_already_waits(house):
    house = house({QUEUE_TTL: "10m"})
    house.saturate()
    waits = house.ask_and_wait()
    house.annotate({QUEUEING: "enabled", QUEUE_TTL: "1s"})
    assert_error(waits.result(20), 429, "queue_timeout")


def test_past_the_capacity_the_earliest_of_the_lowest_priority_goes(house):
    body = len(b'{"model": "tiny", "prompt": "", "max_tokens": 4}') + 1000
    house = house({QUEUE_CAPACITY: str(3 * body + 200)})
    house.saturate()
    low_1 = house.ask_and_wait("a" * 1000, objective="low")
    low_2 = house.ask_and_wait("b" * 1000, objective="low")
    high = house.ask_and_wait("c" * 1000, objective="high")
    plain = house.ask("d" * 1000)
    assert_error(low_1.result(20), 429, "queue_full")
    assert_error(house.ask("e" * 1000, objective="lowest").result(20), 429, "queue_full")
    assert not any(waits.done() for waits in (low_2, high, plain)), "a lower one makes nobody go"
    too_large = house.ask("f" * 4000, objective="high").result(20)
    assert_error(too_large, 429, "queue_full")
    assert not any(waits.done() for waits in (low_2, high, plain)), "nor one that fits nowhere"
    house.tell()
    assert [waits.result(20).status_code for waits in (low_2, high, plain)] == [200] * 3


def test_a_lower_capacity_discards_at_once(house):
    house = house()
    house.saturate()
    high = house.ask_and_wait("h" * 1000, objective="high")
    lows = [house.ask_and_wait(letter * 1000, objective="low") for letter in "ab"]
    house.annotate({QUEUEING: "enabled", QUEUE_CAPACITY: "2500"})
    assert_error(lows[0].result(20), 429, "queue_full")
    assert not lows[1].done() and not high.done()
    house.annotate({QUEUEING: "enabled", QUEUE_CAPACITY: "1500"})
    assert_error(lows[1].result(20), 429, "queue_full")
    house.tell()
    assert high.result(20).status_code == 200


def test_turned_off_what_waits_goes_in_order_and_negative_priority_is_refused(house):
    house = house()
    house.saturate()
    low = house.ask_and_wait("low", objective="low")
    plain = [house.ask_and_wait(f"plain-{number}") for number in range(3)]
    high = house.ask_and_wait("high", objective="high")
    house.annotate({QUEUEING: "disabled"})
    assert [waits.result(20).status_code for waits in [high, *plain]] == [200] * 4
    assert_error(low.result(20), 429, "shed")
    assert set(house.prompts()) == {"high", "plain-0", "plain-1", "plain-2"}


def test_a_client_that_hangs_up_leaves_the_queue_at_once(house):
    house = house()
    house.saturate()
    with pytest.raises(httpx.TimeoutException):
        house.pointsman.client.post("/v1/completions", json={"model": "tiny", "prompt": "gone"}, timeout=1)
    until(lambda: house.waiting() == 0, within=5, what="it left")
    assert house.pointsman.metrics().value("pointsman_queue_left_total", reason="client_gone") == 1
    house.tell()
    scraped_again(house.servers)
    assert house.pointsman.complete("after").status_code == 200
    assert house.prompts() == ["after"]


def test_so_does_one_that_hangs_up_with_half_of_a_long_body_sent(house):
    house = house()
    house.saturate()
    with Wire.to(house.pointsman.gateway) as client:
        client.send(HEAD + b"content-length: 500000\r\n\r\n" + b'{"model":"tiny","prompt":"' + b"word " * 40_000)
        until(lambda: house.waiting() == 1, within=5, what="it waits, though its body is not here")
    until(lambda: house.waiting() == 0, within=5, what="it left")


@pytest.mark.parametrize("end", [Wire.close, Wire.reset])
@pytest.mark.parametrize("behind", [b"\r\n", b"GET /v1/mod", NEXT, NEXT + b"x" * 100_000], ids=["line", "half", "next", "much"])
def test_so_does_one_that_sent_more_behind_its_request(house, behind: bytes, end):
    """What comes behind a request lies unread while it waits, and the end of the stream behind that."""
    house = house()
    house.saturate()
    client = Wire.to(house.pointsman.gateway)
    client.send(HEAD + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY))
    until(lambda: house.waiting() == 1, within=5, what="it waits")
    client.socket.settimeout(0.3)
    client.try_send(behind)
    assert house.waiting() == 1
    end(client)
    until(lambda: house.waiting() == 0, within=5, what="it left")
    house.tell()
    scraped_again(house.servers)
    assert house.pointsman.complete("after").status_code == 200
    assert house.prompts() == ["after"]


def test_what_is_sent_behind_a_request_that_waits_is_served_after_it(house):
    house = house()
    house.saturate()
    with Wire.to(house.pointsman.gateway) as client:
        client.send(HEAD + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY))
        until(lambda: house.waiting() == 1, within=5, what="it waits")
        for _ in range(20):
            client.send(NEXT)
            time.sleep(0.01)
        house.tell()
        answers = [client.read_answer() for _ in range(21)]
    assert [head.status for head, _ in answers] == [200] * 21
    assert b"tiny" in answers[-1][1]


@pytest.mark.parametrize("queueing", ["enabled", "disabled"])
def test_what_runs_no_model_never_waits(house, queueing: str):
    house = house({QUEUEING: queueing})
    house.saturate()
    for method, path in [("GET", "/health"), ("HEAD", "/v1/models/tiny"), ("OPTIONS", "/v1/completions")]:
        headers = {"x-gateway-inference-objective": "low"}
        answer = house.pointsman.client.request(method, path, headers=headers, timeout=5)
        assert answer.status_code != 429 and "x-pointsman-reason" not in answer.headers, (method, path, answer.text)


def test_while_one_waits_its_endpoints_are_asked_as_often_as_under_load(house):
    """Others may send to them: who waits must not hear of room later than they do."""
    house = house()
    house.saturate()
    house.ask_and_wait()
    (server,) = house.servers
    server.scrapes.clear()
    time.sleep(2)
    assert len(server.scrapes) > 6, "about 1 a second when nothing is at stake, about 8 under load"


def test_whoever_waits_when_the_process_stops_gets_an_answer(house):
    house = house({}, "--drain", "3s")
    house.saturate()
    waiting = [house.ask_and_wait(str(number)) for number in range(10)]
    house.pointsman.terminate()
    for waits in waiting:
        assert_error(waits.result(20), 503, "shutting_down")
    assert house.pointsman.wait(20) == 0


def test_what_gets_room_while_the_process_drains_is_served(house):
    house = house({}, "--drain", "20s")
    house.saturate()
    waiting = [house.ask_and_wait(str(number)) for number in range(5)]
    house.pointsman.terminate()
    house.tell()
    assert [waits.result(20).status_code for waits in waiting] == [200] * 5
    assert house.pointsman.wait(20) == 0


def test_without_endpoints_nobody_waits(house):
    house = house()
    house.servers = []
    house.annotate({QUEUEING: "enabled"})
    until(lambda: house.pointsman.complete().status_code == 503, within=5, what="the endpoint is gone")
    assert_error(house.pointsman.complete(), 503, "no_endpoint")


def test_an_endpoint_whose_metrics_are_stale_is_judged_by_what_it_was_sent(house):
    house = house()
    (server,) = house.servers
    server.metrics_fault = MetricsFault.HANG
    unknown = lambda: house.pointsman.metrics().value("pointsman_endpoint_standing", standing="unknown") == 1
    until(unknown, within=10, what="its load is unknown")
    server.held = True
    asked = [house.ask(str(number)) for number in range(40)]
    until(lambda: house.waiting() == 24, within=10, what="sixteen go, the others wait")
    assert server.in_flight == 16
    server.held = False
    assert {answer.result(20).status_code for answer in asked} == {200}


def test_a_burst_between_two_scrapes_does_not_pile_up(house):
    house = house(servers=2)
    for server in house.servers:
        server.held = True
    asked = [house.ask(str(number)) for number in range(60)]
    until(lambda: house.waiting() > 0, within=10, what="some wait")
    # The servers run what they have and say so: six more for each page.
    assert all(server.in_flight <= 6 * (len(server.scrapes) + 1) for server in house.servers)
    for server in house.servers:
        server.held = False
    assert {answer.result(30).status_code for answer in asked} == {200}


def test_the_admin_door_shows_the_queue(house):
    house = house()
    house.saturate()
    asked = [house.ask_and_wait("one", objective="high"), house.ask_and_wait("two")]
    (pool,) = house.pointsman.admin_get("/state").json()["pools"]
    assert pool["queue"]["waiting"] == 2 and pool["queue"]["bytes"] > 0 and pool["queue"]["saturated"] is True
    assert {entry["priority"]: entry["waiting"] for entry in pool["queue"]["by_priority"]} == {10: 1, 0: 1}
    house.tell()
    assert {answer.result(20).status_code for answer in asked} == {200}


def test_retry_after_is_a_whole_number_of_seconds(house):
    house = house({QUEUE_CAPACITY: "10"})
    house.saturate()
    refused = house.ask("longer than the capacity").result(20)
    assert_error(refused, 429, "queue_full")
    assert re.fullmatch(r"[1-9]\d*", refused.headers["retry-after"])


def test_hundreds_that_wait_are_all_served(house):
    house = house()
    house.saturate()
    answers: list[int] = []
    count = threading.Lock()

    def ask(number: int) -> None:
        status = house.pointsman.complete(str(number), headers={"x-gateway-inference-fairness-id": str(number % 7)}).status_code
        with count:
            answers.append(status)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(300)]
    for thread in threads:
        thread.start()
    until(lambda: house.waiting() == 300, within=30, what="all wait")
    house.tell()
    for thread in threads:
        thread.join()
    assert answers == [200] * 300
    assert len(house.prompts()) == 300


def test_what_an_engine_does_not_show_yet_counts_as_waiting(house):
    """An engine counts at each of its steps: between two its page says what was, however often it is asked."""
    house = house()
    (server,) = house.servers
    house.tell(kv_usage=0.1)
    server.page = lambda load: pages.vllm(replace(load, running=0))
    server.held = True
    scraped_again([server])
    asked = [house.ask(f"{number}") for number in range(30)]
    until(lambda: house.waiting() >= 18, within=10, what="most of them wait")
    # What is never shown is not waited for: six more a second.
    assert len(server.requests) <= 2 * (ONE_AT_A_TIME + 1)
    server.held = False
    assert [each.result().status_code for each in asked] == [200] * 30


def test_a_burst_of_10000_waits_and_is_served(house):
    """40 clients with 250 requests each, over HTTP/2."""
    house = house({QUEUE_TTL: "5m"}, "--streams-max", 250, servers=2)
    house.saturate()
    clients = [Http2(house.pointsman.gateway, timeout_s=120) for _ in range(40)]

    def ask(client: Http2) -> None:
        for number in range(250):
            client.post("/v1/completions", b'{"model":"tiny","prompt":"%d"}' % number)

    for asked in [house.clients.submit(ask, client) for client in clients]:
        asked.result()
    until(lambda: house.waiting() == 10_000, within=30, what="all of them wait")
    late = house.ask("one more")
    until(lambda: house.waiting() == 10_001, within=10, what="so does one more: nobody is in its way")
    house.tell(0.1)
    answered = [house.clients.submit(client.statuses, 250) for client in clients]
    assert [set(each.result()) for each in answered] == [{200}] * 40
    assert late.result().status_code == 200
    assert house.waiting() == 0 and sum(len(server.requests) for server in house.servers) == 10_001
    for client in clients:
        client.close()


def test_settings_change_under_load_and_every_request_has_its_answer(house):
    house = house({QUEUE_TTL: "2s"}, servers=2)
    over = threading.Event()

    def ask(number: int) -> list[tuple[int, str]]:
        answers = []
        while not over.is_set():
            objective = ("high", "plain", "low")[number % 3]
            answer = house.pointsman.complete(f"{number} " * 50, headers={"x-gateway-inference-objective": objective})
            answers.append((answer.status_code, answer.headers.get("x-pointsman-reason")))
        return answers

    asked = [house.clients.submit(ask, number) for number in range(60)]
    changes = [
        {QUEUEING: "enabled", QUEUE_TTL: "300ms"},
        {QUEUEING: "enabled", QUEUE_CAPACITY: "2000"},
        {QUEUEING: "disabled"},
        {QUEUEING: "enabled"},
        {QUEUEING: "enabled", QUEUE_TTL: "2s", QUEUE_CAPACITY: "1"},
    ]
    for number in range(20):
        house.annotate(changes[number % len(changes)])
        house.tell(FULL if number % 3 else 0.1, waiting=0)
        time.sleep(0.4)
    house.tell(0.1)
    house.annotate({QUEUEING: "enabled"})
    over.set()
    answers = [answer for each in asked for answer in each.result()]
    refusals = {(429, "queue_full"), (429, "queue_timeout"), (429, "shed")}
    assert set(answers) <= {(200, None), *refusals}, set(answers)
    assert refusals <= set(answers) and (200, None) in set(answers), set(answers)
    assert house.waiting() == 0
    until(lambda: house.pointsman.metrics().value("pointsman_endpoint_in_flight_requests") == 0, within=10, what="at rest")


def test_gateways_before_the_same_engine_come_to_share_it(tmp_path, start, upstreams):
    """They do not talk to each other: the one that came later must get in all the same."""
    engines = upstreams(1, slots=4)
    engines[0].answers(first_byte_s=0.1)
    file = ManifestFile(tmp_path / "pool.yaml")
    file.write(pool_v1({QUEUEING: "enabled"}), *map(slice_of, engines))
    gateways = [start("-f", file.path), start("-f", file.path)]
    served, over = [0, 0], threading.Event()

    def client(of: int) -> None:
        while not over.is_set():
            assert gateways[of].complete().status_code == 200
            served[of] += 1

    with ThreadPoolExecutor(60) as clients:
        first = [clients.submit(client, 0) for _ in range(30)]
        until(lambda: served[0] > 40, within=20, what="the first has all of the engine")
        asking = first + [clients.submit(client, 1) for _ in range(30)]
        before = sum(served)
        until(lambda: sum(served) > before + 250, within=60, what="enough was served")
        over.set()
        engines[0].answers(first_byte_s=0)
    assert all(asked.result() is None for asked in asking)
    assert served[1] > 30, served
