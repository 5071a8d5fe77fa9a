"""Credentials of an S3 store that are not the process's own."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """Said by who opens a store; without them boto3's own chain finds some."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None
