"""Train the shapes model from nothing and save it in Hugging Face LLaVA format.

    python -m examples.shapes.train --output examples/shapes/checkpoint

The questions of one scene share its image and prefix: each question block sees the prefix and
itself only, so an image is encoded once for fourteen answers.

Answers alone teach too slowly: shapes stayed unknown for thousands of steps, and whether a thing
exists for thousands more. So two linear heads help while training lasts and are thrown away then:
one names colour and shape of every cell from the image features, the other says from the decoder's
state at the end of a question in which cells the answer is to be found.
"""

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from examples.shapes.model import IMAGE_SIDE, NUM_PATCHES, make_model, make_processor
from examples.shapes.scenes import COLOURS, PLACES, SHAPES, TASKS, Scene, ask, draw_scene

TRAIN_SEED = 20_000_000  # scenes of training; examples/shapes/evaluate.py uses another
# Of each scene. Counting and existence take two steps of thought and are learned last.
QUESTIONS = (
    *("describe",) * 1, *("colour",) * 2, *("shape",) * 2, *("count",) * 4, *("exists",) * 5,
)  # fmt: skip
_EVIDENCE_LAYER = 3  # of four: the last one is left for turning evidence into words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=32, help="scenes a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    processor = make_processor()
    model = make_model(processor, arguments.seed)
    curve = train(model, processor, arguments)
    save(model, processor, arguments.output)
    history = {**vars(arguments), "output": None, "curve": curve}
    (arguments.output / "training.json").write_text(json.dumps(history, indent=1) + "\n")


