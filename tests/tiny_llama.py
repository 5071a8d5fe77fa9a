"""A text-only checkpoint small enough to be made anew, and transformers' answers to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.tiny_llava import TEXT_CONFIG, randomise, tiny_processor

# Of a text-only model: contents are strings.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '[' + message['role'] + '] ' + message['content'] | trim + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def save_tiny_llama(folder: Path, *, kind: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """Write weights, configs, tokenizer and chat template; return `folder`.

    kind       the model_type
    overrides  fields of the config
    """
    config = AutoConfig.for_model(kind, **TEXT_CONFIG | overrides)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model, seed=seed, gain=1.5)
    with torch.no_grad():
        model.lm_head.weight.mul_(6.0)  # the logits spread, and greedy answers are clear
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(model.config, name))
    model.save_pretrained(folder)
    tokenizer = tiny_processor().tokenizer
    previous, tokenizer.chat_template = tokenizer.chat_template, CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = previous
    return folder


def generate_texts(
    folder: Path, conversations: Sequence[list[dict[str, str]]], max_new_tokens: int, **config: Any
) -> list[tuple[list[int], list[int]]]:
    """Answer greedily in float32 with transformers; return prompts' and answers' token ids.

    config  fields of the config that are to be others than the folder says
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **config).eval()
    answers = []
    for messages in conversations:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[0]
        prompt = inputs["input_ids"][0].tolist()
        answers.append((prompt, output[len(prompt) :].tolist()))
    return answers
