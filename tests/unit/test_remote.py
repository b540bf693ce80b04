"""Commands to a running supervisor that ends at the same moment."""

import signal
import subprocess
import sys

import pytest

from anklet_supervisor.console import remote


@pytest.mark.parametrize(
    "command",
    [
        lambda config: remote.signal_and_wait(config, signal.SIGQUIT, 5.0),
        lambda config: remote.signal_and_wait(config, signal.SIGINT, None),
        lambda config: remote.reload(config, None),
    ],
)
def test_a_supervisor_that_has_ended_since_it_was_seen(command, tmp_path, monkeypatch, capsys):
    """The commands report that no supervisor is running."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(remote, "state_dir_of", lambda _config: tmp_path)
    monkeypatch.setattr(remote, "running_supervisor", lambda _state_dir: ended.pid)
    assert command(tmp_path / "config.yml") == 3
    assert capsys.readouterr().err == f"no supervisor is running (state directory {tmp_path})\n"


def test_a_supervisor_that_ends_before_it_answers_a_reload(tmp_path, monkeypatch, capsys):
    """This is not a timeout: the exit code is 75, and the message says that the supervisor ended."""
    seen = iter([4711])
    monkeypatch.setattr(remote, "state_dir_of", lambda _config: tmp_path)
    monkeypatch.setattr(remote, "running_supervisor", lambda _state_dir: next(seen, None))
    monkeypatch.setattr(remote, "_document_of", lambda _state_dir, _pid: None)
    monkeypatch.setattr(remote, "_send", lambda _pid, _number: True)
    assert remote.reload(tmp_path / "config.yml", 60.0) == 75
    assert capsys.readouterr().err == "the supervisor (pid 4711) ended before it answered\n"
