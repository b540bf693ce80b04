"""The transition tables: every state with every trigger; impossible pairs are listed."""

import itertools

import pytest

from anklet_supervisor.machine.state import (
    ALIVE,
    FINAL,
    TRANSITIONS,
    ImpossibleTrigger,
    ServiceState,
    Trigger,
    transition,
)
from anklet_worker.attempt.phases import Event, ImpossibleTransition, Phase, advance, may_have_vm

IMPOSSIBLE_FOR_SERVICES = {
    (ServiceState.STARTING, Trigger.DUE),
    (ServiceState.READY, Trigger.DUE),
    (ServiceState.STOPPING, Trigger.DUE),
    *((state, Trigger.RENEWED) for state in ALIVE),
    (ServiceState.BACKOFF, Trigger.ANNOUNCED),
    (ServiceState.BACKOFF, Trigger.CRASHED),
    *((state, trigger) for state in FINAL for trigger in Trigger if trigger not in (Trigger.ORDERED, Trigger.RENEWED)),
}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(ServiceState, Trigger)))
def test_every_cell_of_the_service_table_is_decided(state, trigger):
    """Each cell leads somewhere or is on the list of impossible ones."""
    if (state, trigger) in IMPOSSIBLE_FOR_SERVICES:
        with pytest.raises(ImpossibleTrigger, match=trigger.value):
            transition(state, trigger)
    else:
        assert transition(state, trigger) in ServiceState


def test_final_states_are_left_by_new_settings_alone():
    """Nothing else leads out of stopped and fatal."""
    for state in FINAL:
        leads = {trigger: to for trigger, to in TRANSITIONS[state].items() if to is not state}
        assert leads == {Trigger.RENEWED: ServiceState.STARTING}
    assert not ALIVE & FINAL


POSSIBLE_FOR_ATTEMPTS = {
    (Phase.CLAIMED, Event.CLONE): Phase.VM_INTENDED,
    (Phase.VM_INTENDED, Event.START): Phase.VM_STARTING,
    (Phase.VM_STARTING, Event.DRIVE): Phase.DRIVING,
    (Phase.DRIVING, Event.JOB_STARTED): Phase.STARTED,
    (Phase.STARTED, Event.JOB_STARTED): Phase.STARTED,
    **{(phase, Event.END): Phase.ENDED for phase in Phase if phase is not Phase.VM_GONE},
    (Phase.VM_GONE, Event.END): Phase.VM_GONE,
    (Phase.ENDED, Event.VM_REMOVED): Phase.VM_GONE,
    (Phase.VM_GONE, Event.VM_REMOVED): Phase.VM_GONE,
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_every_cell_of_the_attempt_table_is_decided(phase, event):
    """An attempt moves exactly as the table says, and never skips the announcement of an effect."""
    if (phase, event) in POSSIBLE_FOR_ATTEMPTS:
        assert advance(phase, event) is POSSIBLE_FOR_ATTEMPTS[phase, event]
    else:
        with pytest.raises(ImpossibleTransition, match=event.value):
            advance(phase, event)


def test_only_proof_says_that_no_vm_exists():
    """A VM may exist from the intent to clone until the proof of its removal."""
    assert [phase for phase in Phase if not may_have_vm(phase)] == [Phase.CLAIMED, Phase.VM_GONE]
