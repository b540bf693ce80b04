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
from anklet_worker.life.attempt_phases import TABLE, Action, Event, ImpossibleEvent, Phase, advance
from anklet_worker.life.vm_phases import TABLE as VM_TABLE
from anklet_worker.life.vm_phases import ImpossibleVMEvent, VMAction, VMEvent, VMPhase, may_exist
from anklet_worker.life.vm_phases import advance as advance_vm

ERRORS = (Event.FAILED, Event.REFUSED, Event.STOPPED)
WITHDRAWALS = (Event.LANDED, Event.WITHDRAWN, Event.WITHDRAWN_FOR_STOP, Event.ADOPTABLE)
CLAIMED_EVENTS = (
    Event.BEGUN,
    Event.VM_READY,
    *ERRORS,
    Event.LEFT_RUNNING,
    Event.LEFT_DEAD,
)
#: The plugin may report the start of the job during these actions.
JOB_MAY_START = (Action.DRIVE, Action.ADOPT, Action.ADOPT_LANDED)

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
    """Each cell leads to a state or is listed as impossible."""
    if (state, trigger) in IMPOSSIBLE_FOR_SERVICES:
        with pytest.raises(ImpossibleTrigger, match=trigger.value):
            transition(state, trigger)
    else:
        assert transition(state, trigger) in ServiceState


def test_final_states_are_left_by_new_settings_or_for_clean_up():
    """Nothing else leads out of stopped and fatal."""
    for state in FINAL:
        leads = {trigger: to for trigger, to in TRANSITIONS[state].items() if to is not state}
        clean_up = {Trigger.DUE: ServiceState.STARTING} if state is ServiceState.FATAL else {}
        assert leads == {Trigger.RENEWED: ServiceState.STARTING, **clean_up}
    assert not ALIVE & FINAL


# ---- an attempt ----

IMPOSSIBLE_FOR_ATTEMPTS = {
    *((Phase.CLAIMED, event) for event in Event if event not in CLAIMED_EVENTS),
    *((Phase.DRIVING, event) for event in (Event.BEGUN, Event.VM_READY, Event.RETRIED)),
    *((Phase.STARTED, event) for event in (Event.BEGUN, Event.VM_READY, Event.RETRIED, *WITHDRAWALS)),
    *((Phase.ENDED, event) for event in Event if event not in (Event.LEFT_RUNNING, Event.LEFT_DEAD, Event.RETRIED)),
}
#: The events that each action may cause. The other actions cause none.
CAUSED = {
    Action.MAKE_VM: {Event.VM_READY, *ERRORS},
    **{effort: {Event.OUTCOME, *ERRORS} for effort in JOB_MAY_START},
    Action.WITHDRAW: {Event.LANDED, Event.WITHDRAWN},
    Action.WITHDRAW_FOR_STOP: {Event.WITHDRAWN_FOR_STOP},
    Action.WITHDRAW_LEFT: {Event.LEFT_DEAD, Event.ADOPTABLE},
}
#: The events that come from the service loop and the plugin.
FROM_OUTSIDE = {Event.BEGUN, Event.ADOPTED, Event.LEFT_RUNNING, Event.LEFT_DEAD, Event.RETRIED, Event.JOB_STARTED}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_every_cell_of_the_attempt_table_is_decided(phase, event):
    """Each cell has a row or is listed as impossible."""
    if (phase, event) in IMPOSSIBLE_FOR_ATTEMPTS:
        with pytest.raises(ImpossibleEvent, match=event.value):
            advance(phase, event)
    else:
        after, actions = advance(phase, event)
        assert after in Phase
        assert set(actions) <= set(Action)


@pytest.mark.parametrize(("cell", "row"), TABLE.items())
def test_an_event_that_an_action_causes_is_possible_where_it_comes(cell, row):
    """Only the last action of a row may cause an event, and the phase reached by then has a row for it."""
    _, event = cell
    after, actions = row
    assert not any(action in CAUSED for action in actions[:-1])
    for caused in CAUSED.get(actions[-1], set()) if actions else ():
        reached = {after, Phase.STARTED} if actions[-1] in JOB_MAY_START else {after}
        assert all((phase, caused) in TABLE for phase in reached), f"{event} -> {actions[-1]} -> {caused}"


def test_every_event_and_action_has_its_place():
    """Every event is caused by something, and every action is in some row."""
    assert set(Event) == FROM_OUTSIDE.union(*CAUSED.values())
    assert set(Action) == {action for _, actions in TABLE.values() for action in actions}


def test_an_attempt_that_is_over_is_cleaned_up_and_never_goes_on():
    """Each row into the last phase cleans up once, makes one report about the job, and collects before it cleans."""
    assert all(after is Phase.ENDED for (phase, _), (after, _) in TABLE.items() if phase is Phase.ENDED)
    for (phase, _), (after, actions) in TABLE.items():
        if after is Phase.ENDED:
            assert sum(action in (Action.CLEAN, Action.CLEAN_ONCE) for action in actions) == 1
            told = [action for action in actions if action in (Action.GIVE_BACK, Action.TELL_OUTCOME)]
            assert len(told) == (phase is not Phase.ENDED)
            if Action.COLLECT in actions:
                assert actions.index(Action.COLLECT) < actions.index(Action.CLEAN)


def test_a_registration_without_a_job_is_withdrawn_before_its_vm_goes():
    """While the plugin drives, every error and every stop leads to a withdrawal first."""
    for event in (Event.FAILED, Event.REFUSED, Event.STOPPED):
        after, actions = TABLE[Phase.DRIVING, event]
        assert after is Phase.DRIVING
        assert actions in ((Action.WITHDRAW,), (Action.WITHDRAW_FOR_STOP,))


# ---- a VM ----

POSSIBLE_FOR_VMS = {
    (VMPhase.PLANNED, VMEvent.CLONE): VMPhase.MAKING,
    (VMPhase.MAKING, VMEvent.START): VMPhase.STARTING,
    (VMPhase.STARTING, VMEvent.ANSWERED): VMPhase.READY,
    **{(phase, VMEvent.REMOVE): VMPhase.GOING for phase in VMPhase if may_exist(phase)},
    (VMPhase.PLANNED, VMEvent.REMOVE): VMPhase.GONE,
    (VMPhase.GOING, VMEvent.REMOVED): VMPhase.GONE,
    (VMPhase.GONE, VMEvent.REMOVE): VMPhase.GONE,
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(VMPhase, VMEvent)))
def test_every_cell_of_the_vm_table_is_decided(phase, event):
    """A VM changes its phase exactly as the table says, and every effect is announced first."""
    if (phase, event) in POSSIBLE_FOR_VMS:
        assert advance_vm(phase, event)[0] is POSSIBLE_FOR_VMS[phase, event]
    else:
        with pytest.raises(ImpossibleVMEvent, match=event.value):
            advance_vm(phase, event)


def test_only_proof_frees_a_slot():
    """From the announcement of the clone to the proof of removal a VM may exist, and no row releases its slot."""
    assert [phase for phase in VMPhase if not may_exist(phase)] == [VMPhase.PLANNED, VMPhase.GONE]
    for after, actions in VM_TABLE.values():
        assert (VMAction.RELEASE_SLOT in actions) == (after is VMPhase.GONE)


def test_nothing_is_made_before_its_slot_is_taken():
    """The slot belongs to the VM before the clone, and is checked again after it."""
    _, actions = VM_TABLE[VMPhase.PLANNED, VMEvent.CLONE]
    assert actions == (VMAction.OCCUPY_SLOT, VMAction.CLONE, VMAction.CHECK_SLOT)
