"""Examines what the github plugin needs of GitHub: login, rights, remaining rate, and the two clocks.

Each request is made once, without a retry: the findings are about this moment. It leaves nothing behind except a registration
token, the one proof of the right to register runners; it is thrown away and expires within the hour. GitHub REST docs, version
2022-11-28.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from anklet_github.connect import headers, transport_of
from anklet_github.http import NoAnswer, Transport
from anklet_github.login import AppLogin, TokenLogin
from anklet_github.scope import scope_of
from anklet_github.settings import settings_of
from anklet_worker.contract.errors import UNREADABLE, ServiceFatal
from anklet_worker.contract.findings import Finding, Verdict
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Secret

_OK, _CREATED, _UNAUTHORIZED, _NOT_FOUND = 200, 201, 401, 404
#: Seconds between GitHub's clock and ours: more than the first puts times in the log in doubt, more than the second ends logins.
_SKEW_TOLD, _SKEW_TOO_MUCH = 5.0, 60.0
#: Share of the hourly rate below which it may run out before it is renewed.
_LITTLE_LEFT = 0.1


class Answer(msgspec.Struct, frozen=True):
    """One reply. `status` 0: no reply came, `said` is the reason. `date` is the server's clock, `took_at` ours, Unix seconds."""

    status: int
    said: str = ""
    date: float | None = None
    body: Any = None
    took_at: float = 0.0


Ask = Callable[[str, str], Answer]


def examine(service: ServiceConfig, clock: Callable[[], float] = time.time) -> Iterable[Finding]:
    """Ask GitHub (see `contract.findings.PluginDoctor`). `clock` gives Unix seconds."""
    try:
        transport = transport_of(service)
    except ServiceFatal as error:
        return [_login_failed(Answer(0, str(error)), service)]
    try:
        asker = _Asker(transport, service, clock)
        login = asker.log_in()
        if login.status not in (_OK, _CREATED):
            return [_login_failed(login, service)]
        return list(_examined(service, asker.ask))
    finally:
        transport.close()


def _examined(service: ServiceConfig, ask: Ask) -> Iterator[Finding]:
    place = scope_of(service).path
    first = ask("GET", place)
    if first.status != _OK:
        yield _login_failed(first, service)
        return
    yield Finding(check="GitHub login", verdict=Verdict.OK, said=f"accepted; {place} is visible")
    yield from _rights(service, place, ask)
    yield _rate(ask("GET", "/rate_limit"))
    yield from _clock(first)


def _login_failed(answer: Answer, service: ServiceConfig) -> Finding:
    host = settings_of(service).api_url
    if answer.status == 0:
        said, remedy = f"{host}: {answer.said}", "check the network, the proxy, and api_url"
    elif answer.status == _UNAUTHORIZED:
        said, remedy = (
            f"GitHub rejects the login (401 {answer.said})",
            "make a new token, or check app_id and private_key",
        )
    elif answer.status == _NOT_FOUND:
        said = f"GitHub has no {service.owner}/{service.repo}, or hides it from this login (404)"
        remedy = "check owner and repo; give the token, or the App's installation, access to this repository"
    else:
        said, remedy = f"GitHub answers {answer.status} {answer.said}", "check the token's rights, then try again"
    return Finding(check="GitHub login", verdict=Verdict.PROBLEM, said=said, remedy=remedy)


def _rights(service: ServiceConfig, place: str, ask: Ask) -> Iterator[Finding]:
    runners = "Self-hosted runners (organization)" if settings_of(service).org else "Administration"
    questions = [
        ("GET", f"{place}/actions/runners?per_page=1", f"{runners}: read"),
        ("POST", f"{place}/actions/runners/registration-token", f"{runners}: read and write"),
    ]
    if service.repo:
        questions.insert(0, ("GET", f"/repos/{service.owner}/{service.repo}/actions/runs?per_page=1", "Actions: read"))
    for method, path, right in questions:
        answer = ask(method, path)
        if answer.status in (_OK, _CREATED):
            yield Finding(check="GitHub rights", verdict=Verdict.OK, said=f"{right}: granted")
        else:
            yield Finding(
                check="GitHub rights",
                verdict=Verdict.PROBLEM,
                said=f"{right}: refused ({answer.status or 'no answer'} {answer.said})".replace(" )", ")"),
                remedy=f"grant {right} to the token, or to the App and then its installation",
            )


def _rate(answer: Answer) -> Finding:
    core = answer.body.get("resources", {}).get("core", {}) if isinstance(answer.body, dict) else {}
    limit, left = core.get("limit"), core.get("remaining")
    if answer.status == _NOT_FOUND or not isinstance(limit, int) or not isinstance(left, int) or limit <= 0:
        return Finding(check="GitHub rate", verdict=Verdict.OK, said="this server has no rate limit")
    said = f"{left} of {limit} requests left this hour"
    if left < limit * _LITTLE_LEFT:
        remedy = "log in as a GitHub App, which has its own limit; or use a longer sleep_interval, or fewer services"
        return Finding(check="GitHub rate", verdict=Verdict.WARNING, said=said, remedy=remedy)
    return Finding(check="GitHub rate", verdict=Verdict.OK, said=said)


def _clock(answer: Answer) -> Iterator[Finding]:
    if answer.date is None:
        return
    skew = answer.took_at - answer.date
    said = f"this host's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} GitHub's"
    remedy = "turn on System Settings, Date & Time, Set automatically; or run sudo sntp -sS time.apple.com"
    if abs(skew) > _SKEW_TOO_MUCH:
        yield Finding(check="clock", verdict=Verdict.PROBLEM, said=said + "; GitHub refuses logins", remedy=remedy)
    elif abs(skew) > _SKEW_TOLD:
        yield Finding(check="clock", verdict=Verdict.WARNING, said=said, remedy=remedy)
    else:
        yield Finding(check="clock", verdict=Verdict.OK, said="agrees with GitHub's")


class _Asker:
    """Asks with the service's login, each question once. No answer holds the login."""

    def __init__(self, transport: Transport, service: ServiceConfig, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._service = service
        self._clock = clock
        self._authorization = ""

    def log_in(self) -> Answer:
        """Use the configured token, or get one for the App's installation, which lasts an hour."""
        settings = settings_of(self._service)
        if settings.private_key is None or not settings.app_id:
            self._authorization = TokenLogin(settings.token or Secret("")).authorization()
            return Answer(_OK)
        try:
            self._authorization = AppLogin(settings.app_id, settings.private_key, self._clock).authorization()
        except ServiceFatal as error:
            return Answer(_UNAUTHORIZED, str(error))
        number = settings.installation_id
        if number is None:
            found = self.ask("GET", f"{scope_of(self._service).path}/installation")
            if found.status != _OK:
                return found
            number = found.body.get("id")
        given = self.ask("POST", f"/app/installations/{number}/access_tokens")
        if given.status == _CREATED:
            self._authorization = f"Bearer {given.body.get('token')}"
        return given

    def ask(self, method: str, path: str) -> Answer:
        """One request, one answer."""
        try:
            reply = self._transport.exchange(method, path, headers(self._authorization))
        except NoAnswer as error:
            return Answer(0, str(error))
        try:
            body = msgspec.json.decode(reply.body)
        except UNREADABLE:
            body = None
        message = body.get("message", "") if isinstance(body, dict) else ""
        return Answer(reply.status, " ".join(str(message).split())[:200], reply.date(), body, self._clock())
