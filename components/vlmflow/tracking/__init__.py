"""An MLflow run beside the job, on a thread of its own. No torch."""
