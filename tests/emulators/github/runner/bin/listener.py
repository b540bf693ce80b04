"""The stub listener: one session with the service, one long poll after another, one worker process per job. Python 3.9 or newer.

Exit status as in the real listener: 0 done, 1 terminated error, 2 retryable, 5 session conflict, 7 version deprecated.
"""

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time

import configuration
import service

_POLL_TIMEOUT = 120.0
_LONGEST_PAUSE = 5.0
_RESULTS = {100: "Succeeded", 102: "Failed", 103: "Canceled"}


def main(argv):
    """Run the command line; returns the exit status."""
    if "--version" in argv:
        print(service.version())
        return 0
    if "--commit" in argv:
        print("0" * 40)
        return 0
    command = argv[0] if argv and not argv[0].startswith("-") else "run"
    rest = argv[1:] if argv[:1] == [command] else argv
    if command == "configure":
        return configuration.configure(rest)
    if command == "remove":
        return configuration.remove(rest)
    return run(configuration.options(rest, "run"))


def run(given):
    """Listen with this folder's settings, or with a JIT configuration."""
    if given.get("jitconfig"):
        try:
            service.unpack(given["jitconfig"])
        except ValueError as error:
            say(f"An error occurred: Invalid JIT configuration: {error}", stamped=False)
            return 1
    try:
        settings, secret = service.load()
    except FileNotFoundError:
        say("An error occurred: Not configured. Run config.(sh/cmd) to configure the runner.", stamped=False)
        return 1
    with service.log_file("Runner") as log:
        return Listener(settings, service.Line(settings, secret), log).run()


def say(text, *, stamped=True):
    """Print a line on standard output, preceded by the time."""
    moment = time.strftime("%Y-%m-%d %H:%M:%SZ: ", time.gmtime()) if stamped else ""
    print(moment + text, flush=True)


