"""`pointsman up`: flags, the ready line, exit codes, logs, drain (cli.md)."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from harness.manifests import ManifestFile, pool_v1, slice_of
from harness.pointsman import command, run
from harness.upstream import counts
from harness.wait import until

QUICK_SIM = ("--sim", "1")


def test_without_flags_it_routes_to_three_simulated_servers(start):
    pointsman = start()
    assert pointsman.metrics().value("inference_pool_ready_pods", name="default") == 3
    answer = pointsman.chat(model=pointsman.client.get("/v1/models").json()["data"][0]["id"])
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]


def test_sim_n_starts_so_many_simulated_servers(start):
    pointsman = start("--sim", 5)
    assert pointsman.metrics().value("inference_pool_ready_pods") == 5


def test_a_manifest_alone_starts_no_simulated_servers(start, upstreams, pool_file):
    pointsman = start("-f", pool_file(upstreams(1)).path)
    assert pointsman.metrics().value("inference_pool_ready_pods", name="pool") == 1


def test_endpoints_alone_make_a_pool_called_default(start, upstreams):
    servers = upstreams(2)
    pointsman = start("--endpoint", servers[0].address, "--endpoint", servers[1].address)
    assert pointsman.metrics().value("inference_pool_ready_pods", name="default") == 2
    for _ in range(40):
        assert pointsman.complete().status_code == 200
    assert min(counts(servers)) > 5


def test_endpoint_takes_a_name_and_an_ipv6_address(start, upstreams):
    (by_name,) = upstreams(1)
    (by_ipv6,) = upstreams(1, host="::1")
    pointsman = start("--endpoint", f"localhost:{by_name.port}", "--endpoint", by_ipv6.address)
    for _ in range(40):
        assert pointsman.complete().status_code == 200
    assert min(counts([by_name, by_ipv6])) > 5


def test_endpoints_and_simulated_servers_join_those_of_the_files(start, upstreams, pool_file):
    of_file, of_flag = servers = upstreams(2)
    pointsman = start("-f", pool_file([of_file]).path, "--endpoint", of_flag.address, "--sim", 1)
    assert pointsman.metrics().value("inference_pool_ready_pods", name="pool") == 3


@pytest.mark.parametrize("value", ["nonsense", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ":8000", "http://127.0.0.1:1"])
def test_an_endpoint_that_is_none_is_refused_at_the_start(value):
    outcome = run("up", "--endpoint", value, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    assert outcome.returncode == 2
    assert value in outcome.stderr and "--endpoint" in outcome.stderr


def test_f_may_be_given_several_times_and_is_the_same_as_file(start, upstreams, tmp_path):
    servers = upstreams(2)
    for name, document in (("pool", pool_v1()), ("a", slice_of(servers[0])), ("b", slice_of(servers[1]))):
        ManifestFile(tmp_path / f"{name}.yaml").write(document)
    pointsman = start("-f", tmp_path / "pool.yaml", "--file", tmp_path / "a.yaml", "-f", tmp_path / "b.yaml")
    assert pointsman.metrics().value("inference_pool_ready_pods") == 2


def test_the_ready_line_is_all_that_a_program_finds_on_stdout(start):
    pointsman = start(*QUICK_SIM)
    pointsman.terminate()
    assert pointsman.wait(within=5) == 0
    assert pointsman.process.stdout.read() == b""


def test_the_defaults_of_listen_and_admin_are_the_documented_ones():
    help_text = run("up", "--help").stdout
    for words in ("127.0.0.1:8080", "127.0.0.1:9090", "30s", "[default: text]", "[default: info]"):
        assert words in help_text, help_text


def test_on_a_terminal_the_curl_that_is_printed_works_as_it_stands():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"), stdout=theirs, stderr=subprocess.DEVNULL
    )
    os.close(theirs)
    try:
        printed = b""
        while b"chat/completions" not in printed or not re.search(rb"-d '[^']*'", printed):
            printed += os.read(ours, 4096)
        printed = printed.decode().replace("\r\n", "\n")
        assert re.match(r"ready gateway=http://127\.0\.0\.1:\d+ admin=http://127\.0\.0\.1:\d+\n", printed), printed
        commands = re.findall(r"curl (?:[^\n\\]|\\\n)*", printed)
        assert commands, printed
        for line in commands:
            outcome = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30)
            assert outcome.returncode == 0 and outcome.stdout, (line, outcome)
            assert '"error"' not in outcome.stdout, outcome.stdout
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
def test_a_port_in_use_is_a_clear_error_and_exit_2(flag):
    other = "--admin" if flag == "--listen" else "--listen"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:{}".format(taken.getsockname()[1])
        outcome = run("up", *QUICK_SIM, flag, address, other, "127.0.0.1:0")
    assert outcome.returncode == 2
    assert address in outcome.stderr and flag in outcome.stderr and "in use" in outcome.stderr, outcome.stderr
    assert "ready" not in outcome.stdout


def up_fails(*arguments) -> str:
    """What it says on stderr when it does not start, with exit 2."""
    outcome = run("up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *arguments)
    assert outcome.returncode == 2, outcome
    assert outcome.stdout == ""
    assert "panicked" not in outcome.stderr
    return outcome.stderr


def test_a_file_that_is_no_text_is_a_clear_error_and_exit_2(tmp_path):
    file = ManifestFile(tmp_path / "binary.yaml")
    file.write_text(b"\xff\xfe\xfa")
    assert "binary.yaml" in up_fails("-f", file.path)


def test_a_file_that_is_not_there_is_a_clear_error_and_exit_2(tmp_path):
    assert "missing.yaml" in up_fails("-f", tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    "content", [b"kind: [", b"\x00\x01\x02", b"a: *nowhere", b"\t- tab"], ids=lambda content: repr(content)
)
def test_a_file_that_does_not_parse_is_an_error_with_its_place_and_exit_2(content, tmp_path):
    file = ManifestFile(tmp_path / "broken.yaml")
    file.write_text(content)
    assert re.search(r"broken\.yaml:\d+:\d+", up_fails("-f", file.path))


def test_two_pools_that_would_answer_the_same_request_are_an_error_and_exit_2(tmp_path):
    file = ManifestFile(tmp_path / "pools.yaml")
    file.write(pool_v1(name="one"), pool_v1(name="two"))
    error = up_fails("-f", file.path)
    assert "one" in error and "two" in error


def test_files_without_a_pool_are_an_error_and_exit_2(upstreams, tmp_path):
    file = ManifestFile(tmp_path / "no-pool.yaml")
    file.write(slice_of(*upstreams(1)))
    assert "InferencePool" in up_fails("-f", file.path)


def test_an_unknown_flag_is_an_error_and_exit_2():
    assert "--liste" in up_fails("--liste", "127.0.0.1:0")


def test_admin_serves_metrics_health_and_readiness(start):
    pointsman = start(*QUICK_SIM)
    for path in ("/metrics", "/healthz", "/readyz"):
        assert pointsman.admin_get(path).status_code == 200, path
    assert pointsman.admin_get("/nothing").status_code == 404


def test_logs_go_to_stderr_as_text_or_as_json_lines(start, upstreams):
    (server,) = upstreams(1)
    text = start("--endpoint", server.address)
    assert "INFO" in text.log()
    as_json = start("--endpoint", server.address, "--log-format", "json")
    lines = [json.loads(line) for line in as_json.log().splitlines()]
    assert lines and all(line["level"] == "INFO" for line in lines)


def test_log_sets_the_level(start, upstreams):
    (server,) = upstreams(1)
    assert start("--endpoint", server.address, "--log", "error").log() == ""
    debug = start("--endpoint", server.address, "--log", "debug")
    debug.complete()
    assert "DEBUG" in debug.log()
    outcome = run("up", *QUICK_SIM, "--log", "a=b=c", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    assert outcome.returncode == 2 and "--log" in outcome.stderr, outcome


def test_requests_are_not_logged_at_info(start, upstreams):
    pointsman = start("--endpoint", upstreams(1)[0].address)
    before = pointsman.log()
    for _ in range(20):
        pointsman.complete()
    assert pointsman.log() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_is_in_flight_ends_no_new_request_begins_exit_0(number, start, upstreams):
    (server,) = upstreams(1)
    server.answers(tokens=10, token_interval_s=0.15)
    pointsman = start("--endpoint", server.address)
    chunks: list[bytes] = []

    def stream() -> None:
        body = {"model": "tiny", "prompt": "x", "stream": True}
        with pointsman.client.stream("POST", "/v1/completions", json=body) as answer:
            chunks.extend(answer.iter_raw())

    client = threading.Thread(target=stream)
    client.start()
    until(lambda: server.in_flight == 1, within=5, what="a request is in flight")
    pointsman.terminate(number)

    def refused() -> bool:
        try:
            return httpx.post(pointsman.gateway + "/v1/completions", json={"prompt": "y"}).status_code == 503
        except httpx.TransportError:
            return True

    until(refused, within=1, what="no new request is taken")
    assert server.in_flight == 1, "the one in flight goes on"
    client.join()
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert pointsman.wait(within=2) == 0
    assert len(server.requests) == 1


def test_the_drain_is_bounded(start, upstreams):
    (server,) = upstreams(1)
    server.answers(first_byte_s=60)
    pointsman = start("--endpoint", server.address, "--drain", "1s")

    def ask() -> None:
        try:
            pointsman.complete()
        except httpx.TransportError:
            pass

    client = threading.Thread(target=ask)
    client.start()
    until(lambda: server.in_flight == 1, within=5, what="a request is in flight")
    begin = time.monotonic()
    pointsman.terminate()
    assert pointsman.wait(within=5) == 0
    # Far from the minute that the answer would take.
    assert 0.8 < time.monotonic() - begin < 10
    client.join()


def test_an_idle_one_stops_at_once_though_clients_keep_connections(start, upstreams):
    pointsman = start("--endpoint", upstreams(1)[0].address)
    pointsman.complete()
    pointsman.terminate()
    assert pointsman.wait(within=5) == 0
