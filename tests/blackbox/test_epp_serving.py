"""What the picker's gRPC port is besides ext_proc (ext-proc.md, cli.md): TLS, health, and nothing else."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest

from harness.epp import BODY, Picker, picking, servers
from harness.ext_proc import ANSWER_S, PROCESS, Peer, certificate, health_request
from harness.frames import PREFACE, Frames, Kind, settings
from harness.manifests import PoolFile
from harness.tls import Authority, name_served
from harness.wait import holds, until

SERVICES = ["", "liveness", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"]
REPLACED_S = 2
"""A new certificate is served within this time (docs/operations.md)."""


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    with picking(tmp_path_factory.mktemp("epp"), servers(2)) as (picker, _):
        yield picker


@pytest.fixture
def secure(tmp_path, upstreams):
    """Starts one that speaks TLS."""
    started = []

    def secure(*flags) -> Picker:
        file = PoolFile(tmp_path / "pool.yaml", upstreams(2))
        started.append(Picker(tmp_path, "-f", file.path, *flags, secure=True))
        return started[-1]

    yield secure
    for picker in started:
        picker.close()


def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code()


# ---- health


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_healthy_on_both_ports(service, picker):
    for address in (picker.grpc, picker.health):
        with Peer(address) as peer:
            assert peer.health(service) == "SERVING"


def test_a_pool_without_endpoints_is_known_and_so_it_is_healthy(tmp_path):
    with picking(tmp_path, []) as (picker, _), Peer(picker.health) as peer:
        assert {peer.health(service) for service in SERVICES} == {"SERVING"}


def test_the_health_of_what_nobody_serves_is_not_found(picker):
    for address in (picker.grpc, picker.health):
        with Peer(address) as peer:
            assert code_of(lambda: peer.health("unheard.of")) == grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched(picker):
    for address in (picker.grpc, picker.health):
        with Peer(address) as peer:
            watch = peer.channel.unary_stream("/grpc.health.v1.Health/Watch")
            states = watch(health_request("readiness"), timeout=ANSWER_S)
            assert next(states) == b"\x08\x01", "SERVING, at once"
            states.cancel()
            unknown = watch(health_request("unheard.of"), timeout=ANSWER_S)
            assert next(unknown) == b"\x08\x03", "SERVICE_UNKNOWN, and the stream stays"
            unknown.cancel()


def test_health_is_in_the_clear_on_its_port_also_with_tls(secure):
    picker = secure()
    with Peer(picker.health) as peer:
        assert peer.health("") == "SERVING"


def test_nothing_else_is_served(picker):
    """Reflection is off; ext_proc is not on the port of health."""
    reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    for method in (reflect, "/envoy.service.ext_proc.v3.ExternalProcessor/Else", "/unheard.of/Method", "/"):
        with picker.peer() as peer:
            call = peer.channel.unary_unary(method)
            assert code_of(lambda: call(b"", timeout=ANSWER_S)) == grpc.StatusCode.UNIMPLEMENTED, method
    with Peer(picker.health) as peer:
        call = peer.channel.unary_unary(PROCESS)
        assert code_of(lambda: call(b"", timeout=ANSWER_S)) == grpc.StatusCode.UNIMPLEMENTED


# ---- TLS


def subject(picker: Picker) -> str:
    """A name that the certificate is for."""
    words = ["openssl", "x509", "-noout", "-ext", "subjectAltName"]
    said = subprocess.run(words, input=certificate(picker.grpc), capture_output=True, timeout=10).stdout.decode()
    return said.split("DNS:")[1].split(",")[0].strip()


def test_by_default_a_certificate_signed_by_itself_is_served(secure):
    picker = secure()
    with Peer(picker.grpc, root=certificate(picker.grpc), name=subject(picker)) as peer:
        stream, outcome = peer.ask(BODY)
        with stream:
            assert len(outcome.pick) == 2
        assert peer.health("") == "SERVING"
    assert certificate(secure().grpc) != certificate(picker.grpc), "each process has its own"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_http2_is_settled_by_alpn(version, secure):
    picker = secure()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with Frames(picker.gateway, tls=context) as client:
        assert client.socket.selected_alpn_protocol() == "h2"
        assert client.read().kind == Kind.SETTINGS


def mount(folder: Path, authority: Authority, number: int) -> None:
    """A secret as the kubelet mounts it: links into a folder that is replaced whole."""
    new = folder / f"..{number}"
    new.mkdir(parents=True)
    shutil.copy(authority.certificate, new / "tls.crt")
    shutil.copy(authority.key, new / "tls.key")
    (folder / "..next").symlink_to(new.name)
    os.replace(folder / "..next", folder / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def test_a_mounted_certificate_is_served_and_replaced_and_streams_stay(secure, tmp_path):
    (tmp_path / "authority").mkdir()
    authority, folder = Authority(tmp_path / "authority"), tmp_path / "certs"
    mount(folder, authority, 0)
    picker = secure("--cert-path", folder)
    url = f"https://{picker.grpc}"
    assert name_served(url, authority.client()) == "first"
    with Peer(picker.grpc, root=authority.root.read_bytes()) as peer:
        stream, outcome = peer.ask(BODY)
        assert picker.in_flight() == {outcome.pick[0]: 1}
        for number, name in enumerate(("second", "third"), 1):
            authority.issue(name)
            mount(folder, authority, number)
            until(lambda: name_served(url, authority.client()) == name, within=REPLACED_S, what=f"the {name} is served")
        assert picker.in_flight() == {outcome.pick[0]: 1}, "nothing was cut"
        stream.half_close()
        stream.end()


def test_a_certificate_that_does_not_fit_is_told_and_the_old_one_is_served_on(secure, tmp_path):
    (tmp_path / "authority").mkdir()
    authority, folder = Authority(tmp_path / "authority"), tmp_path / "certs"
    mount(folder, authority, 0)
    picker = secure("--cert-path", folder)
    (folder / "tls.key").unlink()
    (folder / "tls.key").write_text("nonsense")
    until(lambda: picker.log_lines("tls.key"), within=5, what="the log says so")
    holds(lambda: name_served(f"https://{picker.grpc}", authority.client()) == "first", over=0.3, what="the old one is served")


def test_a_cert_path_without_certificates_is_an_error(tmp_path, secure):
    with pytest.raises(AssertionError, match="tls.crt"):
        secure("--cert-path", tmp_path)


@pytest.mark.parametrize("sent", [PREFACE + settings(), b"GET / HTTP/1.1\r\n\r\n", bytes(100)], ids=["HTTP/2", "HTTP/1.1", "zeros"])
def test_plaintext_on_a_port_with_tls_is_closed_and_harms_nobody(sent, secure):
    picker = secure()
    host, port = picker.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(sent)
        received = b""
        # It may have hung up before we do.
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := client.recv(4096):
                received += more
    assert len(received) < 100, "an alert at most"
    assert certificate(picker.grpc)


def test_tls_on_a_port_without_is_closed_and_harms_nobody(picker):
    host, port = picker.grpc.split(":")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ssl.get_server_certificate((host, int(port)), timeout=10)
    assert picker.ask().pick
