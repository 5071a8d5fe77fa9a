"""Small requests of every kind, as many as are wanted, and what has to become of each."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tests.engine.runner.grammars import as_regex, as_schema
from tests.engine.runner.schemas import SchemaMaker
from vlmflow_engine import GenerationConfig

ANSWERED: frozenset[str | None] = frozenset({None})
# A random model seldom comes to the end of what a schema asks for.
CUT_OFF = frozenset({None, "invalid_output"})
NEVER = {"type": "object", "properties": {"a": False}, "required": ["a"]}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be, light as long as nobody makes its prompt."""

    make_prompt: Callable[[], Any]
    config: GenerationConfig
    codes: frozenset[str | None] = ANSWERED  # error codes that its answers may have; None: none


class Traffic:
    """Makes one request after the other, no two pictures alike; the seed decides them all."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._schemas = SchemaMaker(seed)
        self._format = as_schema(self._schemas.make())
        self._num_made = 0
        self._kinds = [
            *(self._greedy, self._sampled, self._stopped, self._formatted, self._with_outputs),
            *(self._greedy, self._sampled, self._edited),
        ]

    def make(self, count: int) -> list[Ask]:
        return [self._next() for _ in range(count)]

    def _next(self) -> Ask:
        self._num_made += 1
        if self._num_made % 50 == 0:  # so that more come than are kept compiled
            self._format = as_schema(self._schemas.make())
        return self._bad() if self._random.random() < 0.1 else self._random.choice(self._kinds)()

    def _greedy(self) -> Ask:
        return Ask(self._prompt(), self._config())

    def _sampled(self) -> Ask:
        seed = self._random.choice([None, self._random.randrange(99)])
        count = self._random.choice([1, 1, 2, 3])
        config = self._config(do_sample=True, top_p=0.9, n=count, random_seed=seed)
        return Ask(self._prompt(), config)

    def _stopped(self) -> Ask:
        words = self._random.sample(["a", "e", "red", "th", " "], 2)
        return Ask(self._prompt(), self._config(stop_words=words))

    def _edited(self) -> Ask:
        config = self._config(repetition_penalty=1.3, bad_words=["red"], min_new_tokens=3)
        return Ask(self._prompt(), config)

    def _with_outputs(self) -> Ask:
        options: list[dict[str, Any]] = [
            {"logprobs": 3},
            {"output_logits": "generation"},
            {"output_last_hidden_state": "all", "return_ppl": True},
        ]
        return Ask(self._prompt(), self._config(**self._random.choice(options)))

    def _formatted(self) -> Ask:
        forms = [self._format, as_regex("(yes|no)( [a-z]{2,5}){1,2}"), {"type": "json_object"}]
        config = self._config(response_format=self._random.choice(forms), do_sample=True)
        return Ask(self._prompt(), config, CUT_OFF)

    def _bad(self) -> Ask:
        own_code = {"logits_processors": [_fail], "output_logits": "all", "ignore_eos": True}
        bad: list[tuple[Any, dict[str, Any], str]] = [
            (("x", "/nowhere/a.png"), {}, "preprocess_failed"),
            (("x", b"these are no pixels"), {}, "preprocess_failed"),
            (("x", "http://127.0.0.1/a.png"), {}, "preprocess_failed"),
            (7, {}, "invalid_request"),
            ([{"role": "nobody", "content": "x"}], {}, "invalid_request"),
            ("word " * 3000, {}, "context_length_exceeded"),
            (None, {"response_format": as_schema(NEVER)}, "invalid_request"),
            (None, {"response_format": as_regex("(")}, "invalid_request"),
            (None, own_code | {"max_new_tokens": 4}, "invalid_request"),
        ]
        prompt, options, code = self._random.choice(bad)
        make_prompt = self._prompt() if prompt is None else lambda: prompt
        return Ask(make_prompt, self._config(**options), frozenset({code}))

    def _config(self, **options: Any) -> GenerationConfig:
        return GenerationConfig(**{"max_new_tokens": self._random.randint(1, 10)} | options)

    def _prompt(self) -> Callable[[], Any]:
        text = f"what is it {self._random.randrange(50)}" + " and that" * self._random.randrange(6)
        num_pictures = self._random.choice([0, 0, 1, 1, 1, 2])
        if not num_pictures:
            return lambda: text
        seeds = [self._random.getrandbits(64) for _ in range(num_pictures)]
        return lambda: (text, [make_picture(seed) for seed in seeds])


def make_picture(seed: int) -> Image.Image | bytes:
    """A picture of 8 x 8 random colours, as an object or as a file."""
    rng = random.Random(seed)
    size = rng.choice([(96, 96), (120, 80), (48, 200)])
    colours = Image.frombytes("RGB", (8, 8), rng.randbytes(8 * 8 * 3))
    picture = colours.resize(size, Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        return picture
    file = io.BytesIO()
    picture.save(file, rng.choice(["PNG", "JPEG", "BMP"]))
    return file.getvalue()


def _fail(ids: Any, row: Any) -> Any:
    if len(ids) > 2:
        raise KeyError("no such word")
    return row
