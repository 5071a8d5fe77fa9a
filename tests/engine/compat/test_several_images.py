"""Several images in a prompt, as LMDeploy's examples have them: pairs, messages, frames, turns."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.compat.fingerprint import is_same, reads_as
from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine import GenerationConfig, Pipeline
from vlmflow_engine.vl import encode_image_base64, load_video
from vlmflow_engine.vl.constants import IMAGE_TOKEN

SHORT = GenerationConfig(max_new_tokens=6, ignore_eos=True)
PICTURES = [noise(96, 96, seed=number) for number in range(20, 24)]
ROWS = 36  # embedding rows of an image of the tests' model


def part(picture: Image.Image, **options: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{encode_image_base64(picture)}"
    return {"type": "image_url", "image_url": {"url": url, **options}}


def user(text: str, *pictures: Image.Image, **options: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": text}, *(part(p, **options) for p in pictures)]
    return {"role": "user", "content": content}


@pytest.mark.parametrize("count", [2, 4])
def test_each_further_image_of_a_pair_takes_its_rows(count: int, pipe: Pipeline) -> None:
    one = pipe(("describe", PICTURES[0]), SHORT)
    several = pipe(("describe", PICTURES[:count]), SHORT)
    # And the line's end behind them.
    assert several.input_token_len == one.input_token_len + (count - 1) * (ROWS + 1)


def test_a_pair_and_a_message_with_several_images_are_one_prompt(pipe: Pipeline) -> None:
    assert is_same(pipe, ("describe", PICTURES[:3]), [user("describe", *PICTURES[:3])])


def test_no_image_at_all_in_a_pair_is_a_text(pipe: Pipeline) -> None:
    assert is_same(pipe, ("describe", []), "describe")


def test_numbered_images_stand_where_their_numbers_are(pipe: Pipeline) -> None:
    text = f"Image-1: {IMAGE_TOKEN}\nImage-2: {IMAGE_TOKEN}\nWhat is different?"
    prompt = [user(text, *PICTURES[:2], max_dynamic_patch=12)]
    assert reads_as(pipe, prompt, f"USER: {text} ASSISTANT:", *PICTURES[:2])
    swapped = [user(text, *PICTURES[1::-1], max_dynamic_patch=12)]
    assert not is_same(pipe, prompt, swapped)


def test_frames_of_a_video_are_images_of_a_prompt(pipe: Pipeline) -> None:
    data = encode(
        PICTURES[0], "WEBP", save_all=True, append_images=PICTURES[1:], lossless=True, duration=100
    )
    frames, known = load_video(data, num_frames=3)
    assert known["frames_indices"] == [0, 1, 3]
    text = "".join(f"Frame{number}: {IMAGE_TOKEN}\n" for number in (1, 2, 3)) + "What happens?"
    prompt = [user(text, *map(Image.fromarray, frames), max_dynamic_patch=1)]
    shown = [PICTURES[index] for index in known["frames_indices"]]
    assert reads_as(pipe, prompt, f"USER: {text} ASSISTANT:", *shown)


@pytest.mark.parametrize(
    "options",
    [
        {"max_dynamic_patch": 1},
        {"min_pixels": 64, "max_pixels": 640},
        {"max_slice_nums": 9, "use_image_id": False},
        {"resized_height": 280, "resized_width": 420},
        {"detail": "low"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_other_families_are_taken_and_change_nothing_here(
    options: dict[str, Any], pipe: Pipeline
) -> None:
    assert is_same(pipe, [user("describe", *PICTURES[:2], **options)], ("describe", PICTURES[:2]))


@pytest.mark.parametrize(
    "options", [{"detail": "very"}, {"max_dynamic_patch": 0}, {"min_pixels": 9, "max_pixels": 8}]
)
def test_a_wrong_option_of_an_image_is_its_prompts_error(
    options: dict[str, Any], pipe: Pipeline
) -> None:
    bad, good = pipe([[user("describe", PICTURES[0], **options)], ("x", PICTURES[0])], SHORT)
    assert (bad.error_code, good.error_code) == ("invalid_request", None)


def test_a_batch_of_pairs_has_the_answers_of_each_alone(pipe: Pipeline) -> None:
    prompts = [("describe", PICTURES[:count]) for count in (1, 3, 2)]
    alone = [pipe(prompt, SHORT).token_ids for prompt in prompts]
    assert [r.token_ids for r in pipe(prompts, SHORT)] == alone
    assert len(set(map(tuple, alone))) == 3


def test_examples_may_come_before_the_question(pipe: Pipeline) -> None:
    prompt = [
        user("how many", PICTURES[0]),
        {"role": "assistant", "content": "two"},
        user("how many", PICTURES[1]),
        {"role": "assistant", "content": "three"},
        user("how many", PICTURES[2]),
    ]
    turn = f"USER: {IMAGE_TOKEN}\nhow many ASSISTANT:"
    written = f"{turn} two</s>{turn} three</s>{turn}"
    assert reads_as(pipe, prompt, written, *PICTURES[:3])


def test_a_conversation_may_see_one_image_after_the_other(pipe: Pipeline) -> None:
    session = pipe.chat(("what is it", PICTURES[:2]), gen_config=SHORT)
    pipe.chat(("and these", PICTURES[2:]), session, SHORT)
    first = session.history[0][1]
    messages = [
        user("what is it", *PICTURES[:2]),
        {"role": "assistant", "content": first},
        user("and these", *PICTURES[2:]),
    ]
    assert session.response.token_ids == pipe(messages, SHORT).token_ids


def test_one_bad_image_of_several_fails_its_prompt_alone(pipe: Pipeline) -> None:
    bad, good = pipe([("x", [PICTURES[0], "/nowhere/a.png"]), ("x", PICTURES[0])], SHORT)
    assert bad.error_code == "preprocess_failed" and "/nowhere/a.png" in bad.error_message
    assert good.text == pipe(("x", PICTURES[0]), SHORT).text


def test_images_of_any_size_take_the_same_rows_and_are_told_apart(pipe: Pipeline) -> None:
    sizes = [(10, 10), (500, 20), (33, 200), (96, 96)]
    responses = pipe([("x", noise(*size)) for size in sizes], SHORT)
    assert len({r.input_token_len for r in responses}) == 1
    assert len({tuple(r.token_ids) for r in responses}) == 4


def test_an_array_becomes_a_picture_in_the_script(pipe: Pipeline) -> None:
    array = np.asarray(PICTURES[0])
    assert is_same(pipe, ("x", Image.fromarray(array)), ("x", PICTURES[0]))
    refused = pipe(("x", array), SHORT)
    assert refused.error_code is not None and "ndarray" in refused.error_message
