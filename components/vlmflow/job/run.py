"""One attempt at a job: plan, identity, shards, report.

In this order things are written: plan.json, job.json, of each shard a claim, parts, commits and the
seal; then the views, report.html, report.json, _SUCCESS.json. A kill at any point leaves an output
that the same command continues.
"""

import random
import time
from dataclasses import dataclass, replace
from typing import Any

from vlmflow.job import layout
from vlmflow.job.claim import Claim, Claims, acquire_claim
from vlmflow.job.commit_log import is_sealed
from vlmflow.job.crash_points import reached
from vlmflow.job.errors import ClaimedError, IdentityError, InterruptedJobError, SpecError
from vlmflow.job.evaluator import MakeEvaluator, evaluates_nothing
from vlmflow.job.finish import Finisher, check_failures, failed_ordinals, failure_reason
from vlmflow.job.generations import Generation, begin_generation, find_generations
from vlmflow.job.image_survey import NUM_LOOKED_AT, RecordSampler, look_at_images
from vlmflow.job.job_engine import JobEngine
from vlmflow.job.job_file import Identity, JobFile, read_json
from vlmflow.job.loop import StopSignal
from vlmflow.job.manifest import Manifest
from vlmflow.job.media import make_fetcher
from vlmflow.job.model_folder import ModelFolder, find_model
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.planning import find_plan, save_plan
from vlmflow.job.probe import create_is_atomic
from vlmflow.job.progress import Display
from vlmflow.job.progress_file import telling_progress
from vlmflow.job.record import Record
from vlmflow.job.registered_model import resolve_registered
from vlmflow.job.shard_run import ShardRun
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store, StoreOpener
from vlmflow.job.tracked import JobTracker

_NUM_CHECKED = 100  # records whose images' places are looked at before anything begins
_WATCH_SECONDS = 1.0  # between two looks at the shards that others work on


@dataclass(frozen=True, slots=True)
class Assignment:
    """What of the job this process does. Without anything said: all of it, alone."""

    shard: int | None = None  # only this one
    is_worker: bool = False  # whatever nobody else does, until all is done
    rerun_failed: bool = False  # ask a finished job's failures again
    fork: bool = False  # if the output belongs to another job, take the next free name


@dataclass(frozen=True, slots=True)
class _Job:
    """What is known once the manifest and job.json are read."""

    plan: Plan
    identity: Identity
    model: ModelFolder
    generations: list[Generation]
    report: dict[str, Any] | None  # of an earlier attempt

    @property
    def latest(self) -> Generation:
        return self.generations[-1]


