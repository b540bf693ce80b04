"""The login at GitHub: a personal access token, or a GitHub App and its installation.

Owns the credentials and their renewal. Tokens live in memory only. GitHub REST docs: authenticating as a GitHub App; a JWT lives at
most ten minutes, an installation token an hour, and its form may change (some are 520 characters long).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from anklet_github.payloads import Installation, InstallationToken
from anklet_github.settings import settings_of
from anklet_github.trouble import LOGIN, Refused
from anklet_worker.contract.errors import RightsRefused, ServiceFatal
from anklet_worker.contract.installation import INSTALLATION
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Secret

#: A JWT is dated back by a minute, as GitHub advises, and lives for nine.
_JWT_BACK, _JWT_LIFE = 60.0, 540.0
#: Seconds before its end at which an installation token is renewed, so that none expires during a request.
_AHEAD = 300.0
#: Seconds for which a token is used when the reply has no end for it (or one that has passed by our clock).
_SHORT_LIFE = 60.0
#: Seconds between two clocks from which the difference matters.
_SKEW = 5.0


class Login(Protocol):
    """How requests are signed."""

    @property
    def identity(self) -> str:
        """A key for data kept per login (ETags, budgets). Holds no secret."""
        ...

    def authorization(self) -> str:
        """The value of the header. Raises as a request for a new token does."""
        ...

    def refused(self, server_time: float | None) -> bool:
        """Called when GitHub refuses the login (401). True when a second try with a new value may succeed."""
        ...


class TokenLogin:
    """A personal access token, classic or fine-grained."""

    def __init__(self, token: Secret) -> None:
        self._token = token
        self.identity = "token-" + hashlib.sha256(token.reveal().encode()).hexdigest()[:12]

    def authorization(self) -> str:
        """The token itself."""
        return f"Bearer {self._token.reveal()}"

    def refused(self, server_time: float | None) -> bool:  # noqa: ARG002  another kind of login needs it
        """A token has no second value."""
        return False


class AppLogin:
    """The App itself, by a JWT: finds its installation and makes tokens, nothing else."""

    def __init__(self, app_id: str, private_key: Secret, clock: Callable[[], float] = time.time) -> None:
        """`app_id` may be the client id. Raises `ServiceFatal` for an unusable key."""
        # Takes a tenth of a second and 10 MB, so only a service that needs it imports it.
        with INSTALLATION.late_import("jwt"):
            import jwt  # noqa: PLC0415
            from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415
            from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        self._jwt = jwt
        self._clock = clock
        self._app_id = app_id
        self._skew = 0.0
        self.identity = f"app-{app_id}"
        try:
            key = load_pem_private_key(private_key.reveal().encode(), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, RSAPrivateKey):
            raise ServiceFatal("private_key is not the private key of a GitHub App (PEM text, or the path of its file)")
        self._key = key

    def authorization(self) -> str:
        """A new JWT; making one takes a millisecond."""
        now = self._clock() + self._skew
        claims = {"iat": int(now - _JWT_BACK), "exp": int(now + _JWT_LIFE), "iss": self._app_id}
        return f"Bearer {self._jwt.encode(claims, self._key, algorithm='RS256')}"

    def refused(self, server_time: float | None) -> bool:
        """GitHub judges the JWT's times by its own clock: adopt that clock, and try again when it differs."""
        if server_time is None:
            return False
        skew = server_time - self._clock()
        differs = abs(skew - self._skew) > _SKEW
        self._skew = skew
        return differs


class TokenMaker(Protocol):
    """The requests of an installation, made as the App."""

    def installation(self) -> Installation:
        """The App's installation on the scope."""
        ...

    def token(self, installation_id: int) -> InstallationToken:
        """A new token."""
        ...


class InstallationLogin:
    """One installation of an App. Makes its token when first needed, and renews it before its end."""

    def __init__(
        self,
        service: ServiceConfig,
        maker: TokenMaker,
        needed: dict[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`needed`: the permissions that the service must have, name -> read or write. `clock` gives Unix seconds."""
        settings = settings_of(service)
        self._maker = maker
        self._needed = needed
        self._clock = clock
        self._id = self._given_id = settings.installation_id
        self._token: str | None = None
        self._renew_at = 0.0
        self._made_at = 0.0
        self.identity = f"app-{settings.app_id}-{settings.installation_id or service.owner.lower()}"

    def authorization(self) -> str:
        """The installation's token. Raises `ApiTrouble`, or `RightsRefused` with the missing permission."""
        if self._token is None or self._clock() >= self._renew_at or self._clock() < self._made_at:
            self._make()
        return f"Bearer {self._token}"

    def refused(self, server_time: float | None) -> bool:  # noqa: ARG002  another kind of login needs it
        """The token was revoked, or ended early: a new one may work, unless this one is new."""
        fresh = self._token is not None and self._clock() - self._made_at < _SHORT_LIFE
        self._token = None
        return not fresh

    def _make(self) -> None:
        try:
            if self._id is None:
                self._id = self._maker.installation().id
            made = self._maker.token(self._id)
        except Refused as error:
            # A reinstalled App has another installation id.
            self._id = self._given_id
            # Whichever of the App's routes was refused, the caller asked for a login, and it worked before.
            raise Refused(str(error), LOGIN) from None
        missing = [
            f"{name}: {right}" for name, right in self._needed.items() if not _allows(made.permissions, name, right)
        ]
        if missing:
            raise RightsRefused(f"the GitHub App's installation {self._id} lacks a permission: {', '.join(missing)}")
        now = self._clock()
        self._token, self._made_at = made.token, now
        self._renew_at = max(_end(made.expires_at) - _AHEAD, now + _SHORT_LIFE)


def _end(expires_at: str) -> float:
    try:
        return datetime.fromisoformat(expires_at).timestamp()
    except ValueError:
        return 0.0


def _allows(permissions: dict[str, str] | None, name: str, right: str) -> bool:
    """True for a granted permission, and when the reply lists none: then the first refusal shows it."""
    if permissions is None:
        return True
    return permissions.get(name) in (("write", "admin") if right == "write" else ("read", "write", "admin"))
