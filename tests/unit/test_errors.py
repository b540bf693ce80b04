"""The tree of errors: each class says who should try again."""

import pkgutil

import anklet_github
import pytest

import anklet_worker
from anklet_worker.contract import errors
from anklet_worker.contract.errors import InfrastructureError, Retry

#: Every failure on our side, and who should try the job again.
RETRIES = {
    "InfrastructureError": Retry.HERE,
    "RetryHere": Retry.HERE,
    "RetryElsewhere": Retry.ELSEWHERE,
    "JobLost": Retry.HERE,
    "RecordNotWritten": Retry.ELSEWHERE,
    "RecordsUnreadable": Retry.HERE,
    "StoreUnavailable": Retry.HERE,
    "VMError": Retry.HERE,
    "VMNotFound": Retry.ELSEWHERE,
    "VMNameExists": Retry.HERE,
    "VMLimitReached": Retry.HERE,
    "VMTransient": Retry.HERE,
    "PullBusy": Retry.HERE,
    "AnswerUnreadable": Retry.HERE,
    "ToolRefused": Retry.OPERATOR,
    "ImageUnusable": Retry.OPERATOR,
    "FileUnusable": Retry.OPERATOR,
    "NotOurVM": Retry.OPERATOR,
}


def kinds(kind=InfrastructureError):
    """The class and all classes below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_failure_chooses_its_retry():
    """A new class must be entered here and choose for itself who should try again."""
    ours = [kind for kind in kinds() if kind.__module__ == errors.__name__]
    assert {kind.__name__: kind.retry for kind in ours} == RETRIES
    assert all("retry" in vars(kind) for kind in ours)


@pytest.mark.parametrize("package", [anklet_worker, anklet_github], ids=lambda package: package.__name__)
def test_other_modules_inherit_a_chosen_retry(package):
    """A class in another module inherits from a class that has chosen, not from the root."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        pkgutil.resolve_name(module.name)
    others = [kind for kind in kinds() if kind.__module__.split(".")[0] == package.__name__]
    assert not [kind for kind in others if kind.__module__ != errors.__name__ and InfrastructureError in kind.__bases__]
