"""The github plugin's connections: a server with a CA of its own, and proxies, as real sockets of this machine."""

import base64
import datetime as dt
import http.server
import ipaddress
import select
import socket
import ssl
import threading

import pytest
from anklet_github.http import BadCertificates, NoAnswer, Transport
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)


def certificate(name, issuer_name, key, issuer_key, *extensions):
    """A certificate for a day around now."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A CA of our own: the file that clients trust, and the files of a server for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("ca")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    basic = (x509.BasicConstraints(ca=True, path_length=None), True)
    identifier = (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
    ca = certificate("Our CA", "Our CA", ca_key, ca_key, basic, identifier)
    names = (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
    issued_by = (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
    server = certificate("ghes", "Our CA", key, ca_key, names, issued_by)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(
        server.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


class Handler(http.server.BaseHTTPRequestHandler):
    """Says which path it was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer."""
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def serve():
    """Makes servers; each on a thread of its own, ended with the test."""
    servers = []

    def start(server):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def secure(serve, authority):
    """The address of a server with a certificate of our CA."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return f"https://127.0.0.1:{serve(server)}/api/v3"


class Proxy(http.server.BaseHTTPRequestHandler):
    """A forward proxy: CONNECT for TLS, the whole address for plain HTTP. Writes down what it was asked for."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def _refused(self):
        wanted = self.server.login
        given = self.headers.get("Proxy-Authorization", "")
        self.server.asked.append(f"{self.command} {self.path}")
        if wanted and given != "Basic " + base64.b64encode(wanted.encode()).decode():
            self.send_response(407)
            self.send_header("Proxy-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True
        return False

    def do_CONNECT(self):
        """Pass bytes both ways until one side is done."""
        if self._refused():
            return
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), 5) as there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while ready := select.select(list(ends), [], [], 10)[0]:
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)

    def do_GET(self):
        """Answer in the server's place."""
        if not self._refused():
            Handler.do_GET(self)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def proxy(serve, monkeypatch):
    """A proxy that the environment names; `login` may be set on it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    server.asked, server.login = [], None
    server.url = f"http://127.0.0.1:{serve(server)}"
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name.lower(), server.url)
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture(autouse=True)
def _no_proxy_of_the_machine(monkeypatch, request):
    if "proxy" not in request.fixturenames:
        monkeypatch.setenv("no_proxy", "*")


def asked(url, ca_file=None):
    """The body of one exchange."""
    transport = Transport(url, ca_file)
    try:
        return transport.exchange("GET", "/x?y=1", {}).body
    finally:
        transport.close()


def test_a_ca_of_ones_own_is_trusted_when_named(secure, authority):
    """As an Enterprise Server in a company's network has it."""
    assert asked(secure, authority / "ca.pem") == b"/api/v3/x?y=1"


def test_a_ca_that_is_not_named_is_not_trusted(secure):
    """The line says what to set; nothing was sent."""
    with pytest.raises(NoAnswer, match="set ca_file"):
        asked(secure)


def test_a_file_that_holds_no_certificate_is_told(tmp_path):
    """Before anything is asked."""
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(BadCertificates, match="ca_file"):
        Transport("https://127.0.0.1:1", tmp_path / "ca.pem")
    with pytest.raises(BadCertificates, match="No such file"):
        Transport("https://127.0.0.1:1", tmp_path / "missing.pem")


def test_tls_goes_through_the_environments_proxy(secure, authority, proxy):
    """By CONNECT: the proxy sees where to, and nothing else."""
    assert asked(secure, authority / "ca.pem") == b"/api/v3/x?y=1"
    assert proxy.asked == [f"CONNECT {secure.split('/')[2]}"]


def test_plain_http_goes_through_the_environments_proxy(serve, proxy):
    """With the whole address in the request."""
    url = f"http://127.0.0.1:{serve(http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler))}"
    assert asked(url).endswith(b"/x?y=1")
    assert proxy.asked == [f"GET {url}/x?y=1"]


def test_hosts_that_need_no_proxy_are_asked_directly(secure, authority, proxy, monkeypatch):
    """NO_PROXY counts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert asked(secure, authority / "ca.pem") == b"/api/v3/x?y=1"
    assert proxy.asked == []


def test_a_proxy_may_want_a_login(secure, authority, proxy, monkeypatch):
    """From its address in the environment; a password may hold any sign."""
    proxy.login = "me:p@ss/word"
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:p%40ss%2Fword@"))
    assert asked(secure, authority / "ca.pem") == b"/api/v3/x?y=1"


def test_a_proxy_that_refuses_is_told_without_its_password(secure, authority, proxy, monkeypatch):
    """What is wrong, and nothing that must not be seen."""
    proxy.login = "me:right"
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:hunter2@"))
    with pytest.raises(NoAnswer, match="407") as caught:
        asked(secure, authority / "ca.pem")
    assert "hunter2" not in str(caught.value)


def test_a_proxy_that_is_away_is_told(secure, authority, proxy, monkeypatch):
    """As what it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(NoAnswer, match="proxy"):
            asked(secure, authority / "ca.pem")
