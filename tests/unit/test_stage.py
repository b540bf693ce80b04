"""The emulated site: each test gets ports of its own."""

import socket

import pytest
import stage


def test_a_reserved_port_is_given_to_no_other_test(monkeypatch):
    """Two tests never get the same port, even before their programs have bound it."""
    port, reservation = stage.reserve_port()
    monkeypatch.setattr(stage, "_PORTS", (port, port + 1))
    with reservation:
        with pytest.raises(AssertionError, match="no free port"):
            stage.reserve_port()
        with socket.socket() as program:
            program.bind(("127.0.0.1", port))
