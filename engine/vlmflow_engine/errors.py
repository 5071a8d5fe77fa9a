"""Every error of the engine.

VlmflowError
|-- ConfigError              an option has a value that is not allowed
|-- ModelError               the checkpoint cannot be loaded
|   `-- ForeignPartError         a part of it is none of ours; transformers may have it
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


class ForeignPartError(ModelError):
    """A part of the checkpoint is of a kind that the engine has no code of its own for."""


class RequestError(VlmflowError):
    """One request failed.

    code         LMDeploy's error code of the `Response`
    stage        where it happened: prepare, fetch, decode or generate
    error_class  the job's class of failure, stable over versions
    retryable    whether the same request may succeed later

    Of prompts they become Responses; loaders of media and `get_ppl` raise them.
    """

    code: ClassVar[str] = "internal_error"
    stage: ClassVar[str] = "prepare"
    error_class: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False


class InvalidRequestError(RequestError):
    """The prompt, or what is wished about its answer, has a form or value that is not allowed."""

    code = "invalid_request"
    error_class = "invalid_request"


class ImageCountError(InvalidRequestError):
    """A text has not as many <IMAGE_TOKEN> as the prompt has images."""

    code = "preprocess_failed"
    error_class = "image_count"


class PromptTooLongError(RequestError):
    """The prompt leaves no room for an answer; shorten it, or raise `session_len`."""

    code = "context_length_exceeded"
    error_class = "prompt_too_long"


class UnsupportedFeatureError(RequestError):
    """What is asked for cannot be had from this engine, or a package for it is missing."""

    code = "unsupported_feature"
    error_class = "unsupported_feature"


class InvalidOutputError(RequestError):
    """The answer ended before it was what `response_format` asks for; raise `max_new_tokens`."""

    code = "invalid_output"
    stage = "generate"
    error_class = "invalid_output"


class EngineUnavailableError(RequestError):
    """The engine is stuck in a step, or gone; make a new pipeline."""

    code = "engine_unavailable"
    stage = "generate"
    error_class = "engine_unavailable"
    retryable = True


class RequestConflictError(RequestError):
    """The session is still answering its last turn; take its last chunk, or abort it."""

    code = "request_conflict"
    error_class = "request_conflict"


class MediaError(RequestError):
    """An image or a video cannot be had or read."""

    code = "preprocess_failed"
    stage = "decode"
    error_class = "image_error"


class MediaFetchError(MediaError):
    """Its bytes cannot be had: no such file or host, a time limit, an address that is refused."""

    stage = "fetch"
    error_class = "image_unreachable"


class MediaForbiddenError(MediaFetchError):
    """Nothing may be fetched from there: by our rules, or by those of the host."""

    error_class = "image_forbidden"


class MediaMissingError(MediaFetchError):
    """The host has no such thing."""

    error_class = "image_not_found"


class MediaBusyError(MediaFetchError):
    """The host does not answer, or not now; another try may do."""

    error_class = "image_busy"
    retryable = True


class ImageCorruptError(MediaError):
    """The bytes are no image, or a broken one."""

    error_class = "image_corrupt"


class ImageTruncatedError(MediaError):
    """The bytes end before the image does."""

    error_class = "image_truncated"


class ImageFormatError(MediaError):
    """It is an image, but of a format or with values that are not read."""

    error_class = "image_format"


class ImageTooLargeError(MediaError):
    """It has more bytes, pixels or embedding rows than allowed."""

    error_class = "image_too_large"


class PreprocessCrashError(RequestError):
    """The process that prepared the prompt died over it, or took too long."""

    code = "preprocess_failed"
    stage = "decode"
    error_class = "preprocess_crash"


class EngineFaultError(RequestError):
    """A step of the engine failed while the request was in it."""

    stage = "generate"
    error_class = "engine_fault"
    retryable = True


class CancelledError(RequestError):
    """The caller took the request back, by breaking off, `abort` or `close`."""

    code = "request_cancelled"
    stage = "generate"
    error_class = "cancelled"
    retryable = True
