"""The transition tables: every state meets every trigger, and what is impossible is said to be."""

import itertools

import pytest

from anklet_supervisor.machine.state import ALIVE, FINAL, TRANSITIONS, ImpossibleTrigger, ServiceState, Trigger, follow
from anklet_worker.attempt.phases import Event, ImpossibleTransition, Phase, advance, may_have_vm

IMPOSSIBLE_FOR_SERVICES = {
    (ServiceState.STARTING, Trigger.DUE),
    (ServiceState.READY, Trigger.DUE),
    (ServiceState.STOPPING, Trigger.DUE),
    *((state, Trigger.RENEWED) for state in ALIVE),
    (ServiceState.BACKOFF, Trigger.ANNOUNCED),
    (ServiceState.BACKOFF, Trigger.CRASHED),
    *(
        (state, trigger)
        for state in FINAL
        for trigger in Trigger
        if trigger not in (Trigger.ORDERED, Trigger.RENEWED) and (state, trigger) != (ServiceState.FATAL, Trigger.DUE)
    ),
}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(ServiceState, Trigger)))
def test_every_cell_of_the_service_table_is_decided(state, trigger):
    """A cell leads somewhere, or is on the list of impossible ones; none is forgotten."""
    if (state, trigger) in IMPOSSIBLE_FOR_SERVICES:
        with pytest.raises(ImpossibleTrigger, match=trigger.value):
            follow(state, trigger)
    else:
        assert follow(state, trigger) in ServiceState


def test_final_states_are_left_by_new_settings_or_for_clean_up():
    """Nothing else leads out of stopped and fatal."""
    for state in FINAL:
        leads = {trigger: to for trigger, to in TRANSITIONS[state].items() if to is not state}
        clean_up = {Trigger.DUE: ServiceState.STARTING} if state is ServiceState.FATAL else {}
        assert leads == {Trigger.RENEWED: ServiceState.STARTING, **clean_up}
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
    """An attempt moves on exactly as the table says, and never skips the announcement of an effect."""
    if (phase, event) in POSSIBLE_FOR_ATTEMPTS:
        assert advance(phase, event) is POSSIBLE_FOR_ATTEMPTS[phase, event]
    else:
        with pytest.raises(ImpossibleTransition, match=event.value):
            advance(phase, event)


def test_only_proof_says_that_no_vm_exists():
    """Between the intent to clone and the proof of removal a VM may exist."""
    assert [phase for phase in Phase if not may_have_vm(phase)] == [Phase.CLAIMED, Phase.VM_GONE]
