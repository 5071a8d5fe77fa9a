"""Manifests of every dialect in, results of some of them out."""

from vlmflow.job.dialects.detect import DIALECTS
from vlmflow.job.dialects.item import BadLine, Item
from vlmflow.job.dialects.reader import ManifestReader, is_prefix, locate_manifest, manifest_etag
from vlmflow.job.dialects.reading import Position, Reading

__all__ = [
    "DIALECTS",
    "BadLine",
    "Item",
    "ManifestReader",
    "Position",
    "Reading",
    "is_prefix",
    "locate_manifest",
    "manifest_etag",
]
