"""The count of VMs on the host: the listing, and the host's own processes beside it."""

import pytest

from anklet_worker.vm.driver import VMState
from anklet_worker.vm.foreign import counted_listing
from anklet_worker.vm.memory import MemoryDriver, MemoryHost


@pytest.mark.parametrize(("counts", "expected"), [((1, 1), 1), ((1, 2), 1), ((2, 1), 1), ((2, 2), 2), ((0, 0), 0)])
def test_a_vm_that_comes_or_goes_during_the_listing_is_not_counted(counts, expected):
    """Only a process that is there before and after the listing counts."""
    host = MemoryHost()
    for state in VMState:
        host.add(state.value, state)
    driver, left = MemoryDriver(host), list(counts)
    assert counted_listing(driver, lambda: left.pop(0)) == (driver.listing(), expected)
