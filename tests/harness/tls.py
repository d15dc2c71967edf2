"""Certificates of a test's own, made by openssl, and what clients and servers need of them."""

import os
import socket
import ssl
import subprocess
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A root, and certificates for 127.0.0.1 and localhost that it signs. The gateway's pair of files is replaced by `issue`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder / "root.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"
        self._root_key = folder / "root.key"
        self._openssl(
            "req", "-x509", *NEW_KEY, "-keyout", self._root_key, "-out", self.root, "-days", "2", "-subj", "/CN=test root"
        )
        self.issue("first")

    def flags(self) -> tuple[object, ...]:
        """What makes `up` serve this pair."""
        return "--tls-cert", self.certificate, "--tls-key", self.key

    def issue(self, name: str) -> None:
        """Puts a new pair, named so, in the place of the old one: each file whole, by a rename."""
        request, certificate, key, extensions = (self._folder / f".new.{kind}" for kind in ("csr", "pem", "key", "ext"))
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        self._openssl("req", *NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.root, "-CAkey", self._root_key, "-CAcreateserial"),
            *("-out", certificate, "-days", "1", "-extfile", extensions),
        )
        os.replace(key, self.key)
        os.replace(certificate, self.certificate)

    def client(self, *protocols: str) -> ssl.SSLContext:
        """What a client that trusts the root, and offers these protocols by ALPN, connects with."""
        context = ssl.create_default_context(cafile=self.root)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def server(self) -> ssl.SSLContext:
        """What a server with this pair takes connections with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def _openssl(self, *arguments: object) -> None:
        words = ["openssl", *map(str, arguments)]
        outcome = subprocess.run(words, capture_output=True, text=True, timeout=30)
        assert outcome.returncode == 0, f"{' '.join(words)}: {outcome.stderr}"


def name_served(url: str, context: ssl.SSLContext) -> str:
    """The name in the certificate that a new connection gets."""
    host, port = url.split("://")[1].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=host) as wire:
            return dict(pair for row in wire.getpeercert()["subject"] for pair in row)["commonName"]
