"""What of a job goes to MLflow, and when. Nothing here waits for a tracking server."""

from vlmflow.job.tracked.collected import CollectedLines
from vlmflow.job.tracked.page import PageContent
from vlmflow.job.tracked.traces import read_times, traced_records
from vlmflow.job.tracked.tracker import JobTracker

__all__ = ["CollectedLines", "JobTracker", "PageContent", "read_times", "traced_records"]
