"""What an operator calls the fields of a JobSpec."""

from vlmflow.job.spec_arguments import SPEC_FIELDS

# The attributes in which templates are rendered, by the JobSpec's names. Two have another name on
# an operator: every one has an `output`, and pods have a `name`.
_RENAMED = {"name": "job_name", "output": "job_output"}
JOB_FIELDS = tuple(_RENAMED.get(name, name) for name in SPEC_FIELDS)
