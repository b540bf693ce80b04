"""The table of VM drivers."""

import subprocess
import sys

import pytest

from anklet_supervisor.config import service_keys
from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.vm.drivers import names, open_driver


@pytest.mark.parametrize("name", sorted(names()))
def test_each_driver_opens_under_its_name(tmp_path, name):
    """A driver's module offers `open_driver`, and the driver bears the name of the table."""
    service = ServiceConfig(name="a", plugin="github", vm_driver=name)
    assert open_driver(service, tmp_path, None, None, None).name == name


def test_unknown_driver_is_named_with_the_available_ones(tmp_path):
    """The message shows the operator the valid names."""
    service = ServiceConfig(name="a", plugin="github", vm_driver="magic")
    with pytest.raises(ConfigError, match="unknown VM driver 'magic'; available: anka, tart"):
        open_driver(service, tmp_path, None, None, None)


def test_configuration_accepts_the_drivers_of_the_table():
    """A new driver needs no second list."""
    assert names() == set(service_keys.DRIVERS)


def test_names_load_nothing_that_runs_commands():
    """The supervisor needs only the names, so it must not load modules that run commands."""
    script = (
        "import sys; from anklet_worker.vm.drivers import names; names()\n"
        "print([name for name in sys.modules if name in ('subprocess', 'psutil') or name.startswith('anklet_worker.process')"
        " or name.startswith('anklet_worker.vm.')])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "['anklet_worker.vm.drivers']"
