"""`Pipeline`: batches of prompts answered in this process."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.driver import RequestDriver
from vlmflow_engine.engine import EngineInfo
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.prompts import is_single_prompt
from vlmflow_engine.request import Response
from vlmflow_engine.stats import EngineStats


class Pipeline:
    """A loaded model. Use it in a `with` block, or `close` it."""

    def __init__(
        self, model_path: str, *, backend_config: PytorchEngineConfig | None = None
    ) -> None:
        """Load a local checkpoint folder. Raises ModelError or ConfigError."""
        self._driver: RequestDriver | None = RequestDriver(
            str(model_path),
            backend_config or PytorchEngineConfig(),
            NamedFetcher("vlmflow_engine.vl.fetch:fetch_image"),
        )
        self._lock = threading.Lock()

    def __call__(
        self,
        prompts: Any,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    ) -> Response | list[Response]:
        """Same as `infer`."""
        return self.infer(prompts, gen_config)

    def infer(
        self,
        prompts: Any,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    ) -> Response | list[Response]:
        """Answer one prompt (a Response) or a list of them (a list, in the same order).

        prompts     a str, (text, image), (text, [images]) or OpenAI-style messages; or a list of
                    any of these
        gen_config  one for all, or one for each prompt

        A prompt that fails is a Response with finish_reason "error", error_code and error_message;
        the others are not affected. Raises ValueError if the lists differ in length.
        """
        if is_single_prompt(prompts):
            return self._run([prompts], gen_config)[0]
        return self._run(list(prompts), gen_config)

    @property
    def info(self) -> EngineInfo:
        """What was resolved at start-up: device, dtype, sizes."""
        return self._open_driver().info

    @property
    def stats(self) -> EngineStats:
        """What the engine has counted so far."""
        return self._open_driver().stats

    def close(self) -> None:
        """End the workers and let go of the model. May be called twice."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_driver(self) -> RequestDriver:
        if self._driver is None:
            raise RuntimeError("this Pipeline is closed")
        return self._driver

    def _run(
        self, prompts: list[Any], gen_config: GenerationConfig | Sequence[GenerationConfig] | None
    ) -> list[Response]:
        configs = _one_each(gen_config, len(prompts))
        driver = self._open_driver()
        responses: dict[int, Response] = {}
        # Enough ahead for the next batch to be prepared, not so many that their images fill memory.
        look_ahead = 2 * driver.info.max_batch_size
        with self._lock:
            try:
                for index, (prompt, config) in enumerate(zip(prompts, configs, strict=True)):
                    driver.submit(index, prompt, config)
                    while driver.num_in_flight >= look_ahead:
                        _collect(driver, responses)
                while driver.num_in_flight:
                    _collect(driver, responses)
            finally:  # an interrupt must not leave its requests to the next call
                driver.cancel_all()
        return [responses[index] for index in range(len(prompts))]


def _collect(driver: RequestDriver, responses: dict[int, Response]) -> None:
    for answer in driver.step():
        answer.response.index = answer.ticket
        responses[answer.ticket] = answer.response


def _one_each(
    gen_config: GenerationConfig | Sequence[GenerationConfig] | None, count: int
) -> list[GenerationConfig]:
    if gen_config is None or isinstance(gen_config, GenerationConfig):
        return [gen_config or GenerationConfig()] * count
    if len(gen_config) != count:
        raise ValueError(
            f"{len(gen_config)} gen_configs for {count} prompts; give one, or one each"
        )
    return list(gen_config)
