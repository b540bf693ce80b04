"""Controls an emulated GitHub from a test or a demo: start it, fill it, break it, inspect what happened.

Owns the server's process and a small client of its control API. Knows nothing of the server's internals.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_START_SECONDS = 20
_STOP_SECONDS = 5
_LOOK_EVERY = 0.1
DEFAULT_VERSION = (_HERE / "runner" / "bin" / "version").read_text().strip()


class GitHubServer:
    """An emulated GitHub in a separate process, for as long as the context lasts, or from start() to stop()."""

    def __init__(self, *, port=0, state_dir=None, log=None):
        """`state_dir` gets events.jsonl and anomalies.jsonl, `log` a line per API request; the methods here need neither."""
        self._port, self._state_dir, self._log = port, state_dir, log
        self._process = self._folder = None
        self._local = threading.local()
        self._connections = []  # one per thread that has called
        self.url = None
        self.runner_dir = _HERE / "runner"

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # -- the process ---------------------------------------------------------------------------------

    def start(self):
        """Start the server; returns when it listens. Raises RuntimeError if it does not come up."""
        self._folder = Path(tempfile.mkdtemp(prefix="fake-github-"))
        port_file, errors = self._folder / "port", self._folder / "stderr"
        argv = [sys.executable, "-SEB", str(_HERE / "server.py"), "--until-eof", "--port", str(self._port)]
        argv += ["--port-file", str(port_file), "--scratch", str(self._folder)]
        argv += ["--state-dir", str(self._state_dir)] if self._state_dir else []
        argv += ["--log", str(self._log)] if self._log else []
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + _START_SECONDS
        while not port_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the emulated GitHub did not start: {self._end()}")
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{port_file.read_text().strip()}"
        return self

    def stop(self):
        """End the process and remove its scratch directory. Any output on its stderr is an error of the emulator."""
        complaint = self._end() if self._process else ""
        if complaint:
            raise RuntimeError(f"the emulated GitHub wrote to stderr: {complaint}")

    def _end(self):
        """End the process and remove the directory; return the process's stderr."""
        while self._connections:
            self._connections.pop().close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()  # not earlier: its end tells the server that we are gone
        complaint = (self._folder / "stderr").read_text()
        shutil.rmtree(self._folder)
        self._process = self._folder = None
        self._local = threading.local()
        return complaint

    @property
    def pid(self):
        """The process id of the server."""
        return self._process.pid

    @property
    def api_url(self):
        """Root of the REST API, in the form of github.com."""
        return self.url

    @property
    def enterprise_api_url(self):
        """Root of the REST API, in the form of GitHub Enterprise Server."""
        return f"{self.url}/api/v3"

    def _do(self, command, **arguments):
        body = json.dumps(arguments)
        connection = getattr(self._local, "connection", None)
        for fresh in (connection is None, True):
            if fresh:
                host, port = self.url.split("//")[1].split(":")
                connection = self._local.connection = http.client.HTTPConnection(host, int(port), timeout=60)
                self._connections.append(connection)
            try:
                connection.request("POST", f"/_emulator/{command}", body, {"Content-Type": "application/json"})
                answer = json.loads(connection.getresponse().read())
                break
            except (ConnectionError, http.client.HTTPException):
                connection.close()
                self._local.connection = None
                if fresh:
                    raise
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]

    # -- setup ---------------------------------------------------------------------------------------

    def add_repo(self, owner, repo, *, private=True):
        """Add a repository, and its owner if that is new (as a user, unless add_org said otherwise)."""
        return self._do("add_repo", owner=owner, repo=repo, private=private)

    def add_org(self, name):
        """Add an organisation."""
        return self._do("add_org", name=name)

    def add_group(self, org, name, *, repos=None):
        """Add a runner group of an organisation, for all of its repositories or for these (names). Returns {"id"}."""
        return self._do("add_group", org=org, name=name, repos=repos)

    def add_token(self, value, *, permissions=None, repos=None, user="octocat", expires_in=None):
        """Add a valid API token. None: all permissions, all repositories ("owner/name"); `user` names its rate bucket."""
        self._do("add_token", value=value, permissions=permissions, repos=repos, user=user, expires_in=expires_in)
        return value

    def add_app(self, app_id, *, client_id=None, slug="emulated-app", owner="octo-org"):
        """Add a GitHub App: the API accepts JWTs with this id, or its client id, as issuer."""
        self._do("add_app", app_id=app_id, client_id=client_id, slug=slug, owner=owner)

    def add_installation(self, installation_id, *, app_id, account, permissions, repos=None):
        """Add an installation of an App on an account, for all of its repositories or for these (names)."""
        what = {"installation_id": installation_id, "app_id": app_id, "account": account}
        self._do("add_installation", **what, permissions=permissions, repos=repos)

    def add_runner(self, owner, repo, name, labels, *, online=False, job_id=None):
        """Add a foreign runner without a process; `job_id`: it runs that job for ever. `repo` None: the organisation's runner."""
        what = {"owner": owner, "repo": repo, "name": name, "labels": labels}
        return self._do("add_runner", **what, online=online, job_id=job_id)

    def delete_runner(self, runner_id):
        """Delete a registration, busy or not, as an administrator can on the web site."""
        self._do("delete_runner", runner_id=runner_id)

    # -- runs and jobs -------------------------------------------------------------------------------

    def queue_run(self, owner, repo, jobs, *, workflow="CI", created_at=None, branch="main"):
        """Queue a workflow run. Jobs: dicts with name, and labels, steps (shell commands), duration (s), conclusion, needs (names).

        Returns the run as the API shows it, with `jobs`: dicts of the API's shape with `log`, `repo`, `released`, `starts`.
        `created_at` is in epoch seconds or RFC 3339.
        """
        what = {"owner": owner, "repo": repo, "jobs_of": jobs, "workflow": workflow}
        return self._do("queue_run", **what, created_at=created_at, branch=branch)

    def run(self, run_id):
        """Return a run with the jobs of its latest attempt."""
        return self._do("run", run_id=run_id)

    def job(self, job_id):
        """Return a job."""
        return self._do("job", job_id=job_id)

    def jobs(self):
        """Return every job of every attempt of every run, in order of creation."""
        return self._do("jobs")

    def cancel_run(self, run_id):
        """Cancel a run, as a user does on the web site. False: the run was already over."""
        return self._do("cancel_run", run_id=run_id)

    def cancel_job(self, job_id):
        """Cancel one job. False: it was already over."""
        return self._do("cancel_job", job_id=job_id)

    def rerun(self, run_id, *, failed_only=False, job_id=None):
        """Start a new attempt of a completed run: all jobs, the failed ones, or one, and its dependants. Returns the run."""
        return self._do("rerun", run_id=run_id, failed_only=failed_only, job_id=job_id)

    def runners(self, owner, repo=None):
        """Return the registered runners of a repository, or of an organisation."""
        return self._do("runners", owner=owner, repo=repo)

    # -- faults --------------------------------------------------------------------------------------

    def fault(  # noqa: PLR0913  keyword-only, one per thing that can go wrong
        self,
        method,
        route_regex,
        *,
        times=1,
        status=None,
        body=None,
        headers=None,
        delay=None,
        reset=False,
        truncate=False,
        drop_after_effect=False,
        slow_drip=None,
    ):
        """Break the next `times` (None: all) requests of `method` ("*": any) whose path matches `route_regex`.

        `delay` seconds pass first. Without effect: `reset` breaks the connection; `status`, with `body` (JSON, or text sent
        verbatim) and `headers`, replaces the reply. With effect: `drop_after_effect` breaks the connection, `truncate` sends half
        of the body (and with `reset` then breaks the connection), `slow_drip` is the number of seconds over which the body is
        sent, `headers` alone are added to the reply.
        The path is that without /api/v3. Runners' own paths begin with /_services/.
        """
        what = {"times": times, "status": status, "body": body, "headers": headers, "delay": delay, "reset": reset}
        what |= {"truncate": truncate, "drop_after_effect": drop_after_effect, "slow_drip": slow_drip}
        self._do("fault", method=method, route=route_regex, **what)

    def clear_faults(self):
        """Remove all faults that have not struck."""
        self._do("clear_faults")

    def faults(self):
        """Return the faults that are not used up, as dicts of fault()'s arguments."""
        return self._do("faults")

    def set(self, **switches):
        """Set switches (see README.md); raises ValueError for an unknown one."""
        self._do("set", **switches)

    # -- what happened -------------------------------------------------------------------------------

    def requests(self, since=0):
        """Return the API requests and downloads: seq, time, method, path, query, headers, body, status, seconds, counted, fault.

        Only those with a seq above `since`. Authorization is shown as its scheme and a hash. `status` None: not answered.
        """
        return self._do("requests", since=since)

    def counts(self):
        """Return sums of requests(): requests, counted, not_modified, points, most_at_once, routes ("METHOD path" -> number)."""
        return self._do("counts")

    def anomalies(self):
        """Return the events that must not happen: dicts with `anomaly` and its facts; see README.md."""
        return self._do("anomalies")

    def events(self, *kinds, since=0):
        """Return the journal, of these kinds or all: dicts with seq, time, event and facts."""
        return [event for event in self._do("events", since=since) if not kinds or event["event"] in kinds]

    def wait_for(self, predicate, deadline=30):
        """Return the first true value of `predicate()`, polled at each event and every 0.1 s; TimeoutError after `deadline` s."""
        end = time.monotonic() + deadline
        seen = 0
        while True:
            value = predicate()
            if value:
                return value
            if time.monotonic() > end:
                last = "\n".join(str(event) for event in self.events()[-12:])
                raise TimeoutError(f"not within {deadline} s; the last events:\n{last}\nanomalies: {self.anomalies()}")
            seen = self._do("wait", since=seen, seconds=_LOOK_EVERY)

    # -- the runner ----------------------------------------------------------------------------------

    def runner_sha256(self, arch, version=DEFAULT_VERSION):
        """Return the checksum of actions-runner-osx-<arch>-<version>.tar.gz (arch: x64 or arm64)."""
        return self._do("runner_sha256", arch=arch, version=version)

    def copy_runner(self, home):
        """Copy the unpacked, unconfigured runner to `home`/actions-runner, as in an image. Returns that directory."""
        target = Path(home) / "actions-runner"
        shutil.copytree(self.runner_dir, target, ignore=shutil.ignore_patterns("__pycache__"))
        return target
