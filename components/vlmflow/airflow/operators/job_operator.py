"""`JobOperatorMixin`: what all operators that run a job share, whatever they run it on.

Arguments become the JobSpec that the command line would have made; the job's committed report
decides what the task comes to, and is where its summary, links, asset event and lineage come from.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from vlmflow.airflow.assets import tell_outlets
from vlmflow.airflow.hooks.vlmflow import mask_password
from vlmflow.airflow.links.job import (
    MLflowRunLink,
    ReportLink,
    ResultsLink,
    place_links,
    run_links,
)
from vlmflow.airflow.operators.connected import ConnectedOperator
from vlmflow.airflow.operators.job_fields import JOB_FIELDS
from vlmflow.airflow.operators.outcome import check_exit, summarise_report, summarise_shard
from vlmflow.airflow.process import Ended
from vlmflow.job.errors import EXIT_FAILURES, SpecError
from vlmflow.job.given import given, given_flag
from vlmflow.job.spec_arguments import GROUPS, SPEC_FIELDS, JobPlace, make_spec, parse_shard
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from vlmflow.job.spec import JobSpec
    from vlmflow.job.store import Store


class JobOperatorMixin(ConnectedOperator):
    """The arguments of a job, and what its end means. Stands before another operator's class.

    :param manifest: s3:// or a path (templated, as are all fields of the job).
    :param model: a checkpoint's folder, owner/name of the hub, s3://..., or models:/name/version.
    :param output: s3:// or a folder; the job's own folder is `output`/`name`.
    :param name: the job's name; the manifest's if it is not given.
    :param shard: only this part of the job: a number, "I/N", or an item that
        `VLMPlanShardsOperator` returned. The task succeeds when the shard is sealed; whoever seals
        the last one writes the report too.
    :param rerun_failed: ask the failed records of a finished job again.
    :param vlmflow_conn_id: as of `ConnectedOperator`; `aws_conn_id` too.

    The other fields are those of docs/architecture.md's JobSpec, with its defaults: `prompt`,
    `num_shards`, `generation`, `engine`, `limits`, `tracking`, `media`, `evaluation`, ...

    Returns (as XCom) a summary below 4 KB: `results`, `counts`, `digest`, `mlflow_run_id`,
    `throughput`, ... A retry goes on from what is committed and never starts over.
    """

    template_fields: Collection[str] = (
        *ConnectedOperator.template_fields,
        *JOB_FIELDS,
        "shard",
        "rerun_failed",
    )
    template_fields_renderers: Mapping[str, str] = dict.fromkeys(GROUPS, "json")
    operator_extra_links: Collection[BaseOperatorLink] = (
        MLflowRunLink(),
        ReportLink(),
        ResultsLink(),
    )
    ui_color = "#e7dcf5"

    def __init__(
        self,
        *,
        manifest: str | None = None,
        model: str | None = None,
        output: str | None = None,
        name: str | None = None,
        dialect: str | None = None,
        prompt: str | None = None,
        model_names: Sequence[str] | str | None = None,
        duplicates: str | None = None,
        use_stored_options: bool | None = None,
        model_cache: str | None = None,
        output_dialects: Sequence[str] | str | None = None,
        limit: int | str | None = None,
        num_shards: int | str | None = None,
        price_per_hour: float | str | None = None,
        seed: int | str | None = None,
        generation: Mapping[str, Any] | str | None = None,
        engine: Mapping[str, Any] | str | None = None,
        endpoint_url: str | None = None,
        deduplicate: bool | None = None,
        media: Mapping[str, Any] | str | None = None,
        limits: Mapping[str, Any] | str | None = None,
        tracking: Mapping[str, Any] | str | None = None,
        evaluation: Mapping[str, Any] | str | None = None,
        shard: int | str | Mapping[str, Any] | None = None,
        rerun_failed: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.model = model
        self.job_output = output
        self.job_name = name
        self.dialect = dialect
        self.prompt = prompt
        self.model_names = model_names
        self.duplicates = duplicates
        self.use_stored_options = use_stored_options
        self.model_cache = model_cache
        self.output_dialects = output_dialects
        self.limit = limit
        self.num_shards = num_shards
        self.price_per_hour = price_per_hour
        self.seed = seed
        self.generation = generation
        self.engine = engine
        self.endpoint_url = endpoint_url
        self.deduplicate = deduplicate
        self.media = media
        self.limits = limits
        self.tracking = tracking
        self.evaluation = evaluation
        self.shard = shard
        self.rerun_failed = rerun_failed
        self.job_links: dict[str, str] = {}  # by XCom key
        self.job_report: dict[str, Any] | None = None  # once the job is done, for lineage

    def job_spec(self) -> "JobSpec":
        """The spec of the rendered arguments; raises AirflowFailException with a sentence.

        Without its cause, here and wherever the sentence says it all: Airflow logs the traceback of
        each, and the author of a DAG would look for his mistake below three of them.
        """
        values = {name: getattr(self, a) for name, a in zip(SPEC_FIELDS, JOB_FIELDS, strict=True)}
        settings = self.job_hook.settings
        try:
            number, count = parse_shard(self.shard)
            if count is not None:
                values["num_shards"] = count
            spec = make_spec(
                values, endpoint_url=settings.endpoint_url, mlflow_uri=settings.mlflow_uri
            )
            if number is not None and number >= spec.num_shards:
                raise SpecError(
                    f"shard {number} is none of num_shards={spec.num_shards}, which count from 0; "
                    "give num_shards as it was planned with, or shard as I/N"
                )
            given_flag("rerun_failed", self.rerun_failed)
            mask_password(spec.tracking.uri)
            return spec
        except VlmflowError as error:
            raise AirflowFailException(str(error)) from None

    def run_arguments(self, spec: "JobSpec", spec_file: str = "-") -> list[str]:
        """What `vlmflow` is given: `run --spec FILE`, and which part of the job."""
        number = self.shard_number
        arguments = ["run", "--spec", spec_file]
        if number is not None:
            arguments += ["--shard", f"{number}/{spec.num_shards}"]
        if given_flag("rerun_failed", self.rerun_failed):
            arguments.append("--rerun-failed")
        return arguments

    @property
    def shard_number(self) -> int | None:
        return parse_shard(self.shard)[0]

    def job_place(self) -> JobPlace:
        """Where the job's own folder is, of the rendered arguments; needs no whole spec."""
        if given(self.manifest) and given(self.model):
            return JobPlace.of(self.job_spec())
        endpoint = given(self.endpoint_url) or self.job_hook.settings.endpoint_url
        output, name = given(self.job_output), given(self.job_name)
        if output is None or name is None:
            raise AirflowFailException("output and name must be given, or all of the job")
        return JobPlace(f"{output.rstrip('/')}/{name}", endpoint)

    def job_store(self, place: JobPlace) -> "Store":
        """The job's own folder, read with the connection's credentials."""
        return self.job_hook.opener(place.endpoint_url).open(place.uri)

    def finish_job(self, context: "Context", place: JobPlace, ended: Ended) -> dict[str, Any]:
        """Decide by what is committed, and return the summary.

        Raises AirflowFailException for what a retry cannot mend, else AirflowException.
        """
        try:
            return self._judge(context, place, ended)
        except VlmflowError as error:
            # A store that does not answer now, or counts that do not add up.
            raise AirflowException(f"the task cannot be judged by its report: {error}") from error

    def push_place_links(self, context: "Context", place: JobPlace) -> None:
        """Push the links to report and results, before there are any."""
        self.push_links(context, place_links(place.uri, place.endpoint_url))

    def push_links(self, context: "Context", links: dict[str, str]) -> None:
        """Push links that are new, as XComs under their own keys."""
        for key, url in links.items():
            if self.job_links.get(key) != url:
                self.job_links[key] = url
                context["ti"].xcom_push(key=key, value=url)

    def get_openlineage_facets_on_start(self) -> Any:
        """The manifest as input and the results as output."""
        from vlmflow.airflow.lineage import job_lineage

        return job_lineage(self.manifest, self.job_place(), None)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The same, with the report's counts."""
        from vlmflow.airflow.lineage import job_lineage

        return job_lineage(self.manifest, self.job_place(), self.job_report)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """The same, with the counts of a report that says too many records failed."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _judge(self, context: "Context", place: JobPlace, ended: Ended) -> dict[str, Any]:
        from vlmflow.job.committed import (
            read_report,
            read_results_digest,
            read_run,
            read_sealed_shard,
            read_success,
        )

        if ended.code == EXIT_FAILURES:
            self.job_report = read_report(self.job_store(place))
        check_exit(ended, self.job_report)
        store = self.job_store(place)
        report, number = read_success(store), self.shard_number
        if number is not None:
            self.push_links(context, run_links(read_run(store)))
            shard = read_sealed_shard(store, number)
            if shard is None:
                raise self._is_lacking(ended, f"seal of shard {number}", store.uri)
            return summarise_shard(store.uri, shard, is_job_done=report is not None)
        if report is None:
            raise self._is_lacking(ended, "report", store.uri)
        self.job_report = report
        self.push_links(context, run_links(report["mlflow"]))
        digest = read_results_digest(store)
        extra = {
            "counts": report["counts"],
            "digest": digest,
            "identity": report["job"]["identity"],
            "report": report["results"]["report"],
        }
        tell_outlets(context, list(self.outlets), store.uri, extra)
        return summarise_report(report, digest=digest)

    @staticmethod
    def _is_lacking(ended: Ended, what: str, uri: str) -> AirflowException:
        end = (
            f"exit code {ended.code}"
            if ended.code is not None
            else f"an end unseen ({ended.reason})"
        )
        return AirflowException(
            f"{end}, but {uri} has no committed {what}; a retry goes on where it stopped"
        )
