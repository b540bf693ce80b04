"""How often a watch asks, and how long it believes what it heard. All values are seconds.

Owns these figures and the reason for each. Knows neither what is asked nor what follows from the answers.
"""

from __future__ import annotations

import msgspec

from anklet_worker.contract.backoff import Backoff


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The intervals and deadlines of one watch. `runner_online` and `job_start` come from the service's configuration."""

    #: The runner must come online within this time after the start of the watch.
    runner_online: float
    #: A runner that is online must get a job within this time.
    job_start: float

    #: Interval between questions about the job while its runner waits for it. Free of charge while nothing changes.
    ask_waiting: float = 5.0
    #: Interval between questions about a job that the guest shows at work.
    ask_working: float = 600.0
    #: Interval between questions whether GitHub sees that runner at work too. Free of charge while nothing changes.
    ask_runner: float = 60.0
    #: If GitHub may have given our runner another job, ask this long after it took one. Short jobs are over by then.
    ask_rivals: float = 10.0
    #: Interval between looks at the board, where another service may show that our job still waits.
    look_at_board: float = 30.0
    #: Such a look counts only if it was made this long after our runner took a job: the clocks of hosts differ.
    seen_later: float = 10.0
    #: Shortest wait inside the guest.
    shortest_look: float = 1.0

    #: Pauses while only GitHub can tell, and while it has not yet noticed what the guest shows.
    poll: Backoff = Backoff(first=0.25, longest=5.0)
    #: Pauses between searches for the job that our busy runner got. It may be in a repository that we do not look through.
    search: Backoff = Backoff(first=1.0, longest=300.0)
    #: Do not look again into a guest that did not answer before this time has passed.
    blind: float = 30.0

    #: A job that GitHub answers with 404 counts as vanished after this time: outages have answered 404 for live jobs.
    vanished: float = 120.0
    #: The same while the guest shows its runner at work: an incident that hides both is likelier than a vanished job.
    vanished_at_work: float = 3600.0
    #: How long guest and GitHub may disagree about an end before one of them is believed without the other.
    disagreement: float = 120.0
    #: A run.sh that reports success and ran nothing that GitHub knows of gets this time: it may know more than we see.
    idle_end: float = 20.0
