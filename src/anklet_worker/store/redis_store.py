"""The store on Redis: leases, counters and notes that many hosts share.

The only importer of redis; imported only where a database is enabled. Redis' own clock decides when a lease expires, so the hosts'
clocks do not matter. Every operation is one script or command and therefore atomic. Repeating one after a lost answer is safe,
except that a counter may count twice. Knows no job system and no VM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from redis import Redis
from redis.backoff import EqualJitterBackoff
from redis.commands.core import Script
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from anklet_worker.contract.errors import RightsRefused, ServiceFatal, StoreUnavailable
from anklet_worker.contract.service import Database

OLDEST_VERSION = (6, 2)
_CONNECT_TIMEOUT, _OPERATION_TIMEOUT = 2.0, 3.0
#: One more try heals a connection that died while idle. Callers retry over longer times themselves.
_RETRIES = 1
_BACKOFF_FIRST, _BACKOFF_LONGEST = 0.05, 0.5
_LONGEST_REASON = 200
_REHEARSAL_TTL = 1.0
_REFUSALS = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError, NoPermissionError)
#: The words of Redis 6.2 and 7 when the user may not run a command inside a script; that reply has no error code.
_LACKS_RIGHT_IN_SCRIPT = re.compile(r"NOPERM|can't run this command|no permissions?\b")

_CLAIM = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
_COUNT = """
local value = redis.call('INCRBY', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return value
"""

_Answer = TypeVar("_Answer")


class RedisStore:
    """Implements `Store` on Redis. With `tls`, the system must trust Redis' certificate and it must name the host.

    `version` is the version that Redis reports ("7.2.4").
    """

    def __init__(self, database: Database, client_name: str) -> None:
        """Connect, and check the server's version and the user's rights. `client_name` appears in Redis' CLIENT LIST.

        Raises `StoreUnavailable`, `RightsRefused` (user, password or rights), or `ServiceFatal` (Redis is older than 6.2, or the
        configured host is no valid host name).
        """
        self._address = f"{database.host}:{database.port}"
        # Redacted from every error message. Redis itself names the user that it refuses.
        password = database.password.reveal() if database.password is not None else ""
        self._secrets = tuple(filter(None, (password, database.user)))
        # CLIENT SETNAME accepts printable ASCII without spaces (redis.io/commands/client-setname).
        self._client_name = re.sub(r"[^!-~]", "_", client_name)
        self._closed = False
        self.version = ""
        self._client = _client(database, self._client_name)
        self._claim, self._renew, self._release, self._count = map(
            self._client.register_script, (_CLAIM, _RENEW, _RELEASE, _COUNT)
        )
        try:
            self._check_server()
        except BaseException:
            self._client.close()
            raise

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store.claim`."""
        return self._run(self._claim, key, owner, _milliseconds(ttl)) == 1

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._run(self._renew, key, owner, _milliseconds(ttl)) == 1

    def release(self, key: str, owner: str) -> bool:
        """See `Store.release`."""
        return self._run(self._release, key, owner) == 1

    def holder(self, key: str) -> str | None:
        """See `Store.holder`."""
        found = self._ask(lambda: self._client.get(key))
        return None if found is None else str(found)

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """See `Store.count`."""
        return self._run(self._count, key, _milliseconds(ttl), amount)

    def post(self, key: str, value: str, ttl: float) -> None:
        """See `Store.post`."""
        self._ask(lambda: self._client.set(key, value, px=_milliseconds(ttl)))

    def read(self, key: str) -> str | None:
        """See `Store.read`."""
        return self.holder(key)

    def close(self) -> None:
        """See `Store.close`."""
        self._closed = True
        self._client.close()

    def _run(self, script: Script, key: str, *arguments: str | int) -> int:
        """Run a script by its digest. The client sends the text if Redis does not know the digest."""
        return int(self._ask(lambda: script(keys=[key], args=list(arguments))))

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        if self._closed:
            raise StoreUnavailable("the claim store is closed")
        try:
            return question()
        except RedisError as error:
            # Reconnect next time: after a failover this connection may lead to a replica that refuses every write, while the host
            # name resolves to the new primary.
            self._client.connection_pool.disconnect(inuse_connections=False)
            # Not `from error`: its text may contain secrets.
            raise StoreUnavailable(self._describe(error)) from None

    def _check_server(self) -> None:
        try:
            self._client.ping()
            version = _version(self._client)
            self.version = _dotted(version)
            if version < OLDEST_VERSION:
                raise ServiceFatal(
                    f"Redis at {self._address} has version {self.version}; upgrade it to {_dotted(OLDEST_VERSION)} or newer"
                )
            self._rehearse()
        except _REFUSALS as error:
            raise RightsRefused(self._describe(error)) from None
        except UnicodeError:
            # Python's encoder for host names refuses empty and overlong labels.
            raise ServiceFatal(
                f"Redis at {self._address}: not a valid host name; correct the database settings"
            ) from None
        except RedisError as error:
            if _LACKS_RIGHT_IN_SCRIPT.search(str(error)):
                raise RightsRefused(self._describe(error)) from None
            raise StoreUnavailable(self._describe(error)) from None

    def _rehearse(self) -> None:
        """Run each operation once, so that missing rights, a replica or full memory show now and not when a job waits."""
        milliseconds = _milliseconds(_REHEARSAL_TTL)
        self._client.script_load(self._claim.script)
        for script in (self._claim, self._renew, self._release):
            script(keys=["anklet:rehearsal"], args=[self._client_name, milliseconds])
        self._count(keys=["anklet:rehearsals"], args=[milliseconds, 1])
        self._client.get("anklet:rehearsal")

    def _describe(self, error: RedisError) -> str:
        """The error in one line, without user and password."""
        reason = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            # Whole words only: the user may be called "a".
            reason = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", reason)
        return f"Redis at {self._address}: {reason[:_LONGEST_REASON]}"


def _client(database: Database, client_name: str) -> Redis:
    return Redis(
        host=database.host,
        port=database.port,
        db=database.database,
        username=database.user or None,
        password=database.password.reveal() if database.password else None,
        ssl=database.tls,
        # Off by default in older releases of redis-py.
        ssl_check_hostname=True,
        socket_connect_timeout=_CONNECT_TIMEOUT,
        socket_timeout=_OPERATION_TIMEOUT,
        retry=Retry(EqualJitterBackoff(cap=_BACKOFF_LONGEST, base=_BACKOFF_FIRST), _RETRIES),
        # Older releases retry a command only after the errors named here.
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        # No health checks: the retry heals a dead connection too, and in redis-py 5 a check that meets a refused login recurses
        # without end.
        socket_keepalive=True,
        client_name=client_name,
        protocol=2,
        decode_responses=True,
        encoding_errors="replace",
    )


def _version(client: Redis) -> tuple[int, ...]:
    """Redis' version from HELLO, which every user may call, unlike INFO. HELLO exists since Redis 6.0; (5,) without it."""
    try:
        flat = cast("Sequence[object]", client.execute_command("HELLO", 2))  # type: ignore[no-untyped-call]
    except NoPermissionError:
        raise
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        return (5,)
    facts = dict(zip(flat[::2], flat[1::2], strict=True))
    return tuple(int(part) for part in re.findall(r"\d+", str(facts.get("version", "")))[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
