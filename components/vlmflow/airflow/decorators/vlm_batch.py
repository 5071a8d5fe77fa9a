"""`@task.vlm_batch`: a function says what to ask, and a job asks it."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.decorator import (
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.operators.job_fields import JOB_FIELDS
from vlmflow.job.errors import StoreError
from vlmflow.job.given import given
from vlmflow.job.spec_arguments import SPEC_FIELDS
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from airflow.sdk import Context

_MANIFESTS = "_manifests"  # below the output
_ATTRIBUTES = dict(zip(SPEC_FIELDS, JOB_FIELDS, strict=True))


class VLMBatchDecoratedOperator(DecoratedOperator, VLMBatchInferenceOperator):
    """Calls the function and runs the job that it describes. The function returns one of

    - a manifest's URI;
    - a dict of the job's fields (`manifest`, `limit`, `generation`, ...) and `shard`, which go
      before those given to the decorator;
    - a list of records: texts, or dicts as of the native manifest. They are written below the
      output as a manifest named by its own digest, so the same records are the same job, and a
      retry goes on with it. Some thousand are fine; for more write a manifest yourself.

    Templates in what it returns are rendered. The task returns what `VLMBatchInferenceOperator`
    does, and takes its arguments.
    """

    template_fields: Collection[str] = (
        *DecoratedOperator.template_fields,
        *VLMBatchInferenceOperator.template_fields,
    )
    template_fields_renderers: Mapping[str, str] = {
        **DecoratedOperator.template_fields_renderers,
        **VLMBatchInferenceOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.vlm_batch"
    overwrite_rtif_after_execution = True  # what the function returned is shown in the UI

    def execute(self, context: "Context") -> dict[str, Any]:
        """Call the function, and run the job."""
        context.update(self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        self._take(self.python_callable(*self.op_args, **arguments))
        self.render_template_fields(context)
        return VLMBatchInferenceOperator.execute(self, context)

    def _take(self, returned: Any) -> None:
        if isinstance(returned, str) and returned.strip():
            self.manifest = returned
        elif isinstance(returned, Mapping):
            for name, value in returned.items():
                attribute = "shard" if name == "shard" else _ATTRIBUTES.get(name)
                if attribute is None:
                    raise AirflowFailException(
                        f"{name!r}, which the function returned, is no field of a job; there are "
                        f"shard, {', '.join(_ATTRIBUTES)}"
                    )
                setattr(self, attribute, value)
        elif isinstance(returned, Sequence) and returned:
            self.manifest = self._write_manifest(returned)
        else:
            raise AirflowFailException(
                "the function must return a manifest's URI, a dict of the job's fields, or a list "
                f"of records that is not empty; it returned {returned!r:.200}"
            )

    def _write_manifest(self, records: Sequence[Any]) -> str:
        """Write records below the output, once; return the manifest's URI."""
        if not given(self.job_output):
            raise AirflowFailException("output must be given")
        lines = [_line(n, record) for n, record in enumerate(records)]
        data = "".join(f"{line}\n" for line in lines).encode()
        key = f"{_MANIFESTS}/{sha256(data).hexdigest()[:16]}.jsonl"
        endpoint = given(self.endpoint_url) or self.job_hook.settings.endpoint_url
        try:
            store = self.job_hook.opener(endpoint).open(str(self.job_output))
            store.create(key, data)
        except StoreError as error:
            raise AirflowException(str(error)) from error
        except VlmflowError as error:
            raise AirflowFailException(str(error)) from None
        return f"{store.uri}/{key}"


def _line(number: int, record: Any) -> str:
    """A record as a line of JSON. Raises AirflowFailException for what JSON has no word for."""
    try:
        return json.dumps(_record(number, record), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AirflowFailException(f"record {number} cannot be written as JSON: {error}") from None


def _record(number: int, record: Any) -> dict[str, Any]:
    if isinstance(record, str):
        return {"id": f"{number:06d}", "prompt": record}
    if isinstance(record, Mapping):
        return {"id": f"{number:06d}", **record}
    raise AirflowFailException(f"record {number} is neither a text nor a dict: {record!r:.200}")


def vlm_batch_task(
    python_callable: Callable[..., Any] | None = None, **kwargs: Any
) -> TaskDecorator:
    """What `@task.vlm_batch` is; its arguments are those of `VLMBatchInferenceOperator`."""
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=VLMBatchDecoratedOperator,
        **kwargs,
    )
