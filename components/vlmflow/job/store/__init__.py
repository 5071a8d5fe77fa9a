"""Where objects lie: a bucket or a folder, behind the same few verbs."""

from vlmflow.job.store.base import ObjectInfo, ObjectMissingError, Store
from vlmflow.job.store.credentials import S3Credentials
from vlmflow.job.store.locate import StoreOpener

__all__ = ["ObjectInfo", "ObjectMissingError", "S3Credentials", "Store", "StoreOpener"]
