"""The worst day: pickers and model servers that are killed, hang or are replaced behind real Envoy, under load."""

import signal
from contextlib import ExitStack

import httpx
import pytest

from harness.envoy import COMPLETIONS, MODEL, MODES, WITHIN_S, Sims, replaced, stand
from harness.traffic import Traffic
from harness.wait import until

FAIL_CLOSED = replaced("failure_mode_allow: true", "failure_mode_allow: false")
ROUNDS = 3


@pytest.fixture(scope="module")
def sims(tmp_path_factory):
    sims = Sims(tmp_path_factory.mktemp("sims"))
    yield sims
    sims.close()


class Mixed:
    """Requests of all kinds, one after the other; `broken` are answers that ended early though they had begun."""

    def __init__(self, house) -> None:
        self.house = house
        self.broken = 0

    def __call__(self, number: int) -> httpx.Response:
        """Each client asks in its own way."""
        if number % 3 < 2:
            try:
                return self.house.complete(f"{number} " + "a long prompt " * 500 * (number % 3))
            except httpx.RemoteProtocolError as error:
                # Its head was here: whoever the body passed through is gone.
                if "incomplete" not in str(error):
                    raise
                self.broken += 1
                return httpx.Response(200)
        body = {"model": MODEL, "prompt": f"{number}", "stream": True, "max_tokens": 100, "ignore_eos": True}
        with self.house.client.stream("POST", COMPLETIONS, json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                return answer
            last = ""
            try:
                for last in answer.iter_text():
                    pass
                assert "[DONE]" in last
            except httpx.HTTPError:
                self.broken += 1
        return answer


def test_without_a_picker_requests_go_on_when_envoy_fails_open(sims, tmp_path):
    with stand(tmp_path, "buffered-partial", sims.addresses) as house, Traffic(ask := Mixed(house), 6) as traffic:
        for _ in range(ROUNDS):
            traffic.more(50)
            house.picker.kill()
            traffic.more(50)
            house.restart_picker()
            until(lambda: house.envoy.healthy_pickers() == 1, within=WITHIN_S, what="Envoy has found it")
            before = house.picker.picks()
            until(lambda: house.picker.picks() > before, within=WITHIN_S, what="it picks again")
        traffic.assert_unharmed()
        assert ask.broken == 0
        house.picker.rests()


def test_without_a_picker_requests_are_refused_when_envoy_fails_closed(sims, tmp_path):
    with stand(tmp_path, "full-duplex", sims.addresses) as house, Traffic(ask := Mixed(house), 6) as traffic:
        for _ in range(ROUNDS):
            traffic.more(50)
            assert not traffic.failures
            house.picker.kill()
            until(lambda: traffic.failures, within=WITHIN_S, what="requests are refused")
            house.restart_picker()
            until(lambda: house.envoy.healthy_pickers() == 1, within=WITHIN_S, what="Envoy has found it")
            # Those that were refused a moment ago are counted by now.
            traffic.more(20)
            others = [failure for failure in traffic.failures if not failure.startswith("503")]
            # Streams that passed through it are cut where they had begun.
            assert not others, others[:5]
            traffic.failures.clear()
        traffic.assert_unharmed()
        house.picker.rests()


def test_a_picker_that_hangs_is_found_and_found_again(sims, tmp_path):
    with stand(tmp_path, "buffered-partial", sims.addresses) as house, Traffic(ask := Mixed(house), 6) as traffic:
        for _ in range(ROUNDS):
            traffic.more(50)
            house.picker.send(signal.SIGSTOP)
            until(lambda: house.envoy.healthy_pickers() == 0, within=WITHIN_S, what="it is found")
            traffic.more(50)
            house.picker.send(signal.SIGCONT)
            until(lambda: house.envoy.healthy_pickers() == 1, within=WITHIN_S, what="it is found again")
        traffic.assert_unharmed()
        assert ask.broken == 0
        house.picker.rests()


def test_an_endpoint_that_is_killed_costs_no_request_that_had_no_byte(tmp_path):
    with ExitStack() as stack:
        servers = [Sims(tmp_path, 1) for _ in range(3)]
        for server in servers:
            stack.callback(server.close)
        house = stack.enter_context(stand(tmp_path, "buffered-partial", [server.addresses[0] for server in servers]))
        with Traffic(Mixed(house), 9) as traffic:
            traffic.more(100)
            servers[0].kill()
            traffic.more(100)
            servers[1].kill()
            traffic.more(100)
            traffic.assert_unharmed()
        house.picker.rests()


@pytest.mark.parametrize("example", MODES)
def test_one_picker_takes_over_from_another_without_a_failed_request(example, sims, tmp_path):
    # Closed, so that a request without a pick shows.
    edit = FAIL_CLOSED if example == "buffered-partial" else lambda config: config
    with stand(tmp_path, example, sims.addresses, edit=edit) as house, Traffic(ask := Mixed(house), 6) as traffic:
        pickers = [house.picker.port, house.second_port]
        for turn in range(ROUNDS):
            old = house.picker
            house.picker = house.start_picker(pickers[(turn + 1) % 2])
            until(lambda: house.envoy.healthy_pickers() == 2, within=WITHIN_S, what="Envoy has found both")
            traffic.more(50)
            assert old.terminate(within=60) == 0
            until(lambda: house.envoy.healthy_pickers() == 1, within=WITHIN_S, what="Envoy knows of one")
            traffic.more(50)
        traffic.assert_unharmed()
        assert ask.broken == 0
        house.picker.rests()
