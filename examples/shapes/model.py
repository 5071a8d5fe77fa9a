"""The untrained shapes model: tokenizer, processor and LLaVA weights, all made from nothing."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from examples.shapes.scenes import TASKS, ask, draw_scene

IMAGE_SIDE = 96
PATCH_SIDE = 16  # a grid cell is two patches by two
NUM_PATCHES = (IMAGE_SIDE // PATCH_SIDE) ** 2
VOCAB_SIZE = 512
_LICENCE = Path(__file__).parents[2] / "LICENSE"

# The template of llava-hf/llava-1.5, but for the blank after a text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make_processor() -> LlavaProcessor:
    """Train the byte-level BPE tokenizer and wrap it up.

    The generator's few sentences fill about 425 entries; the rest come from the only English prose
    at hand, the repository's licence.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        # All 256 bytes are in the vocabulary, so any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [*_sentences(20_000), *_LICENCE.read_text().split("\n\n")], trainer
    )
    if (size := tokenizer.get_vocab_size()) != VOCAB_SIZE:
        raise RuntimeError(
            f"the tokenizer has {size} tokens, not {VOCAB_SIZE}: more text is needed"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIDE},
            crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            extra_special_tokens={"image_token": "<image>"},
            padding_side="left",
            model_max_length=1024,
            clean_up_tokenization_spaces=False,
        ),
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """Initialise the model: CLIP tower, two-layer projector, Llama decoder."""
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=5,  # the features are taken after the fourth, as LLaVA does
            num_attention_heads=4,
            image_size=IMAGE_SIDE,
            patch_size=PATCH_SIDE,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    config._attn_implementation = "eager"  # the flash backward is slower than eager on a CPU
    model = LlavaForConditionalGeneration(config)
    # Words as loud as the images' features will be; at the usual 0.02 they are drowned by them.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _sentences(count: int) -> list[str]:
    rng = random.Random(0)
    sentences = []
    for _ in range(count):
        scene = draw_scene(rng)
        for task in TASKS:
            question = ask(rng, scene, task)
            sentences.append(f"USER: \n{question.text} ASSISTANT:{question.answer}")
    return sentences
