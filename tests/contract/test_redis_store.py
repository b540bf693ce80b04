"""The store on Redis beyond the contract: logins, messages, TLS, and servers that are old, slow or lose their data."""

import datetime as dt
import ipaddress
import re
import socket
import socketserver
import ssl
import threading
import time
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from anklet_worker.contract.errors import ExitCode, RightsRefused, ServiceFatal, StoreUnavailable
from anklet_worker.contract.service import Database
from anklet_worker.contract.settings import Secret
from anklet_worker.store.redis_store import RedisStore

KEY, TRIES = "anklet:{octo/app}:claim:4711", "anklet:{octo/app}:attempts:4711"
HERE = "host-a:builds"
USER, PASSWORD = "fleet-operator", "correct-horse-battery"
RIGHTS = ("ping", "get", "set", "del", "incrby", "pexpire", "evalsha", "script|load", "client|setname")


@pytest.fixture
def connect(redis_server):
    """Open stores on the server; closed after the test."""
    opened = []

    def open_one(client_name="test", *, password=None, **database):
        database = {"host": redis_server.host, "port": redis_server.port, **database}
        secret = None if password is None else Secret(password)
        opened.append(RedisStore(Database(enabled=True, password=secret, **database), client_name))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def admin(redis_server):
    """A client with all rights."""
    with redis_server.client() as client:
        yield client


def allow(admin, rights=RIGHTS, keys=("anklet:*",)):
    """Create the user with these rights."""
    admin.acl_setuser(
        USER,
        enabled=True,
        reset=True,
        passwords=[f"+{PASSWORD}"],
        keys=list(keys),
        commands=[f"+{right}" for right in rights],
    )


def assert_tells_no_secret(error):
    """Check that neither the error nor a chained error names user or password."""
    while error is not None:
        text = f"{error}{error!r}{error.args}"
        assert USER not in text
        assert PASSWORD not in text
        assert "\n" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_user_with_few_rights_is_enough(connect, admin):
    """The documented rights suffice for every operation."""
    allow(admin)
    store = connect(user=USER, password=PASSWORD)
    assert store.claim(KEY, HERE, 60)
    assert store.renew(KEY, HERE, 60)
    assert store.holder(KEY) == HERE
    assert store.count(TRIES, 60) == 1
    assert store.release(KEY, HERE)


@pytest.mark.parametrize("missing", [right for right in RIGHTS if right != "ping"])
def test_a_missing_right_shows_at_the_start(connect, admin, missing):
    """A missing right shows when the service starts, not only when a job waits."""
    allow(admin, [right for right in RIGHTS if right != missing])
    with pytest.raises(RightsRefused, match=r"Redis at 127\.0\.0\.1:") as caught:
        connect(user=USER, password=PASSWORD)
    assert_tells_no_secret(caught.value)


def test_keys_out_of_bounds_show_at_the_start(connect, admin):
    """A user without rights to this program's keys is refused at start too."""
    allow(admin, keys=("other:*",))
    with pytest.raises(RightsRefused) as caught:
        connect(user=USER, password=PASSWORD)
    assert_tells_no_secret(caught.value)


@pytest.mark.parametrize("login", [(USER, "wrong-" + PASSWORD[:5]), ("nobody-known", PASSWORD), (USER, "")])
def test_a_refused_login_is_the_operators_business(connect, admin, login):
    """A wrong user or password ends the service, and its exit code prevents a restart."""
    allow(admin)
    with pytest.raises(RightsRefused, match=r"Redis at 127\.0\.0\.1:") as caught:
        connect(user=login[0], password=login[1])
    assert caught.value.exit_code is ExitCode.NOPERM
    assert_tells_no_secret(caught.value)


def test_a_password_that_is_missing_is_refused(connect, admin):
    """A server that requires a password refuses a login without one."""
    admin.config_set("requirepass", PASSWORD)
    try:
        with pytest.raises(RightsRefused):
            connect()
        assert connect(password=PASSWORD).claim(KEY, HERE, 60)
    finally:
        admin.config_set("requirepass", "")


def test_rights_that_are_taken_away_later_are_an_outage(connect, admin):
    """While a job runs, a refusal is not fatal: operations are unavailable until an operator fixes the login."""
    allow(admin)
    store = connect(user=USER, password=PASSWORD)
    store.claim(KEY, HERE, 60)
    allow(admin, [right for right in RIGHTS if right != "evalsha"])
    with pytest.raises(StoreUnavailable) as caught:
        store.renew(KEY, HERE, 60)
    assert_tells_no_secret(caught.value)
    admin.acl_deluser(USER)
    with pytest.raises(StoreUnavailable) as caught:
        store.renew(KEY, HERE, 60)
    assert_tells_no_secret(caught.value)
    allow(admin)
    assert store.renew(KEY, HERE, 60) is True


