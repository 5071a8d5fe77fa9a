"""LLaVA as its authors saved it: its twin bit by bit, prompts and tiles by the authors' rules."""

import ast
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.tiny_llava import compute_logits, load_tiny_llava, make_tiny_llava
from tests.tiny_llava_next import FEATURES, SIDE, make_tiny_llava_next
from tests.tiny_llava_original import VOCAB_SIZE, write_original, write_tower_config
from vlmflow_engine import (
    ChatTemplateConfig,
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
)
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.registry import read_config

TEXT = {"vocab_size": VOCAB_SIZE}
CONFIG = PytorchEngineConfig(dtype="float32", device_type="cpu")
MAX_NEW_TOKENS = 12
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
# One tile, each of the grids, odd ratios, and sizes where the two rules part.
SIZES = (
    *((42, 42), (20, 30), (84, 84), (100, 100), (640, 480), (333, 100), (97, 96), (47, 100)),
    *((40, 800), (800, 40), (235, 1128), (376, 799)),
)


def make_twin(form: str) -> Any:
    text = {**TEXT, "max_position_embeddings": 512}
    if form == "1.5":
        return make_tiny_llava(text_config=text, image_token_index=3)
    return make_tiny_llava_next(text_config=text)


@pytest.fixture(scope="module", params=["1.5", "1.6"])
def both(request, tmp_path_factory) -> tuple[str, Any, Path]:
    """A twin, and the folders of its two forms."""
    folder = tmp_path_factory.mktemp("twins")
    twin = make_twin(request.param)
    twin.save_pretrained(folder / "hf")
    is_15 = request.param == "1.5"
    name = "llava-v1.5-7b" if is_15 else "llava-v1.6-vicuna-7b"
    write_original(folder / name, twin, tower_folder="openai/clip-tiny" if is_15 else None)
    return request.param, twin, folder / name


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    pixels = np.random.default_rng(3)
    return [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in SIZES
    ]


@torch.inference_mode()
def test_twins_are_equal_bit_by_bit(both):
    form, _, folder = both
    original, twin = load_tiny_llava(folder), load_tiny_llava(folder.parent / "hf")
    generator = torch.Generator().manual_seed(0)
    side = original.vision.tower.image_size
    tiles = torch.randn(7 if form == "1.6" else 1, 3, side, side, generator=generator)
    layout = (3, 2, 0, 1) if form == "1.6" else ()
    image = ImagePixels(tiles, layout)
    (ours,), (theirs,) = original.encode_images([image]), twin.encode_images([image])
    assert torch.equal(ours, theirs)
    prompt = torch.randint(VOCAB_SIZE, (40,), generator=generator)
    logits = [compute_logits(model.decoder, [prompt])[0] for model in (original, twin)]
    assert torch.equal(*logits)


@torch.inference_mode()
def test_answers_follow_the_authors_prompts_and_tiles(both, images):
    form, twin, folder = both
    texts = ["What is it?", " two  blanks", "図 é 🙂", "tokens <image> </s> are text", "a\nb"]
    prompts = [(texts[index % len(texts)], image) for index, image in enumerate(images)]
    with Pipeline(str(folder), backend_config=CONFIG) as pipe:
        responses = pipe(prompts, GenerationConfig(max_new_tokens=MAX_NEW_TOKENS))
    encode = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode
    answers = set()
    for (text, image), response in zip(prompts, responses, strict=True):
        assert response.error_message is None
        if "</s>" in text:  # what the authors' tokenizer would make an end of the sequence
            continue
        before = [1, *encode(f"{SYSTEM} USER: ")]
        behind = encode(f"\n{text} ASSISTANT:")
        rows = authors_features(twin, image) if form == "1.6" else padded_features(twin, image)
        assert response.input_token_len == len(before) + len(rows) + len(behind)
        embed = twin.get_input_embeddings()
        embeds = torch.cat((embed(torch.tensor(before)), rows, embed(torch.tensor(behind))))
        expected = twin.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )[0].tolist()
        assert [*response.token_ids, *[2] * (response.finish_reason == "stop")] == expected
        answers.add(tuple(expected))
    assert len(answers) > len(images) / 2


