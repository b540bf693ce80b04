"""What runs on a host: the listing, and the host's own count beside it."""

import pytest

from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.foreign import counted_listing


class Driver:
    """Lists three VMs, of which one runs."""

    def listing(self):
        return [VMInfo(name=state.value, uuid="", state=state) for state in VMState if state is not VMState.FAILED]


@pytest.mark.parametrize(("counts", "expected"), [((1, 1), 1), ((1, 2), 1), ((2, 1), 1), ((2, 2), 2), ((0, 0), 0)])
def test_a_vm_that_comes_or_goes_meanwhile_is_not_counted(counts, expected):
    """Only what is there before and after the listing is missing in it."""
    left = list(counts)
    assert counted_listing(Driver(), lambda: left.pop(0)) == (Driver().listing(), expected)
