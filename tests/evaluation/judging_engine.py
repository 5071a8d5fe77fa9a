"""The fake engine as a judge: full marks for an answer that is the expected one, else the lowest.

What is asked without a response_format is answered as ever. An answer that says "mumble" gets a
reply that is no mark, one that says "two" gets a 2.
"""

import json
import re

from tests.job import fake_engine

FORM = re.compile(
    r"Expected answer:\n(?P<expected>.*)\n\nAnswer to be judged:\n(?P<answer>.*)\n\n"
    r"Give .* to (\d+)",
    re.DOTALL,
)
answer_as_ever = fake_engine.answer


def judge(frame: dict) -> dict:
    if "response_format" not in frame["generation"]:
        return answer_as_ever(frame)
    [message] = frame["prompt"]
    text = next(part["text"] for part in message["content"] if part["type"] == "text")
    found = FORM.search(text)
    assert found is not None, text
    schema = frame["generation"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["maximum"] == int(found[3])
    mark = int(found[3]) if found["answer"] == found["expected"] else 1
    if found["answer"] == "two":
        mark = 2
    result = answer_as_ever(frame)
    reply = json.dumps({"reason": f"{len(frame['images'])} images", "score": mark})
    result["response"]["text"] = "hm" if found["answer"] == "mumble" else reply
    return result


if __name__ == "__main__":
    fake_engine.answer = judge
    fake_engine.main()
