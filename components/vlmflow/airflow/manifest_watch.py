"""Whether a manifest is there, and whoever writes it is done."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmflow.job.errors import ManifestError, StoreError

if TYPE_CHECKING:
    from vlmflow.job.store import StoreOpener


class ManifestWatch:
    """Remembers what was seen, from one look to the next."""

    def __init__(
        self,
        manifest: str,
        dialect: str,
        settle_seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manifest = manifest
        self._dialect = dialect
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._etag: str | None = None
        self._since = 0.0
        self.reason = ""  # why it is not ready, for a person

    def look(self, opener: "StoreOpener") -> str | None:
        """The manifest's ETag, once it has been the same for `settle_seconds`; None until then.

        A store that does not answer has said nothing. Raises SpecError for what can be no manifest.
        """
        from vlmflow.job.dialects import is_prefix, locate_manifest, manifest_etag

        try:
            store, key = locate_manifest(opener, self._manifest, self._dialect)
            if is_prefix(key, self._dialect) and next(iter(store.list(key)), None) is None:
                raise ManifestError(f"nothing lies below {self._manifest}")
            etag = manifest_etag(store, key, self._dialect)
        except (ManifestError, StoreError) as error:
            self._etag, self.reason = None, str(error)
            return None
        now = self._clock()
        if etag != self._etag:
            self._etag, self._since = etag, now
        same = now - self._since
        self.reason = f"{self._manifest} has been the same for {same:.0f} s"
        return etag if same >= self._settle_seconds else None
