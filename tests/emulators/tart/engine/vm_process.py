"""Entry point of the process that is a running VM. Owns nothing: it reads the arguments from `tart run`."""

from __future__ import annotations

import json
import os

from . import hypervisor
from .cli import open_store


def main(words):
    """Run the VM that these arguments describe, on inherited descriptors. Ends the process."""
    facts, orders, news, counts = words
    try:
        quota = os.environ.get("FAKE_KERNEL_QUOTA") or os.path.join(os.environ["FAKE_TART_HOME"], "kernel-quota.json")
        store = open_store(os.environ["FAKE_TART_HOME"], quota)
        hypervisor.live(store, json.loads(facts), (int(orders), int(news)), counts=counts == "1")
    finally:
        os._exit(0)
