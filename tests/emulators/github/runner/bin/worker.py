"""The stub worker: runs the steps of one job with bash and reports them. Python 3.9 or newer.

The job arrives as a line of JSON on standard input; a line `cancel` cancels it. The end of standard input means that the
listener was killed: the worker then stops without a report, because a lost runner cannot report.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time

import service

_SUCCEEDED, _FAILED, _CANCELLED = 100, 102, 103
_GRACE = ((signal.SIGINT, 1.0), (signal.SIGTERM, 0.5), (signal.SIGKILL, 5.0))


class Job:
    """The job, its steps so far, and the process of the current one."""

    def __init__(self, message, line, log):
        self._message, self._line, self._log = message, line, log
        self._steps, self._output = [], []
        self._process = None
        self._lock = threading.Lock()
        self.cancelled = threading.Event()

    # -- cancellation --------------------------------------------------------------------------------

    def cancel(self):
        """End the current step, gently at first; start no further step."""
        self.cancelled.set()
        with self._lock:
            process = self._process
        if process is None:
            return
        for number, seconds in _GRACE:
            if process.poll() is not None:
                return
            self._signal(process, number)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                service.trace(self._log, "JobRunner", f"the step did not end on signal {number}")

    def _signal(self, process, number):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            service.trace(self._log, "JobRunner", "the step had ended")

    # -- steps ---------------------------------------------------------------------------------------

    def run(self):
        """Run all steps and report the end; returns the worker's exit status."""
        self._step("Set up job", lambda: True)
        for command in self._message["steps"]:
            if self._failed() or self.cancelled.is_set():
                break
            self._step(
                f"Run {command.splitlines()[0] if command.strip() else ''}", lambda text=command: self._bash(text)
            )
        if not self._failed() and not self.cancelled.is_set():
            self.cancelled.wait(self._message["duration"])
        self._step("Complete job", lambda: True)
        conclusion, status = self._result()
        ending = {"steps": self._steps, "log": "".join(self._output), "conclusion": conclusion}
        ending["nonce"] = secrets.token_hex(8)
        code, reply = self._line.insist("POST", f"jobs/{self._message['jobId']}/finish", ending)
        if code >= 300:
            service.trace(self._log, "JobRunner", f"the end of the job was refused: {code} {reply}")
        return status

    def _result(self):
        if self.cancelled.is_set():
            return "cancelled", _CANCELLED
        if self._failed():
            return "failure", _FAILED
        wanted = self._message["conclusion"] or "success"
        return wanted, _SUCCEEDED if wanted in ("success", "neutral", "skipped") else _FAILED

    def _failed(self):
        return any(step["conclusion"] == "failure" for step in self._steps)

    def _step(self, name, action):
        step = {
            "name": name,
            "status": "in_progress",
            "conclusion": None,
            "started_at": time.time(),
            "completed_at": None,
        }
        self._steps.append(step)
        self._report()
        good = action()
        conclusion = "success" if good else "cancelled" if self.cancelled.is_set() else "failure"
        step.update(status="completed", conclusion=conclusion, completed_at=time.time())
        service.trace(self._log, "StepsRunner", f"{name}: {conclusion}")

    def _report(self):
        progress = {"steps": self._steps, "log": "".join(self._output)}
        try:
            self._line.call("POST", f"jobs/{self._message['jobId']}/report", progress, timeout=5.0)
        except service.Unreachable as error:
            service.trace(self._log, "JobServerQueue", f"not reported: {error}")

    def _bash(self, text):
        workspace = self._workspace()
        record = service.path(f"_diag/pages/{self._message['jobId']}_{len(self._steps)}.log")
        os.makedirs(os.path.dirname(record), exist_ok=True)
        with open(record, "w+b") as output:
            with self._lock:
                if self.cancelled.is_set():
                    return False
                self._process = subprocess.Popen(
                    ["bash", "-e", "-c", text],
                    cwd=workspace,
                    env=self._environment(workspace),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            status = self._process.wait()
            output.seek(0)
            self._output.append(output.read().decode("utf-8", "replace"))
        if status:
            self._output.append(f"##[error]Process completed with exit code {status}.\n")
        return status == 0

    def _workspace(self):
        settings, _ = service.load()
        name = self._message["repository"].split("/")[1]
        workspace = os.path.join(service.ROOT, settings["WorkFolder"], name, name)
        os.makedirs(workspace, exist_ok=True)
        return workspace

    def _environment(self, workspace):
        message = self._message
        settings, _ = service.load()
        temp = os.path.join(service.ROOT, settings["WorkFolder"], "_temp")
        os.makedirs(temp, exist_ok=True)
        return {
            **os.environ,
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_JOB": message["jobName"],
            "GITHUB_REF": message["ref"],
            "GITHUB_REPOSITORY": message["repository"],
            "GITHUB_RUN_ATTEMPT": str(message["runAttempt"]),
            "GITHUB_RUN_ID": str(message["runId"]),
            "GITHUB_RUN_NUMBER": str(message["runNumber"]),
            "GITHUB_WORKFLOW": message["workflow"],
            "GITHUB_WORKSPACE": workspace,
            "RUNNER_ENVIRONMENT": "self-hosted",
            "RUNNER_NAME": settings["AgentName"],
            "RUNNER_OS": "macOS",
            "RUNNER_TEMP": temp,
        }

    def abandon(self):
        """The listener is gone: kill the step and end at once, without a report."""
        with self._lock:
            self.cancelled.set()
            if self._process is not None and self._process.poll() is None:
                self._signal(self._process, signal.SIGKILL)
            service.trace(self._log, "Worker", "the listener is gone")
            os._exit(1)


def _listen(job):
    """Obey the listener until standard input ends."""
    for line in sys.stdin:
        if line.strip() == "cancel":
            job.cancel()
    job.abandon()


def main():
    """Run the job from standard input; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the listener decides
    message = json.loads(sys.stdin.readline())
    settings, secret = service.load()
    with service.log_file("Worker") as log:
        service.trace(log, "Worker", f"job {message['jobId']} {message['jobName']}")
        job = Job(message, service.Line(settings, secret), log)
        threading.Thread(target=_listen, args=(job,), daemon=True).start()
        status = job.run()
    sys.stdout.flush()
    os._exit(status)  # a thread still reads standard input