def test_an_operator_sees_who_is_connected(connect, admin):
    """CLIENT LIST shows install and service, with characters replaced that Redis does not allow in a name."""
    connect(client_name="f00d:nightly builds ü")
    assert "f00d:nightly_builds__" in {client["name"] for client in admin.client_list()}


def test_a_lease_lives_by_the_servers_clock(connect, admin):
    """Claim and renewal set Redis' own time to live, to the millisecond."""
    store = connect()
    store.claim(KEY, HERE, 30.5)
    assert 29_000 < admin.pttl(KEY) <= 30_500
    store.renew(KEY, HERE, 90)
    assert 88_000 < admin.pttl(KEY) <= 90_000
    store.claim(KEY, HERE, 200)
    assert 198_000 < admin.pttl(KEY) <= 200_000
    store.count(TRIES, 50)
    assert 48_000 < admin.pttl(TRIES) <= 50_000


def test_the_numbered_database_is_used(connect, redis_server):
    """Keys go to the database that the configuration names."""
    connect(database=3).claim(KEY, HERE, 60)
    with redis_server.client(db=3) as third, redis_server.client() as first:
        assert third.get(KEY) == HERE
        assert first.get(KEY) is None


def test_opening_leaves_nothing_behind(connect, admin):
    """The keys of the check at start expire within a second, and do not disturb other hosts that start."""
    connect(client_name="one")
    connect(client_name="two")
    deadline = time.monotonic() + 10
    while admin.dbsize():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_scripts_that_the_server_forgot_are_sent_again(connect, admin):
    """After SCRIPT FLUSH or a failover the next operation works as usual."""
    store = connect()
    store.claim(KEY, HERE, 60)
    admin.script_flush()
    assert store.renew(KEY, HERE, 60) is True
    admin.script_flush()
    assert store.count(TRIES, 60) == 1


def test_a_server_that_was_restarted_between_is_no_outage(connect, redis_server):
    """The retry heals a connection that died while idle; the restarted Redis has lost the lease."""
    store = connect()
    store.claim(KEY, HERE, 60)
    redis_server.restart()
    assert store.renew(KEY, HERE, 60) is False
    assert store.claim(KEY, HERE, 60) is True


def test_a_key_of_another_kind_is_told(connect, admin):
    """A key of another type is reported and left alone."""
    store = connect()
    admin.rpush(KEY, "a list")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        store.holder(KEY)
    with pytest.raises(StoreUnavailable):
        store.claim(KEY, HERE, 60)
    assert admin.lrange(KEY, 0, -1) == ["a list"]


def test_a_read_only_replica_is_an_outage(connect, admin):
    """A replica refuses claims but may become primary, so the service waits."""
    admin.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable):
            connect()
    finally:
        admin.replicaof("NO", "ONE")
    assert connect().claim(KEY, HERE, 60)


def test_a_server_that_hangs_is_told_in_time(connect, redis_server):
    """A server that never answers delays an operation by seconds, not forever."""
    store = connect()
    redis_server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"Redis at 127.0.0.1:{redis_server.port}: "):
            store.claim(KEY, HERE, 60)
        assert time.monotonic() - began < 20
    finally:
        redis_server.thaw()
    assert store.claim(KEY, HERE, 60) is True


def test_nobody_there_is_told_at_once():
    """A refused connection fails at once, and its text names host and port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"Redis at 127.0.0.1:{port}: .*[Rr]efused") as caught:
            RedisStore(Database(host="127.0.0.1", port=port, user=USER, password=Secret(PASSWORD)), "test")
        assert time.monotonic() - began < 5
    assert_tells_no_secret(caught.value)


class CannedAnswers(socketserver.StreamRequestHandler):
    """Plays a Redis version that is not installed: speaks enough of the protocol to send canned answers."""

    def handle(self):
        """Answer each command, an array of bulk strings."""
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2].decode().upper())
            self.wfile.write(self.server.answers.get(words[0], "+OK\r\n").encode())


@pytest.fixture
def canned():
    """Start a server with canned answers by command; returns its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), CannedAnswers) as server:
        server.daemon_threads = True
        server.answers = {"PING": "+PONG\r\n"}
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield lambda **answers: server.answers.update(answers) or server.server_address[1]
        server.shutdown()
        thread.join(10)