def authors_features(twin: Any, image: Image.Image) -> Tensor:
    """What LLaVA-1.6 makes of an image (process_anyres_image, prepare_inputs_labels_...)."""
    width, height = image.size
    pinpoints = ast.literal_eval(str(twin.config.image_grid_pinpoints))
    fits = []
    for order, (grid_width, grid_height) in enumerate(pinpoints):
        scale = min(grid_width / width, grid_height / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        fits.append((-shown, grid_width * grid_height - shown, order, grid_width, grid_height))
    *_, grid_width, grid_height = min(fits)
    if grid_width / width < grid_height / height:
        new = grid_width, min(math.ceil(height * grid_width / width), grid_height)
    else:
        new = min(math.ceil(width * grid_height / height), grid_width), grid_height
    canvas = Image.new("RGB", (grid_width, grid_height), (0, 0, 0))
    canvas.paste(image.resize(new), ((grid_width - new[0]) // 2, (grid_height - new[1]) // 2))
    tiles = [image.resize((SIDE, SIDE))]
    for top in range(0, grid_height, SIDE):
        tiles += [
            canvas.crop((left, top, left + SIDE, top + SIDE)) for left in range(0, grid_width, SIDE)
        ]
    features = clip_features(twin, tiles)
    rows, columns = grid_height // SIDE, grid_width // SIDE
    lines: list[Tensor] = []  # of the picture, each [columns of features, hidden_size]
    for row in range(rows):
        for line in range(FEATURES):
            across = [
                features[1 + row * columns + column][line * FEATURES : (line + 1) * FEATURES]
                for column in range(columns)
            ]
            lines.append(torch.cat(across))
    grid = torch.stack(lines)
    if width / height > columns / rows:
        drop = (rows * FEATURES - int(height * (columns * FEATURES / width))) // 2
        grid = grid[drop : len(grid) - drop]
    else:
        drop = (columns * FEATURES - int(width * (rows * FEATURES / height))) // 2
        grid = grid[:, drop : grid.shape[1] - drop]
    newline = twin.model.image_newline
    picture = [part for line in grid for part in (line, newline[None])]
    return torch.cat([features[0], *picture])


def padded_features(twin: Any, image: Image.Image) -> Tensor:
    """What LLaVA-1.5 makes of an image (expand2square, then CLIP's processor)."""
    side, (width, height) = max(image.size), image.size
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    size = twin.config.vision_config.image_size
    return clip_features(twin, [square.resize((size, size), Image.Resampling.BICUBIC)])[0]


def clip_features(twin: Any, tiles: list[Image.Image]) -> Tensor:
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = np.stack([(np.asarray(tile) / 255 - mean) / std for tile in tiles])
    values = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)
    states = twin.model.vision_tower(values, output_hidden_states=True).hidden_states[-2]
    return twin.model.multi_modal_projector(states[:, 1:])


def test_the_seeds_template_changes_one_word(both):
    _, _, folder = both
    with (
        Pipeline(str(folder), CONFIG) as plain,
        Pipeline(str(folder), CONFIG, chat_template=ChatTemplateConfig("vicuna")) as vicuna,
    ):
        lengths = [
            pipe("hi", GenerationConfig(max_new_tokens=1)).input_token_len
            for pipe in (plain, vicuna)
        ]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    prompts = [f"{SYSTEM.replace('human', word)} USER: hi ASSISTANT:" for word in ("human", "user")]
    assert lengths == [1 + len(processor.encode(prompt)) for prompt in prompts]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = write_original(tmp_path_factory.mktemp("small"), make_twin("1.6"))
    shutil.rmtree(folder / "clip-tiny")
    return folder


def write(folder: Path, small: Path, *, weights: bool = False, **fields: Any) -> Path:
    """The small checkpoint's config.json with other fields; None leaves one out."""
    content = json.loads((small / "config.json").read_text()) | fields
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    if weights:
        for path in small.glob("model*"):
            (folder / path.name).symlink_to(path)
    return folder


def test_the_tower_is_described_by_its_folder_its_name_or_its_weights(small, tmp_path):
    by_weights = read_config(write(tmp_path, small, weights=True)).vision_config
    assert (by_weights.hidden_size, by_weights.num_attention_heads) == (64, 1)
    assert (by_weights.image_size, by_weights.patch_size) == (SIDE, 14)
    assert (by_weights.num_hidden_layers, by_weights.intermediate_size) == (3, 96)
    name = "openai/clip-vit-large-patch14-336"
    by_name = read_config(write(tmp_path, small, mm_vision_tower=name, image_aspect_ratio="pad"))
    assert (by_name.vision_config.image_size, by_name.vision_config.hidden_size) == (336, 1024)
    write_tower_config(tmp_path / "clip-tiny", make_twin("1.6").config.vision_config)
    by_folder = read_config(write(tmp_path, small)).vision_config
    assert by_folder.num_attention_heads == 4


def test_sparse_configs_get_what_the_checkpoints_were_trained_with(small, tmp_path):
    left_out = dict.fromkeys(
        ("rope_theta", "mm_vision_select_feature", "image_aspect_ratio", "mm_patch_merge_type")
    )
    config = read_config(write(tmp_path, small, weights=True, **left_out))
    assert config.text_config.rope_parameters["rope_theta"] == 10000.0
    assert config.text_config.rms_norm_eps == 1e-5
    assert config.vision_feature_layer == -2 and config.vision_feature_select_strategy == "default"
    assert config.original["image_aspect_ratio"] == "square"
    assert config.original["mm_patch_merge_type"] == "flat"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio must be one of anyres, pad"),
        ({"mm_patch_merge_type": "maxpool2x2"}, "mm_patch_merge_type must be one of flat, spatial"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type must be linear, identity or mlp"),
        ({"mm_projector_type": 2}, "mm_projector_type must be linear, identity or mlp"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature must be one of patch"),
        ({"mm_vision_select_feature": "cls_patch"}, "does not go with tiles"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=true is not supported"),
        ({"mm_vision_tower": None}, "mm_vision_tower must name a CLIP tower, got None"),
        ({"image_grid_pinpoints": None}, "'anyres' needs image_grid_pinpoints"),
        ({"image_grid_pinpoints": "[[42, 84]"}, "image_grid_pinpoints must be a list of"),
        ({"image_grid_pinpoints": "__import__('os')"}, "image_grid_pinpoints must be a list of"),
        ({"hidden_size": "wide"}, "transformers refuses it"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "'LlavaMptForCausalLM' is not supported"),
    ],
    ids=str,
)
def test_what_no_llava_says_is_one_sentence(fields, sentence, small, tmp_path):
    folder = write(tmp_path, small, weights=True, **fields)
    with pytest.raises(ModelError) as caught:
        read_config(folder)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


JSON = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.just([[1, 2]])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_config_is_read_or_refused_in_one_sentence(data, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    known = json.loads((small / "config.json").read_text())
    names = st.sampled_from(sorted(known.keys() - {"architectures"}))
    fields = data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3))
    write(folder, small, weights=True, **fields)
    try:
        read_config(folder)
    except ModelError as error:
        assert "\n" not in str(error)


def test_a_tower_that_is_nowhere_is_told_with_the_folder_it_belongs_in(small, tmp_path):
    twin = make_twin("1.5")
    folder = write_original(tmp_path / "llava-v1.5", twin, tower_folder="openai/clip-tiny")
    (folder / "openai/clip-tiny").rename(tmp_path / "elsewhere")
    name = "openai/clip-vit-large-patch14-336"
    write(folder, folder, mm_vision_tower=name)
    with pytest.raises(ModelError) as caught:
        load_tiny_llava(folder)
    assert f"{folder / name} is no folder with them" in str(caught.value)
    write(folder, folder, mm_vision_tower="google/siglip")
    with pytest.raises(ModelError, match="nothing tells the config of its vision tower"):
        read_config(folder)
