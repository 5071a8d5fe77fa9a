"""A checkpoint without a tokenizer.json answers through the whole engine as transformers does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny_llama import save_tiny_llama
from tests.tiny_tokenizers import write_internlm2, write_llama_sentencepiece, write_qwen2_bpe
from vlmflow_engine import (
    ChatTemplateConfig,
    GenerationConfig,
    PytorchEngineConfig,
    pipeline,
)
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

CONFIG = PytorchEngineConfig(dtype="float32", device_type="cpu", num_preprocess_workers=1)
NUM_TOKENS = 12
VOCAB_SIZE = 704  # rows of the embedding, more than any of the tokenizers has
QUESTION = "what  is this 你好 🙂\n\tshape?"
WORD = {
    "type": "json_schema",
    "json_schema": {"name": "word", "schema": {"enum": ["the image", "你好 🙂"]}},
}


LLAMA_PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    f"helpful, detailed, and polite answers to the human's questions. USER: {QUESTION} ASSISTANT:"
)
CHATML_PROMPT = (
    "<|im_start|>system\nAnswer the questions.<|im_end|>"
    f"<|im_start|>user\n{QUESTION}<|im_end|><|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("write", "template", "prompt", "beginning"),
    [
        (write_llama_sentencepiece, "llava-v1", LLAMA_PROMPT, [1]),
        (write_internlm2, "internvl-zh-hermes2", CHATML_PROMPT, [1]),
        (write_qwen2_bpe, "internvl-zh-hermes2", CHATML_PROMPT, []),
    ],
    ids=["Llama", "InternLM2", "Qwen2"],
)
def test_checkpoint_without_a_tokenizer_json_answers_as_transformers_does(
    tmp_path: Path,
    write: Callable[[Path], object],
    template: str,
    prompt: str,
    beginning: list[int],
) -> None:
    save_tiny_llama(tmp_path, vocab_size=VOCAB_SIZE)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    write(tmp_path)
    tokenizer = PromptTokenizer.from_folder(tmp_path)
    greedy = GenerationConfig(max_new_tokens=NUM_TOKENS, ignore_eos=True, skip_special_tokens=False)
    with pipeline(
        str(tmp_path),
        backend_config=CONFIG,
        chat_template_config=ChatTemplateConfig(template),
    ) as pipe:
        answer = pipe(QUESTION, greedy)
        streamed = "".join(part.text for part in pipe.stream_infer(QUESTION, gen_config=greedy))
        formed = pipe(QUESTION, GenerationConfig(max_new_tokens=40, response_format=WORD))
    prompt_ids = [*beginning, *tokenizer.encode_text(prompt)]
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = model.generate(
        torch.tensor([prompt_ids]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
    )[0, len(prompt_ids) :].tolist()
    assert answer.input_token_len == len(prompt_ids)
    assert answer.token_ids == expected
    assert answer.text == streamed == tokenizer.decode(expected, skip_special_tokens=False)
    assert json.loads(formed.text) in WORD["json_schema"]["schema"]["enum"]
