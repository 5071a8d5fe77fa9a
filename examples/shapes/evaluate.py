"""Measure the shapes checkpoint on questions it has never seen, and beside transformers.

python -m examples.shapes.evaluate examples/shapes/checkpoint
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from examples.shapes.scenes import TASKS, Question, Scene, held_out
from vlmflow_engine import GenerationConfig, PytorchEngineConfig, Response, pipeline

HELD_OUT_SEED = 1  # the trainer draws from 20_000_000 on
MAX_NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant", choices=["int8"], help="weights in 8 bits, on a CPU")
    parser.add_argument(
        "--transformers", type=int, default=100, metavar="N", help="compare N answers in float32"
    )
    options = parser.parse_args()
    asked = list(held_out(options.seed, options.questions))
    answers = answer(options.checkpoint, asked, options.dtype, quant=options.quant)
    report = accuracy(asked, answers)
    report["wrong"] = [
        {"question": question.text, "expected": question.answer, "answer": response.text}
        for (_, question), response in zip(asked, answers, strict=True)
        if response.text != question.answer
    ][:10]
    if options.transformers:
        report["transformers"] = agreement(options.checkpoint, asked[: options.transformers])
    print(json.dumps(report, indent=1))


def answer(
    checkpoint: Path,
    asked: list[tuple[Scene, Question]],
    dtype: str,
    *,
    quant: str | None = None,
    quant_policy: int = 0,
) -> list[Response]:
    """Ask all questions in one call."""
    config = PytorchEngineConfig(dtype=dtype, quant=quant, quant_policy=quant_policy)
    with pipeline(str(checkpoint), backend_config=config) as pipe:
        responses = pipe(
            [(question.text, scene.draw()) for scene, question in asked],
            GenerationConfig(max_new_tokens=MAX_NEW_TOKENS),
        )
    assert isinstance(responses, list)
    return responses


def accuracy(asked: list[tuple[Scene, Question]], answers: list[Response]) -> dict[str, object]:
    """Exact matches, in all and by task."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (_, question), response in zip(asked, answers, strict=True):
        total[question.task] += 1
        right[question.task] += response.text == question.answer
    by_task = {task: round(right[task] / total[task], 4) for task in TASKS if total[task]}
    return {
        "questions": len(asked),
        "exact_match": round(right.total() / total.total(), 4),
        "by_task": by_task,
    }


def agreement(checkpoint: Path, asked: list[tuple[Scene, Question]]) -> dict[str, int]:
    """How many answers are token by token those of transformers' generate, both in float32."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ours = answer(checkpoint, asked, "float32")
    same = 0
    for (scene, question), response in zip(asked, ours, strict=True):
        content = [
            {"type": "image", "image": scene.draw()},
            {"type": "text", "text": question.text},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        theirs = output[0, inputs["input_ids"].shape[1] :].tolist()
        same += theirs[: len(response.token_ids)] == response.token_ids
    return {"compared": len(asked), "same": same}


if __name__ == "__main__":
    main()
