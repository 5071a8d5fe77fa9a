"""Every error of the job, and the exit codes of the command line.

VlmflowError (of vlmflow_engine)
`-- JobError               ends the job; carries its exit code
    |-- SpecError              2   an option or a combination of options is not allowed
    |   `-- CredentialsError       the store wants credentials and there are none
    |-- ManifestError          2   the manifest cannot be read as a whole
    |-- IdentityError          2   the output belongs to another job
    |-- CountsError            2   what is committed is not what was planned: a fault of ours
    |-- TooManyFailuresError   3   more records failed than --max-failure-rate allows
    |-- EngineDiedError        4   the engine cannot be started or kept alive
    |-- StoreError            75   the store did not answer; what is committed stays
    |-- ExpiredCredentialsError
    |                         75   the store's credentials have run out and are not renewed
    |-- ClaimedError          75   another worker is at it
    `-- InterruptedJobError   75   told to stop; what is committed stays

A record's own failure is no exception but a `Failure`: data, committed like a result.
"""

from typing import ClassVar

from vlmflow_engine.errors import VlmflowError

EXIT_COMPLETE = 0
EXIT_BAD_INPUT = 2
EXIT_FAILURES = 3
EXIT_ENGINE = 4
EXIT_RESUMABLE = 75


class JobError(VlmflowError):
    """Ends the job with `exit_code`."""

    exit_code: ClassVar[int] = EXIT_BAD_INPUT


class SpecError(JobError):
    pass


class CredentialsError(SpecError):
    pass


class ManifestError(JobError):
    pass


class IdentityError(JobError):
    pass


class CountsError(JobError):
    pass


class TooManyFailuresError(JobError):
    exit_code = EXIT_FAILURES


class EngineDiedError(JobError):
    exit_code = EXIT_ENGINE


class StoreError(JobError):
    exit_code = EXIT_RESUMABLE


class ExpiredCredentialsError(JobError):
    """No StoreError: what is done when a store does not answer must not be done here.

    An image that cannot be had is its record's failure; with these credentials none can be had.
    """

    exit_code = EXIT_RESUMABLE


class ClaimedError(JobError):
    exit_code = EXIT_RESUMABLE


class InterruptedJobError(JobError):
    exit_code = EXIT_RESUMABLE