HELLO_OF_6_0 = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n"
HELLO_OF_5 = "-ERR unknown command `HELLO`, with args beginning with: `2`, \r\n"


@pytest.mark.parametrize(("hello", "named"), [(HELLO_OF_6_0, "6.0.16"), (HELLO_OF_5, "5")])
def test_an_old_server_is_refused_for_good(canned, hello, named):
    """A Redis before 6.2 is refused with the version that is needed, and the service is not restarted."""
    with pytest.raises(ServiceFatal, match=rf"has version {re.escape(named)}; upgrade it to 6\.2 or newer") as caught:
        RedisStore(Database(host="127.0.0.1", port=canned(HELLO=hello)), "test")
    assert caught.value.exit_code is ExitCode.CONFIG


def test_a_refusal_that_names_the_user_is_not_repeated(canned):
    """Redis 7 names the user in its refusals; our errors name neither user nor password."""
    refusal = f"-NOPERM User {USER} has no permissions to run the 'hello' command, says {PASSWORD}\r\n"
    with pytest.raises(RightsRefused, match=r"User \*\*\* has no permissions to run the 'hello' command") as caught:
        RedisStore(Database(host="127.0.0.1", port=canned(HELLO=refusal), user=USER, password=Secret(PASSWORD)), "test")
    assert_tells_no_secret(caught.value)


def issue(directory, name, alternative):
    """Create a self-signed certificate; return its file and a file with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / f"{name}.pem", directory / f"{name}.key"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return SimpleNamespace(public=public, private=private)


class TlsFront(socketserver.BaseRequestHandler):
    """Terminates TLS and passes the bytes to the real Redis."""

    def handle(self):
        """Pass bytes both ways until one side closes."""
        try:
            outside = self.server.context.wrap_socket(self.request, server_side=True)
        except OSError:
            return
        with outside, socket.create_connection(self.server.behind) as inside:
            back = threading.Thread(target=self._carry, args=(inside, outside), daemon=True)
            back.start()
            self._carry(outside, inside)
            back.join(10)

    @staticmethod
    def _carry(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


@pytest.fixture
def tls_front(redis_server):
    """Start a TLS terminator in front of the server; returns its port."""
    fronts = []

    def start(certificate):
        front = socketserver.ThreadingTCPServer(("127.0.0.1", 0), TlsFront)
        front.daemon_threads = True
        front.behind = (redis_server.host, redis_server.port)
        front.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        front.context.load_cert_chain(certificate.public, certificate.private)
        thread = threading.Thread(target=front.serve_forever, args=(0.02,))
        thread.start()
        fronts.append((front, thread))
        return front.server_address[1]

    yield start
    for front, thread in fronts:
        front.shutdown()
        front.server_close()
        thread.join(10)


def test_tls_with_a_trusted_certificate(connect, tls_front, tmp_path, monkeypatch):
    """With `rediss`, the store uses TLS and accepts a certificate that the system trusts."""
    certificate = issue(tmp_path, "mine", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.public))
    store = connect(port=tls_front(certificate), tls=True)
    assert store.claim(KEY, HERE, 60) is True
    assert store.holder(KEY) == HERE
    store.close()


def test_tls_with_a_strangers_certificate(connect, tls_front, tmp_path):
    """An untrusted certificate is refused."""
    certificate = issue(tmp_path, "stranger", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    with pytest.raises(StoreUnavailable, match="certificate"):
        connect(port=tls_front(certificate), tls=True)


def test_tls_with_another_hosts_certificate(connect, tls_front, tmp_path, monkeypatch):
    """A trusted certificate of another host is refused, with any release of the client."""
    certificate = issue(tmp_path, "elsewhere", x509.DNSName("redis.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.public))
    with pytest.raises(StoreUnavailable, match="certificate"):
        connect(port=tls_front(certificate), tls=True)


@pytest.mark.parametrize("host", ["redis..example", f"{'x' * 70}.example"])
def test_what_can_be_no_hosts_name_is_told_as_that(host):
    """A malformed host name is fatal, although Python raises its own exception for it."""
    with pytest.raises(ServiceFatal, match=r"Redis at .*:6379: not a valid host name"):
        RedisStore(Database(enabled=True, host=host), "x")
