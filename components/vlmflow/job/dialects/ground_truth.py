"""SageMaker Ground Truth's augmented manifest: a thing to ask about and its labels.

    {"source-ref": "s3://bucket/a.png", "class": 3, "class-metadata": {"class-name": "cat"}}

The prompt is the job's. Labels are passed through.
"""

from typing import Any

from vlmflow.job.dialects.asked import Asked, without
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages, text_part, uri_of
from vlmflow.job.record import Record


class GroundTruthDialect:
    name = "ground-truth"
    id_field = "id"
    id_is_optional = True

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""
        if ("source-ref" in content) == ("source" in content):
            raise LineError("give either 'source-ref' or 'source'")
        asked = Asked(Messages())
        if "source-ref" in content:
            image = asked.prompt.image(uri_of(content["source-ref"], "'source-ref'"))
            asked.prompt.add("user", [image, {"type": "text", "text": self._prompt}])
        else:
            text = text_part(content["source"], "'source'")["text"]
            asked.prompt.add("user", f"{text}\n\n{self._prompt}")
        further = without(content, "id", "source-ref", "source")
        return asked.record(record_id, ordinal, line, further)
