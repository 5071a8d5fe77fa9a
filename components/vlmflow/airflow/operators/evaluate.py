"""`VLMEvaluateOperator`: scores the answers of a job that is done."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from vlmflow.airflow.hooks.vlmflow import mask_password
from vlmflow.airflow.operators.command import CommandOperator
from vlmflow.airflow.operators.outcome import below_limit, check_exit, output_of
from vlmflow.job.given import given, given_group

if TYPE_CHECKING:
    from airflow.sdk import Context


class ScoringOperator(CommandOperator):
    """How answers are scored, the same for one run and for two.

    :param scorers: as of `vlmflow evaluate --scorers`, such as "exact_match,anls".
    :param by: fields by whose values scores are told too, such as "metadata.task".
    :param expected_field: what the manifest calls the expected answer.
    :param failed: what records without an answer count as, "wrong" or "leave-out".
    :param endpoint_url: of an S3 store other than AWS; else the connection's.
    :param mlflow_uri: tracking server; else the connection's. It goes by the environment, for it
        may hold a password.
    :param track: True logs to the MLflow run of the job's report, a run's id logs to that one.

    All are templates; "None" of one means that nothing was given.
    """

    template_fields: Collection[str] = (
        *CommandOperator.template_fields,
        "scorers",
        "by",
        "expected_field",
        "failed",
        "endpoint_url",
        "mlflow_uri",
        "track",
    )

    def __init__(
        self,
        *,
        scorers: str | None = None,
        by: Sequence[str] | str = (),
        expected_field: str | None = None,
        failed: str | None = None,
        endpoint_url: str | None = None,
        mlflow_uri: str | None = None,
        track: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scorers = scorers
        self.by = by
        self.expected_field = expected_field
        self.failed = failed
        self.endpoint_url = endpoint_url
        self.mlflow_uri = mlflow_uri
        self.track = track

    def scoring_arguments(self) -> list[str]:
        """Options of the command line."""
        arguments = ["--json"]
        for option, value in (
            ("--scorers", self.scorers),
            ("--expected", self.expected_field),
            ("--failed", self.failed),
            ("--endpoint-url", given(self.endpoint_url) or self.job_hook.settings.endpoint_url),
        ):
            if given(value) is not None:
                arguments += [option, str(value)]
        by = given_group("by", given(self.by)) or ()
        for field in [by] if isinstance(by, str) else by:
            arguments += ["--by", str(field)]
        track = str(given(self.track) or False)
        if track.lower() != "false":
            arguments += ["--track"] if track.lower() == "true" else ["--track", track]
        return arguments

    def process_environment(self, context: "Context") -> dict[str, str]:
        """With MLflow's URI."""
        environment = super().process_environment(context)
        uri = given(self.mlflow_uri) or self.job_hook.settings.mlflow_uri
        mask_password(uri)
        return ({} if uri is None else {"MLFLOW_TRACKING_URI": uri}) | environment


class VLMEvaluateOperator(ScoringOperator):
    """Score every answer, and write evaluation.json and evaluation.parquet beside the results.

    :param results: a job's own folder (output/name), its results/, a results.parquet or an MLflow
        run (runs:/ID); or the summary that `VLMBatchInferenceOperator` or `VLMMergeOperator`
        returned.
    :param manifest: of the job, if it is not where the report says.
    :param output: where the evaluation is written, if not beside the results.
    :param judge_model: of the scorer `judge`, with `judge_prompt` and `judge_url`.

    Returns a summary: `evaluation`, `counts`, and of each scorer `mean`, `low`, `high`, `scored`.
    See `ScoringOperator` and `CommandOperator` for the other arguments.
    """

    template_fields: Collection[str] = (
        *ScoringOperator.template_fields,
        "results",
        "manifest",
        "eval_output",
        "judge_model",
        "judge_prompt",
        "judge_url",
    )

    def __init__(
        self,
        *,
        results: str | Mapping[str, Any],
        manifest: str | None = None,
        output: str | None = None,
        judge_model: str | None = None,
        judge_prompt: str | None = None,
        judge_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.results = results
        self.manifest = manifest
        self.eval_output = output  # an operator's `output` is its XCom
        self.judge_model = judge_model
        self.judge_prompt = judge_prompt
        self.judge_url = judge_url

    def execute(self, context: "Context") -> dict[str, Any]:
        """Evaluate, and return the scores."""
        run = run_name(self.results)
        arguments = ["evaluate", "--results", run, *self.scoring_arguments()]
        for option, value in (
            ("--manifest", self.manifest),
            ("--output", self.eval_output),
            ("--judge-model", self.judge_model),
            ("--judge-prompt", self.judge_prompt),
            ("--judge-url", self.judge_url),
        ):
            if given(value) is not None:
                arguments += [option, str(value)]
        ended = self.run_command(context, arguments, with_output=True)
        check_exit(ended, None)
        content = output_of(ended)
        return below_limit(
            {
                "results": run,
                "evaluation": f"{str(given(self.eval_output) or run).rstrip('/')}/evaluation.json",
                "counts": content["counts"],
                "scores": {
                    name: {key: score.get(key) for key in ("mean", "low", "high", "scored")}
                    for name, score in content["scores"].items()
                },
            }
        )


def run_name(run: str | Mapping[str, Any]) -> str:
    """How the command line calls a run: a text, or the `job` of an operator's summary.

    Raises AirflowFailException.
    """
    if isinstance(run, Mapping):
        run = run.get("job", "")
    if not isinstance(run, str) or given(run) is None:
        raise AirflowFailException(f"{run!r} is no run: give a URI, or what an operator returned")
    return run
