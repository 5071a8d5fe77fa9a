"""What can be known of a job before it is run: the whole manifest, some images, a forecast."""

import tempfile
import time
from pathlib import Path
from typing import Any

from vlmflow.job.claim import Claim, Claims
from vlmflow.job.generations import Generation
from vlmflow.job.image_survey import MAX_EXAMPLES, NUM_LOOKED_AT, RecordSampler, look_at_images
from vlmflow.job.job_engine import JobEngine
from vlmflow.job.loop import StopSignal
from vlmflow.job.manifest import Manifest
from vlmflow.job.media import MediaFetcher, make_fetcher
from vlmflow.job.model_folder import ModelFolder, find_model
from vlmflow.job.ordinals import OrdinalSet
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.progress import Display
from vlmflow.job.progress_file import read_attempts
from vlmflow.job.registered_model import resolve_registered
from vlmflow.job.shard_run import ShardRun
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener
from vlmflow.job.store.folder import FolderStore


def check_job(
    spec: JobSpec, *, num_sampled: int, display: Display, stop: StopSignal
) -> dict[str, Any]:
    """Read the manifest, look at some images, and ask `num_sampled` records for a forecast.

    Nothing is written to the output. Raises ManifestError and SpecError as a run does.
    """
    spec, registered = resolve_registered(spec, display.say)
    opener = StoreOpener(spec.endpoint_url, max_connections=spec.limits.num_fetchers + 8)
    manifest = Manifest(opener, spec)
    fetcher = make_fetcher(spec, opener, display.say)
    fetcher.check_places(manifest.first_records(NUM_LOOKED_AT))
    sampler = RecordSampler(max(NUM_LOOKED_AT, num_sampled))
    start = time.monotonic()
    plan = manifest.make_plan(sampler.look)
    seconds = time.monotonic() - start
    records = sampler.picked()
    result = {
        "manifest": {
            "uri": spec.manifest,
            "dialect": plan.dialect,
            "sha256": plan.sha256,
            "num_bytes": plan.num_bytes,
            "records": plan.num_records,
            "to_ask": plan.num_records - len(plan.set_aside),
            "images": sampler.num_images,
            "seconds": round(seconds, 3),
        },
        "bad_lines": _set_aside(plan, "failed"),
        "duplicates": _set_aside(plan, "skipped") | {"renamed": len(plan.new_ids)},
        "images": look_at_images(records[:NUM_LOOKED_AT], fetcher, spec.limits.num_fetchers),
        "forecast": None,
    }
    if num_sampled and records:
        ordinals = [record.ordinal for record in records[:num_sampled]]
        model = find_model(spec, opener, registered, display=display, stop=stop)
        result["forecast"] = _forecast(
            spec, plan, manifest, fetcher, model, ordinals, display=display, stop=stop
        )
    return result


def failure_share(result: dict[str, Any]) -> float:
    """The share of all records that is known, or to be expected, to fail."""
    manifest, images = result["manifest"], result["images"]
    of_images = images["records_failing"] / images["records"] if images["records"] else 0.0
    failing = result["bad_lines"]["count"] + of_images * manifest["to_ask"]
    share: float = failing / manifest["records"]
    return share


def _set_aside(plan: Plan, kind: str) -> dict[str, Any]:
    items = [item for item in plan.set_aside.values() if item.kind == kind]
    return {
        "count": len(items),
        "examples": [
            {"line": item.line, "id": item.record_id, "message": item.failure.message}
            for item in items[:MAX_EXAMPLES]
        ],
    }


def _forecast(
    spec: JobSpec,
    plan: Plan,
    manifest: Manifest,
    fetcher: MediaFetcher,
    model: ModelFolder,
    ordinals: list[int],
    *,
    display: Display,
    stop: StopSignal,
) -> dict[str, Any]:
    """Run a sample into a folder that is thrown away, and reckon from its time."""
    asked = OrdinalSet(plan.num_records)
    for ordinal in ordinals:
        asked.add(ordinal)
    # Not the first one, which is of all records.
    generation, shard = Generation(1, asked), Shard(0, 0, plan.num_records)
    engine = JobEngine(spec, stop, display.say)
    engine.process.model = str(model.path)
    with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
        store = FolderStore(Path(folder))
        claim = Claims(store).take(generation.prefix(shard))
        assert isinstance(claim, Claim)  # nobody else knows the folder
        try:
            run = ShardRun(spec, store, plan, generation, shard, claim, display=display, stop=stop)
            run.run(manifest, fetcher, engine, spec.engine.dtype, None)
        finally:
            engine.stop()
        [attempt] = read_attempts(store)
    num_to_ask = plan.num_records - len(plan.set_aside)
    each = attempt["last_result_seconds"] / len(ordinals)
    start_up: float = attempt["startup_seconds"]
    # One worker's. The sample fills the batch no better than its end does, so this is rather long.
    seconds = start_up + each * num_to_ask
    price = spec.price_per_hour
    return {
        "sampled": len(ordinals),
        "failed": attempt["failed"],
        "startup_seconds": round(start_up, 3),
        "records_per_second": round(1 / each, 3) if each else None,
        "device_seconds": round(seconds, 1),
        "cost": round(seconds / 3600 * price, 4) if price is not None else None,
    }