def train(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Run all steps; return the loss an answer token by task, one point every 100 steps."""
    hidden_size = model.config.text_config.hidden_size
    cell_head = torch.nn.Linear(hidden_size, len(COLOURS) + 1 + len(SHAPES) + 1)
    evidence_head = torch.nn.Linear(hidden_size, len(PLACES))
    parameters = [
        *model.parameters(), *cell_head.parameters(), *evidence_head.parameters()
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(
        parameters, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_up_then_cosine(step, arguments.steps)
    )
    rng = random.Random(TRAIN_SEED + arguments.seed)
    curve: list[dict[str, float]] = []
    sums, start = torch.zeros(2, len(TASKS)), time.monotonic()
    model.train()
    for step in range(1, arguments.steps + 1):
        batch = make_batch(rng, processor, arguments.batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            features = image_features(model, batch["pixel_values"])
            states = decoder_states(model, batch, features)
            losses, tasks = answer_losses(model, batch, states[-1])
            total = losses.mean() + cell_loss(cell_head, batch, features)
            total = total + evidence_loss(evidence_head, batch, states[_EVIDENCE_LAYER])
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        sums[0].index_add_(0, tasks, losses.detach())
        sums[1].index_add_(0, tasks, torch.ones_like(losses))
        if step % 100 == 0 or step == arguments.steps:
            means = (sums[0] / sums[1]).tolist()
            point: dict[str, float] = {"step": step, "seconds": round(time.monotonic() - start)}
            point |= {task: round(mean, 4) for task, mean in zip(TASKS, means, strict=True)}
            curve.append(point)
            sums.zero_()
            print(point, flush=True)
        if step % 500 == 0:
            save(copy.deepcopy(model), processor, arguments.output)
    return curve


def make_batch(rng: random.Random, processor: LlavaProcessor, size: int) -> dict[str, Tensor]:
    """Draw `size` scenes and pack each one's questions behind its image.

    input_ids, labels, positions  [size, length]; labels are -100 but on answers
    block                         [size, length]; 0 is the shared prefix, -1 padding, else the
                                  number of the question, counted from 1
    pixel_values                  [size, 3, IMAGE_SIDE, IMAGE_SIDE]
    cells                         [size, 9, 2]; colour and shape of a cell counted from 1, 0 is none
    question_ends                 [questions, 2]; row and column of each question's last token
    evidence                      [questions, 9]; 1.0 where the answer is to be found
    """
    tokenizer = processor.tokenizer
    prefix = tokenizer("USER: ").input_ids + [processor.image_token_id] * NUM_PATCHES
    images, rows, cells = [], [], torch.zeros(size, 9, 2, dtype=torch.long)
    question_ends: list[tuple[int, int]] = []
    evidence = torch.zeros(size * len(QUESTIONS), len(PLACES))
    for number in range(size):
        scene = draw_scene(rng)
        for item in scene.items:
            cells[number, item.place, 0] = 1 + list(COLOURS).index(item.colour)
            cells[number, item.place, 1] = 1 + SHAPES.index(item.shape)
        images.append(_pixels(scene, rng.choice((96, 160, 192, 288))))
        questions = [ask(rng, scene, task) for task in QUESTIONS]
        asked = [f"\n{question.text} ASSISTANT:" for question in questions]
        answers = [f"{question.answer}</s>" for question in questions]
        encoded = tokenizer(asked + answers, add_special_tokens=False).input_ids
        ids, labels = list(prefix), [-100] * len(prefix)
        positions, block = list(range(len(prefix))), [0] * len(prefix)
        for index in range(len(questions)):
            question, answer = encoded[index], encoded[index + len(questions)]
            evidence[len(question_ends), list(questions[index].evidence)] = 1.0
            question_ends.append((number, len(ids) + len(question) - 1))
            ids += question + answer
            labels += [-100] * len(question) + answer
            length = len(question) + len(answer)
            positions += range(len(prefix), len(prefix) + length)
            block += [index + 1] * length
        rows.append((ids, labels, positions, block))
    length = max(len(row[0]) for row in rows)
    columns = [
        torch.tensor([row[k] + [fill] * (length - len(row[k])) for row in rows])
        for k, fill in enumerate((tokenizer.pad_token_id, -100, 0, -1))
    ]
    names = ("input_ids", "labels", "positions", "block")
    return {
        **dict(zip(names, columns, strict=True)),
        "pixel_values": torch.stack(images),
        "cells": cells,
        "question_ends": torch.tensor(question_ends),
        "evidence": evidence,
    }


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The projector's output, [size, NUM_PATCHES, hidden_size]."""
    output: Any = model.get_image_features(pixel_values=pixels)
    return torch.stack(list(getattr(output, "pooler_output", output)))


def cell_loss(head: torch.nn.Linear, batch: dict[str, Tensor], features: Tensor) -> Tensor:
    """Cross entropy of a cell's colour and shape, told by each of its two patches by two.

    By each alone: what only all four know together, no attention of the decoder can look for.
    """
    size, _, width = features.shape
    logits = head(_unit(features)).float().flatten(0, 1)  # [size * 36, classes]
    colour, shape = torch.split(logits, [len(COLOURS) + 1, len(SHAPES) + 1], dim=-1)
    grid = batch["cells"].view(size, 3, 1, 3, 1, 2).expand(size, 3, 2, 3, 2, 2)
    target = grid.reshape(-1, 2)
    entropy = torch.nn.functional.cross_entropy
    return entropy(colour, target[:, 0]) + entropy(shape, target[:, 1])


def decoder_states(
    model: LlavaForConditionalGeneration, batch: dict[str, Tensor], features: Tensor
) -> tuple[Tensor, ...]:
    """Run the decoder; return its states before and after each layer, the last one normed."""
    ids, block = batch["input_ids"], batch["block"]
    embeds = model.get_input_embeddings()(ids)
    is_image = (ids == model.config.image_token_id).unsqueeze(-1).expand_as(embeds)
    embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
    same = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)
    mask = same.tril().unsqueeze(1)  # [size, 1, length, length]
    bias = torch.zeros(mask.shape, dtype=embeds.dtype).masked_fill(~mask, torch.finfo().min)
    states: tuple[Tensor, ...] = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=bias,
        position_ids=batch["positions"],
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    return states


def answer_losses(
    model: LlavaForConditionalGeneration, batch: dict[str, Tensor], hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each answer token, and the index of its task."""
    labels = batch["labels"][:, 1:]
    answered = labels != -100
    logits = model.lm_head(hidden[:, :-1][answered])
    losses = torch.nn.functional.cross_entropy(logits.float(), labels[answered], reduction="none")
    task_of_question = torch.tensor([TASKS.index(task) for task in QUESTIONS])
    return losses, task_of_question[batch["block"][:, 1:][answered] - 1]


def evidence_loss(head: torch.nn.Linear, batch: dict[str, Tensor], state: Tensor) -> Tensor:
    """Binary cross entropy of the cells that a question is about, at its last token."""
    row, column = batch["question_ends"].unbind(-1)
    logits = head(_unit(state[row, column])).float()
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["evidence"])


def _unit(x: Tensor) -> Tensor:
    """Scale to a root mean square of 1: a head must not make the model's states grow."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:])


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Save bfloat16 weights: half the size, and what the accuracy was measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)


def _pixels(scene: Scene, drawn_side: int) -> Tensor:
    """Normalise as CLIPImageProcessor does. Several drawn sizes: a resize must not matter."""
    image = scene.draw(drawn_side).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    values = (np.asarray(image, np.float32) / 255 - mean) / std
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _warm_up_then_cosine(step: int, steps: int) -> float:
    warm_up = 200
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


if __name__ == "__main__":
    main()
