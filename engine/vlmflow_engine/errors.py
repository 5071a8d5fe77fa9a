"""Every error of the engine.

VlmflowError
|-- ConfigError              an option has a value that is not allowed
|-- ModelError               the checkpoint cannot be loaded
`-- RequestError             one request is at fault; its neighbours go on
    |-- InvalidRequestError      the prompt has a form we do not know
    |   `-- ImageCountError          not as many <IMAGE_TOKEN> as images
    |-- PromptTooLongError       more tokens than the context holds
    |-- MediaError
    |   |-- MediaFetchError          the bytes cannot be had
    |   |   |-- MediaForbiddenError      they are where none may be fetched from
    |   |   |-- MediaMissingError        there are none
    |   |   `-- MediaBusyError           not now: no answer, or half of one
    |   |-- ImageCorruptError        the bytes are no image, or a broken one
    |   |-- ImageTruncatedError      the bytes end too early
    |   |-- ImageFormatError         an image, but of a format that is not allowed
    |   `-- ImageTooLargeError       more bytes, pixels or encoder rows than allowed
    |-- PreprocessCrashError     a worker died over the prompt, or took too long
    |-- UnsupportedFeatureError  what is asked for cannot be had from this engine
    |-- RequestConflictError     the session is still answering
    |-- InvalidOutputError       the answer ended before it was what response_format asks for
    |-- EngineUnavailableError   the engine is stuck, or gone
    |-- EngineFaultError         a step failed while the request was in it
    `-- CancelledError           the caller took the request back

The job's own errors (`vlmflow.job.errors`) hang below VlmflowError too.
"""

from typing import ClassVar


class VlmflowError(Exception):
    """Base of all errors raised on purpose; its text is a sentence for the user."""


class ConfigError(VlmflowError):
    """An option has a value that is not allowed."""


class ModelError(VlmflowError):
    """The checkpoint is missing, incomplete or of an unknown kind."""


class RequestError(VlmflowError):
    """One request failed.

    code         LMDeploy's error code of the `Response`
    stage        where it happened: prepare, fetch, decode or generate
    error_class  the job's class of failure, stable over versions
    retryable    whether the same request may succeed later
    """

    code: ClassVar[str] = "internal_error"
    stage: ClassVar[str] = "prepare"
    error_class: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False


class InvalidRequestError(RequestError):
    code = "invalid_request"
    error_class = "invalid_request"


class ImageCountError(InvalidRequestError):
    code = "preprocess_failed"
    error_class = "image_count"


class PromptTooLongError(RequestError):
    code = "context_length_exceeded"
    error_class = "prompt_too_long"


class UnsupportedFeatureError(RequestError):
    code = "unsupported_feature"
    error_class = "unsupported_feature"


class InvalidOutputError(RequestError):
    code = "invalid_output"
    stage = "generate"
    error_class = "invalid_output"


class EngineUnavailableError(RequestError):
    code = "engine_unavailable"
    stage = "generate"
    error_class = "engine_unavailable"
    retryable = True


class RequestConflictError(RequestError):
    code = "request_conflict"
    error_class = "request_conflict"


class MediaError(RequestError):
    code = "preprocess_failed"
    stage = "decode"
    error_class = "image_error"


class MediaFetchError(MediaError):
    stage = "fetch"
    error_class = "image_unreachable"


class MediaForbiddenError(MediaFetchError):
    error_class = "image_forbidden"


class MediaMissingError(MediaFetchError):
    error_class = "image_not_found"


class MediaBusyError(MediaFetchError):
    error_class = "image_busy"
    retryable = True


class ImageCorruptError(MediaError):
    error_class = "image_corrupt"


class ImageTruncatedError(MediaError):
    error_class = "image_truncated"


class ImageFormatError(MediaError):
    error_class = "image_format"


class ImageTooLargeError(MediaError):
    error_class = "image_too_large"


class PreprocessCrashError(RequestError):
    code = "preprocess_failed"
    stage = "decode"
    error_class = "preprocess_crash"


class EngineFaultError(RequestError):
    stage = "generate"
    error_class = "engine_fault"
    retryable = True


class CancelledError(RequestError):
    code = "request_cancelled"
    stage = "generate"
    error_class = "cancelled"
    retryable = True
