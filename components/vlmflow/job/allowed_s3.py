"""Which objects on S3 a manifest may name: its own bucket, and the places that the job lists."""

from collections.abc import Iterable

from vlmflow.job.errors import SpecError
from vlmflow.job.store.locate import is_s3, split_s3


class AllowedS3:
    """Decides by bucket and by whole path segments: `s3://b/in` holds `in/a.png`, not `inner/a`.

    The manifest's own bucket is allowed, all of it unless the list names places in it. A manifest
    in a folder has none: what it may name on S3 must be listed.
    """

    def __init__(self, listed: Iterable[str], manifest_uri: str) -> None:
        self._prefixes: dict[str, set[str]] = {}  # by bucket; "" is all of it
        for uri in listed:
            bucket, prefix = parse_place(uri)
            self._prefixes.setdefault(bucket, set()).add(prefix)
        if is_s3(manifest_uri):
            self._prefixes.setdefault(split_s3(manifest_uri)[0], {""})

    def refusal(self, uri: str) -> str | None:
        """Why an object may not be fetched; None if it may. Raises SpecError without a bucket."""
        bucket, key = split_s3(uri)
        segments = key.split("/")
        if ".." in segments or "." in segments:
            # HTTP clients and proxies resolve them, which would lead out of what is allowed.
            return f"{uri!r}: the key of an image may not hold '.' or '..' between slashes"
        for prefix in self._prefixes.get(bucket, ()):
            if not prefix or key == prefix or key.startswith(f"{prefix}/"):
                return None
        return (
            f"{uri!r} is in no place that images may come from; "
            f"--allow-s3 s3://{bucket} would allow its bucket"
        )


def parse_place(uri: str) -> tuple[str, str]:
    """Bucket and prefix of an `s3://` place, without slashes at the end. Raises SpecError."""
    if not is_s3(uri):
        raise SpecError(f"{uri!r} is no place on S3; write s3://bucket or s3://bucket/prefix")
    bucket, prefix = split_s3(uri)
    return bucket, prefix.strip("/")
