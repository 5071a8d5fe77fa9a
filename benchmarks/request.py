"""What engines are asked, and the slip of paper that takes it to a worker. Needs no package."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class BenchmarkRequest:
    """One image, one question, an answer of exactly so many tokens."""

    image: str  # path
    text: str
    num_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """One engine's work in one process."""

    worker: str  # "vlmflow", "transformers", "openvino"
    model: str  # folder of a checkpoint, or of its export
    setting: dict[str, Any]  # of the engine, by its own names
    num_threads: int
    requests: tuple[BenchmarkRequest, ...]

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> "WorkOrder":
        fields = json.loads(path.read_text(encoding="utf-8"))
        requests = tuple(BenchmarkRequest(**item) for item in fields.pop("requests"))
        return cls(**fields, requests=requests)

    @property
    def warm_up(self) -> list[BenchmarkRequest]:
        """Two short requests about an image of their own: nothing of them helps the others."""
        image = Path(self.requests[0].image).with_name("warm-up.png")
        return [BenchmarkRequest(str(image), "describe the scene", 4) for _ in range(2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """What a worker found out."""

    seconds: float  # from the first request handed over to the last answer
    load_seconds: float  # before that, imports left out
    num_output_tokens: list[int]  # of each request
    num_prompt_tokens: int | None  # of all, image tokens included; None: it does not say
    versions: dict[str, str]  # of what did the work
    details: dict[str, float]  # what else there is to say
