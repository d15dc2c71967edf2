"""`pointsman epp` as charts, manifests and people start it (cli.md): flags, the ready line, and what stops it from starting."""

import json
import signal
import socket
import subprocess

import httpx
import pytest

from harness.epp import PORTS, READY, Picker, picking, servers
from harness.manifests import LABELS, ManifestFile, pool_v1, slice_of
from harness.pointsman import command, run

PASSED_OVER = {
    "--kubeconfig": "/etc/kubeconfig",
    "--config-file": "/config/default-plugins.yaml",
    "--tracing": "false",
    "--ha-enable-leader-election": None,
    "--enable-pprof": "false",
    "--metrics-endpoint-auth": "false",
    "--refresh-metrics-interval": "50ms",
    "--refresh-prometheus-metrics-interval": "5s",
    "--metrics-staleness-threshold": "2s",
    "--total-queued-requests-metric": "vllm:num_requests_waiting",
    "--kv-cache-usage-percentage-metric": "vllm:kv_cache_usage_perc",
    "--lora-info-metric": "vllm:lora_requests_info",
    "--health-checking": None,
    "--enable-cert-reload": None,
}
"""Flags that upstream's charts and manifests pass and that mean nothing here."""


@pytest.fixture
def file(tmp_path):
    """A pool of one server at an address where there is none."""
    file = ManifestFile(tmp_path / "pool.yaml")
    file.write(pool_v1())
    return file


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*arguments: object, **options: object) -> Picker:
        started.append(Picker(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for picker in started:
        picker.close()


def refused(*arguments: object) -> str:
    """What it says when it does not start."""
    outcome = run("epp", "--bind", "127.0.0.1", *arguments)
    assert (outcome.returncode, outcome.stdout) == (2, ""), outcome
    return outcome.stderr


# ---- flags


def test_the_flags_of_upstreams_charts_are_accepted_and_a_line_tells_of_each_that_means_nothing(file, start):
    flags = [flag if value is None else f"{flag}={value}" for flag, value in PASSED_OVER.items()]
    named = ("--pool-name", "pool", "--pool-namespace", "default", "--pool-group", "inference.networking.k8s.io", "-v", "4")
    picker = start("-f", file.path, *named, *flags)
    for flag in PASSED_OVER:
        assert len(picker.log_lines(f"{flag} has no meaning")) == 1, flag
    for flag in named[::2]:
        assert not picker.log_lines(f"{flag} has no meaning"), flag


@pytest.mark.parametrize("spelling", [("--zap-encoder", "json"), ("--log-format", "json")])
def test_the_log_is_json_where_asked_for(spelling, file, start):
    picker = start("-f", file.path, *spelling)
    lines = picker.log().splitlines()
    assert lines and all(json.loads(line)["level"] for line in lines)


@pytest.mark.parametrize("flags", [("-v", "5"), ("--v=5",), ("--log", "trace")])
def test_verbosity_says_more(flags, tmp_path):
    with picking(tmp_path, servers(1), *flags) as (picker, _):
        picker.ask()
        assert picker.log_lines("DEBUG") or picker.log_lines("TRACE")


def test_a_flag_that_nobody_knows_is_an_error(file):
    assert "--nonsense" in refused("-f", file.path, "--nonsense")


@pytest.mark.parametrize(
    "flag",
    [
        ("--grpc-port", "66000"),
        ("--fallback-endpoints=-1",),
        ("--fallback-endpoints", "many"),
        ("--drain", "soon"),
        ("--secure-serving=perhaps",),
        ("--bind", "nowhere"),
        ("--log-format", "xml"),
    ],
    ids=" ".join,
)
def test_a_value_that_means_nothing_is_an_error_that_names_the_flag(flag, file):
    assert flag[0].split("=")[0] in refused("-f", file.path, *flag)


# ---- which pool


def test_without_files_it_says_what_to_do():
    for named in ((), ("--pool-name", "pool")):
        assert "--file" in refused(*PORTS, *named)


def test_of_several_pools_the_one_that_is_named_is_picked_for(tmp_path, file, start, upstreams):
    first, second = upstreams(2)
    other = {**LABELS, "app": "other"}
    pools = [pool_v1(), pool_v1(name="other", selector={"matchLabels": other}), pool_v1(name="pool")]
    pools[2]["metadata"]["namespace"] = "elsewhere"
    slices = [slice_of(first), slice_of(second, labels=other), slice_of(second, namespace="elsewhere")]
    slices[2]["metadata"]["name"] = "elsewhere"
    file.write(*pools, *slices)
    for flags, expected in (
        (("--pool-name", "pool"), first),
        (("--pool-name", "other"), second),
        (("--pool-name", "pool", "--pool-namespace", "elsewhere"), second),
    ):
        assert start("-f", file.path, *flags).ask().pick == [expected.address]


def test_several_pools_and_none_named_is_an_error_that_names_them(file):
    file.write(pool_v1(), pool_v1(name="other"))
    said = refused("-f", file.path, *PORTS)
    assert "default/pool" in said and "default/other" in said


def test_a_pool_that_is_not_declared_is_an_error(file):
    assert "missing" in refused("-f", file.path, "--pool-name", "missing", *PORTS)


def test_files_that_cannot_be_read_or_parsed_are_errors_with_their_place(file, tmp_path):
    assert "absent.yaml" in refused("-f", tmp_path / "absent.yaml", *PORTS)
    file.write_text("kind: InferencePool\n  spec: {")
    assert "pool.yaml:2" in refused("-f", file.path, *PORTS)


def test_a_pool_without_endpoints_is_a_warning_and_503_until_one_appears(file, start, upstreams):
    picker = start("-f", file.path)
    assert picker.log_lines("WARN", "no endpoints")
    assert picker.ask().status == 503


# ---- ports


def test_the_ready_line_tells_three_ports_that_serve(tmp_path):
    with picking(tmp_path, servers(1)) as (picker, _):
        assert len({picker.grpc, picker.health, picker.admin}) == 3
        assert picker.admin_get("/healthz").status_code == picker.admin_get("/readyz").status_code == 200
        assert picker.metrics().value("pointsman_endpoint_standing", standing="fresh") == 1
        assert picker.ask().pick


def test_it_serves_on_all_addresses_unless_told_otherwise(file):
    words = command("epp", "-f", file.path, *PORTS, "--secure-serving=false")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        grpc, _, metrics = READY.fullmatch(process.stdout.readline()).groups()
        assert grpc.startswith("0.0.0.0:") and metrics.startswith("0.0.0.0:")
        assert httpx.get(f"http://127.0.0.2:{metrics.split(':')[1]}/healthz", trust_env=False).status_code == 200
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_it_serves_on_ipv6(file, start):
    picker = start("-f", file.path, bind="::1")
    assert picker.grpc.startswith("[::1]:")
    assert picker.ask().status == 503


@pytest.mark.parametrize("port", PORTS[::2])
def test_a_port_in_use_is_an_error_that_names_it(port, file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        free = [word for flag in PORTS[::2] if flag != port for word in (flag, "0")]
        assert str(number) in refused("-f", file.path, *free, port, number)