class Listener:
    """Reacts to inbox entries from the poll, the worker and signals."""

    def __init__(self, settings, line, log):
        self._settings, self._line, self._log = settings, line, log
        self._ephemeral = settings["Ephemeral"] == "True"
        self._inbox = queue.SimpleQueue()
        self._session = self._worker = self._job = self._next = None

    def run(self):
        """Run until there is no work left; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._inbox.put(("signal", None)))
        status = self._open_session()
        if status is not None:
            return status
        say("Listening for Jobs")
        threading.Thread(target=self._poll, daemon=True).start()
        reactions = {
            "RunnerJobRequest": self._take_job,
            "JobCancellation": self._cancel,
            "worker": self._worker_ended,
            "gone": self._gone,
            "expired": lambda _: 2,
            "signal": self._signalled,
        }
        while True:
            kind, what = self._inbox.get()
            service.trace(self._log, "Listener", f"{kind}: {what}")
            status = reactions[kind](what)
            if status is not None:
                return status

    # -- the session ---------------------------------------------------------------------------------

    def _open_session(self):
        """Open the session; returns None on success, otherwise the exit status."""
        asked = {
            "nonce": secrets.token_hex(8),
            "version": service.version(),
            "os": "macOS",
            "ownerName": os.uname().nodename,
        }
        began, told = time.monotonic(), False
        while True:
            try:
                status, reply = self._line.insist("POST", "session", asked)
            except service.Unreachable as error:
                say(f"Runner connect error: {error}")
                return 2
            if not told:
                say("\n√ Connected to GitHub\n", stamped=False)
                told = True
            if status != 409:
                return self._opened(status, reply)
            say(reply["message"])
            if time.monotonic() - began + reply["retryAfter"] > reply["giveUpAfter"]:
                say(f"Stop retry on SessionConflictException after retried for {reply['giveUpAfter']:.0f} seconds.")
                return 5
            time.sleep(reply["retryAfter"])

    def _opened(self, status, reply):
        if status == 200:
            self._session = reply["sessionId"]
            say(f"Current runner version: '{service.version()}'", stamped=False)
            return None
        if status == 403:
            say(f"An error occured: {reply['message']}", stamped=False)
            wanted = os.environ.get("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE") == "1"
            return 7 if wanted else 1
        text = (
            "Failed to create a session. The runner registration has been deleted from the server, please re-configure."
        )
        say(text, stamped=False)
        return 1

    def _close_session(self):
        try:
            self._line.call("DELETE", f"session?sessionId={self._session}", timeout=5.0)
        except service.Unreachable as error:
            service.trace(self._log, "Listener", f"session not closed: {error}")

    def _poll(self):
        """Put each message into the inbox; ends with the registration or the session. The server does the waiting."""
        pause, cut_off = 0.1, False
        while True:
            try:
                status, message = self._line.call("GET", f"message?sessionId={self._session}", timeout=_POLL_TIMEOUT)
            except service.Unreachable as error:
                service.trace(self._log, "MessageListener", str(error))
                if not cut_off:
                    say(f"Runner connect error: {error}. Retrying until reconnected.")
                cut_off = True
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if cut_off:
                say("Runner reconnected.")
            pause, cut_off = 0.1, False
            if status == 200:
                self._inbox.put((message["messageType"], message))
            elif status != 202:
                self._inbox.put(("gone" if status == 404 else "expired", message))
                return

    # -- reactions: return an exit status, or None to continue ---------------------------------------

    def _take_job(self, message):
        if self._worker is not None:  # it has reported its end and is about to exit
            self._next = message
            return
        number = message["jobId"]
        try:
            status, job = self._line.insist("POST", f"jobs/{number}/acquire", {"nonce": secrets.token_hex(8)})
        except service.Unreachable as error:
            say(f"Job {number} was not acquired: {error}")
            return
        if status != 200:
            say(f"Skipping job {number}: {job.get('message')}")
            return
        say(f"Running job: {job['jobName']}")
        self._job = job
        worker = subprocess.Popen([service.path("bin/Runner.Worker")], stdin=subprocess.PIPE, cwd=service.ROOT)
        self._worker = worker
        self._tell_worker(json.dumps(job))
        threading.Thread(target=lambda: self._inbox.put(("worker", worker.wait())), daemon=True).start()

    def _tell_worker(self, text):
        try:
            self._worker.stdin.write(text.encode() + b"\n")
            self._worker.stdin.flush()
        except BrokenPipeError:
            service.trace(self._log, "JobDispatcher", "the worker is gone")

    def _cancel(self, _message):
        if self._worker is not None:
            self._tell_worker("cancel")

    def _worker_ended(self, code):
        result = _RESULTS.get(code, "Failed")
        if code not in _RESULTS:  # it could not report its result
            self._finish_for_worker(code)
        say(f"Job {self._job['jobName']} completed with result: {result}")
        self._worker = self._job = None
        if self._ephemeral:
            service.forget()
            return 0
        message, self._next = self._next, None
        if message is not None:
            self._take_job(message)
        return None

    def _finish_for_worker(self, code):
        ending = {"conclusion": "failure", "log": f"The worker exited with {code}.\n", "nonce": secrets.token_hex(8)}
        try:
            self._line.insist("POST", f"jobs/{self._job['jobId']}/finish", ending)
        except service.Unreachable as error:
            service.trace(self._log, "JobDispatcher", f"the end of the job was not reported: {error}")

    def _gone(self, _message):
        if self._worker is not None:
            return None  # an ephemeral registration may end before its worker does
        say("The runner no longer exists on the server. Cleaning up local configuration.", stamped=False)
        service.forget()
        return 0

    def _signalled(self, _):
        say("Exiting...", stamped=False)
        if self._worker is not None:
            self._tell_worker("cancel")
            self._worker.wait()
            say(f"Job {self._job['jobName']} completed with result: Canceled")
        self._close_session()
        if self._ephemeral and self._job is not None:
            service.forget()
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