class JobRun:
    """Carries a JobSpec out. `run` may be called once."""

    def __init__(
        self,
        spec: JobSpec,
        *,
        display: Display,
        stop: StopSignal,
        assignment: Assignment = Assignment(),
        make_evaluator: MakeEvaluator = evaluates_nothing,
    ) -> None:
        """Raises SpecError for an option that is amiss, and for a registered model that is not."""
        spec, self._registered = resolve_registered(spec, display.say)
        self._spec = spec
        self._display = display
        self._stop = stop
        self._assignment = assignment
        self._opener = StoreOpener(spec.endpoint_url, max_connections=spec.limits.num_fetchers + 8)
        self._evaluator = make_evaluator(spec, self._opener, display, stop)
        self._manifest = Manifest(self._opener, spec)
        self._fetcher = make_fetcher(spec, self._opener, display.say)
        self._engine = JobEngine(spec, stop, display.say)
        self._tracker: JobTracker | None = None

    def run(self) -> dict[str, Any] | None:
        """Run the job to its end and return its report; None if other shards are not done yet.

        Raises a JobError with the exit code when it does not come to its end.
        """
        try:
            report = self._run()
        except BaseException as error:
            if self._tracker is not None:
                is_stopped = isinstance(error, InterruptedJobError | ClaimedError)
                self._tracker.fail("KILLED" if is_stopped else "FAILED")
            raise
        finally:
            self._engine.stop()
            if self._tracker is not None:
                self._tracker.leave()
        if report is not None:
            check_failures(report, self._spec)
        return report

    def _run(self) -> dict[str, Any] | None:
        # A typo is told before a model is read or loaded, and so is an option forgotten.
        self._fetcher.check_places(self._manifest.first_records(_NUM_CHECKED))
        model = find_model(
            self._spec, self._opener, self._registered, display=self._display, stop=self._stop
        )
        self._engine.process.model = str(model.path)
        name, number = self._spec.name, 1
        while True:
            store = self._opener.open(f"{self._spec.output.rstrip('/')}/{self._spec.name}")
            try:
                job = self._prepare(store, model)
                break
            except IdentityError as error:
                if not self._assignment.fork:
                    raise
                number += 1
                self._display.say(f"{error}; trying {name}-{number}")
                self._spec = self._spec.model_copy(update={"name": f"{name}-{number}"})
        if self._assignment.rerun_failed:
            job = self._begin_rerun(store, job)
        if job.report is not None and _is_successful(store, job, job.report):
            self._display.say(f"{store.uri}: this job is complete already")
            return job.report
        with telling_progress(store, job.plan, job.latest):
            return self._work(store, job)

    def _prepare(self, store: Store, model: ModelFolder) -> _Job:
        """Agree with whoever works on this output on what the job is."""
        job_file = JobFile(store, self._spec)
        there = job_file.read()
        if there is None:
            # A fresh job will need the engine; let it load while the manifest is read.
            self._engine.start(self._spec.engine.dtype)
        plan = self._plan(store)
        if there is None:
            plan = save_plan(store, plan, self._spec.manifest)
            reached("plan-written")
            with telling_progress(store, plan, find_generations(store, plan)[-1]):
                dtype = self._engine.wait_until_ready()["dtype"]
            identity = job_file.create(plan, model, dtype)
            reached("job-file-created")
        else:
            identity = job_file.check(there, plan, model)
            plan = save_plan(store, plan, self._spec.manifest)
        generations = find_generations(store, plan)
        return _Job(plan, identity, model, generations, read_json(store, layout.REPORT))

    def _plan(self, store: Store) -> Plan:
        sampler = RecordSampler(NUM_LOOKED_AT)
        plan = find_plan(store, self._manifest, sampler.look)
        if self._assignment.shard is not None and self._spec.num_shards != len(plan.shards):
            raise SpecError(
                f"{store.uri} is planned in {len(plan.shards)} shards, not in "
                f"{self._spec.num_shards}; say --shard I/{len(plan.shards)}"
            )
        self._display.say(
            f"{self._spec.manifest}: {plan.num_records} records, {len(plan.set_aside)} set aside"
        )
        self._look_at_images(sampler.picked())  # none, if the plan was there already
        return plan

    def _look_at_images(self, records: list[Record]) -> None:
        """Say it now, while the engine loads, if many images will be missing."""
        found = look_at_images(records, self._fetcher, self._spec.limits.num_fetchers)
        if found["records_failing"]:
            self._display.say(
                f"images of {found['records_failing']} of {found['records']} records looked at "
                f"cannot be had, such as: {found['examples'][0]['message']}"
            )

    def _begin_rerun(self, store: Store, job: _Job) -> _Job:
        """Begin the next generation, unless the latest is not done yet: then it goes on."""
        if job.report is None or not _is_final(store, job, job.report, _spec_of(job.report)):
            self._display.say(f"{store.uri}: not finished yet; going on with it")
            return job
        ordinals = failed_ordinals(store, job.plan)
        if not ordinals:
            self._display.say(f"{store.uri}: no record failed; there is nothing to ask again")
            return job
        generation = begin_generation(store, job.plan, job.latest.number + 1, ordinals)
        reached("generation-begun")
        self._display.say(f"asking {len(generation.asked)} failed records again")
        return replace(job, generations=[*job.generations, generation])

    def _work(self, store: Store, job: _Job) -> dict[str, Any] | None:
        is_atomic = create_is_atomic(store)
        if not is_atomic:
            self._without_atomic_create(store)
        reached("store-probed")
        claims = Claims(store)
        self._work_on_shards(store, job, claims)
        if not all(is_sealed(store, job.latest.prefix(s)) for s in job.latest.shards(job.plan)):
            return None
        self._engine.stop()
        with acquire_claim(
            claims,
            layout.FINISH,
            sleep=self._wait,
            tell=self._display.say,
            is_patient=self._assignment.is_worker or self._assignment.shard is not None,
        ):
            reached("finish-claimed")
            report = self._finished_by_another(store, job)
            if report is not None:
                return report
            tracker = self._start_tracker(store, job)
            finisher = Finisher(
                self._spec,
                store,
                job.plan,
                job.identity,
                job.generations,
                create_is_atomic=is_atomic,
                evaluator=self._evaluator,
            )
            report = finisher.finish(tracker, self._fetcher, self._manifest)
        self._tracker = None
        return report

    def _finished_by_another(self, store: Store, job: _Job) -> dict[str, Any] | None:
        """The report, if another worker finished the job while we waited.

        One that was killed between the report and _SUCCESS.json did not finish it.
        """
        report = read_json(store, layout.REPORT)
        if report is None or report == job.report:
            return None
        return report if _is_final(store, job, report, self._spec) else None

    def _without_atomic_create(self, store: Store) -> None:
        """Such a store needs one writer a shard, which only the user can see to."""
        sentence = f"{store.uri}: creating an object is not atomic on this store"
        if self._assignment.is_worker:
            raise SpecError(
                f"{sentence}, so workers cannot share shards out among themselves; "
                "give each its own by --shard"
            )
        self._display.say(f"{sentence}; make sure that no second worker runs this job or shard")

    def _work_on_shards(self, store: Store, job: _Job, claims: Claims) -> None:
        """Do the shards that are ours to do. Raises ClaimedError if another has one of them."""
        left, is_told = self._wanted(job), False
        while left:
            held = []
            for shard in left:
                prefix = job.latest.prefix(shard)
                if is_sealed(store, prefix):
                    continue
                found = claims.take(prefix)
                if isinstance(found, Claim):
                    self._work_on(store, job, shard, found)
                else:
                    held.append((shard, found))
            left = [shard for shard, _ in held]
            if held:
                owners = [owner for _, owner in held]
                if not self._assignment.is_worker and all(owner.is_alive for owner in owners):
                    raise ClaimedError(
                        f"{owners[0].where} is working on this job; wait for it or stop it"
                    )
                # Who waits for others needs no engine, and the others may need its memory.
                self._engine.stop()
                if not is_told:
                    is_told = True
                    self._display.say(
                        f"{len(held)} shards are others' ({owners[0].where}); watching them"
                    )
                self._wait(_WATCH_SECONDS)

    def _wanted(self, job: _Job) -> list[Shard]:
        shards = job.latest.shards(job.plan)
        if self._assignment.shard is not None:
            return [shard for shard in shards if shard.number == self._assignment.shard]
        if self._assignment.is_worker:
            random.shuffle(shards)  # so that workers started together do not all want the first
        return shards

    def _work_on(self, store: Store, job: _Job, shard: Shard, claim: Claim) -> None:
        if len(job.plan.shards) > 1:
            self._display.say(f"shard {shard.number}/{len(job.plan.shards)}")
        with claim:
            tracker = self._start_tracker(store, job)
            tracker.begin_shard(shard)
            run = ShardRun(
                self._spec,
                store,
                job.plan,
                job.latest,
                shard,
                claim,
                display=self._display,
                stop=self._stop,
            )
            run.run(self._manifest, self._fetcher, self._engine, job.identity.dtype, tracker)

    def _start_tracker(self, store: Store, job: _Job) -> JobTracker:
        """Open the MLflow run, once. Not before a claim is ours: it may be another worker's run."""
        if self._tracker is None:
            self._tracker = JobTracker(
                self._spec,
                store,
                job.identity.digest,
                job.plan,
                job.model.digest,
                tell=self._display.say,
            )
            self._tracker.start()
        return self._tracker

    def _wait(self, seconds: float) -> None:
        """Raises InterruptedJobError if told to stop."""
        if self._stop.count:
            raise InterruptedJobError("told to stop while others worked; what is committed stays")
        time.sleep(seconds)


def _is_successful(store: Store, job: _Job, report: dict[str, Any]) -> bool:
    success = read_json(store, layout.SUCCESS)
    return (
        success is not None and success["generation"] == report["generation"] == job.latest.number
    )


def _is_final(store: Store, job: _Job, report: dict[str, Any], spec: JobSpec) -> bool:
    """Whether a report was the last thing to be written, or _SUCCESS.json has come after it."""
    if report["generation"] != job.latest.number:
        return False
    return failure_reason(report, spec) is not None or _is_successful(store, job, report)


def _spec_of(report: dict[str, Any]) -> JobSpec:
    """What was asked of the attempt that wrote a report."""
    return JobSpec.parse(report["job"]["spec"])
