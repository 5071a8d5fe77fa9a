"""An evaluation as a user asks for it: scorers, judge, where from and where to."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from vlmflow.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate
from vlmflow.evaluation.judge import Judge, JudgeModel
from vlmflow.evaluation.prompts import Questions
from vlmflow.evaluation.questions_of import questions_of
from vlmflow.evaluation.results import Results
from vlmflow.evaluation.scorers import make_scorers
from vlmflow.evaluation.scorers.parse import Wording, parse_scorers
from vlmflow.evaluation.scorers.registry import JUDGE
from vlmflow.job import layout
from vlmflow.job.errors import SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.progress import Display
from vlmflow.job.spec import EvaluationSpec
from vlmflow.job.store import Store, StoreOpener

NO_MANIFEST = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """All that is said about one evaluation."""

    scorers: str
    options: EvaluationOptions = field(default_factory=EvaluationOptions)
    manifest: str | None = None  # None: that of the job's report; NO_MANIFEST: do without
    judge: JudgeModel | None = None

    @classmethod
    def of(cls, spec: EvaluationSpec) -> "EvaluationRequest":
        """What a JobSpec asks for."""
        model = spec.judge_model
        return cls(
            scorers=spec.scorers,
            options=EvaluationOptions(
                slice_fields=spec.slices,
                expected_field=spec.expected_field,
                failed=spec.failed,
            ),
            judge=JudgeModel(model=model, prompt_file=spec.judge_prompt) if model else None,
        )

    def check(self) -> None:
        """Find out before anything is done what would not work. Raises SpecError."""
        make_scorers(self.scorers, judge=_NotYet if self.judge is not None else None)
        if self.judge is not None:
            self.judge.check()

    def carry_out(
        self,
        results: Results,
        opener: StoreOpener,
        *,
        output: Store | None,
        display: Display,
        stop: StopSignal,
    ) -> Evaluation:
        """Evaluate, and write evaluation.json and evaluation.parquet to `output`.

        Raises SpecError, ManifestError, and as a run does while a judge works.
        """
        questions = self._questions(results, opener, display)
        judge = None
        if self.judge is not None and self._wants_judge():
            if questions is None:
                raise SpecError("a judge must see what was asked; give --manifest")
            judge = Judge(
                self.judge,
                results,
                questions,
                opener,
                expected_field=self.options.expected_field,
                display=display,
                stop=stop,
            ).scorer
        scorers = make_scorers(self.scorers, judge=judge)
        with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
            table = Path(folder) / "evaluation.parquet" if output is not None else None
            evaluation = evaluate(results, scorers, self.options, questions=questions, table=table)
            if output is not None and table is not None:
                output.write_file(layout.EVALUATION_TABLE, table)
                output.write(layout.EVALUATION, layout.dump(evaluation.content))
        return evaluation

    def _wants_judge(self) -> bool:
        return any(wording.kind == JUDGE for wording in parse_scorers(self.scorers))

    def _questions(
        self, results: Results, opener: StoreOpener, display: Display
    ) -> Questions | None:
        """The manifest that is named, which must be there; or the job's own, if it still is."""
        if self.manifest == NO_MANIFEST:
            return None
        if self.manifest is None:
            return questions_of(results, opener, display.say)
        job = None if results.report is None else results.report["job"]["spec"]
        return Questions(opener, self.manifest, job)


class _NotYet:
    """Stands for a judge while a request is checked."""

    needs_expected = False

    def __init__(self, wording: Wording) -> None:
        self.name = wording.name

    def score(self, answer: object, expected: object) -> float | None:
        raise NotImplementedError
