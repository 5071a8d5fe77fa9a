"""One request's way from generated tokens to a `Response`, whole or piece by piece."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vlmflow_engine.errors import CancelledError, InvalidOutputError, RequestError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.inputs.answer_text import AnswerText
from vlmflow_engine.inputs.tokenizer import PromptTokenizer
from vlmflow_engine.request import Response
from vlmflow_engine.runner.outputs import RequestOutputs
from vlmflow_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of a streamed answer."""

    ticket: int
    response: Response


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a prompt; of a streamed one its last chunk.

    `error` is set when `response.finish_reason` is "error".
    """

    ticket: int
    response: Response
    error: RequestError | None
    seconds: float  # from submit to here
    is_last: bool = True  # no other of the n answers is to come
    times: dict[str, float] = field(default_factory=dict)  # see `times_of`; empty if never queued


def times_of(sequence: Sequence, submitted: float, prepared: float) -> dict[str, float]:
    """Seconds from submit until a sequence was prepared, scheduled, at its first token, finished.

    `vision` is when its images were begun to be encoded, `vision_seconds` how long the encoder ran
    in those steps and `vision_images` on how many images, others' included. What did not happen is
    left out. `submitted` and `prepared` are of time.monotonic().
    """
    moments = {
        "prepared": prepared,
        "scheduled": sequence.scheduled_at,
        "first_token": sequence.first_token_at,
        "finished": time.monotonic(),
    }
    times = {name: at - submitted for name, at in moments.items() if at is not None}
    vision = sequence.vision
    if vision is not None:
        times["vision"] = vision.started_at - submitted
        times |= {"vision_seconds": vision.seconds, "vision_images": vision.num_images}
    return times


def in_order(answers: Iterator[Answer]) -> Iterator[Answer]:
    """Put answers into the order of their prompts, those to one prompt by choice."""
    waiting: dict[int, list[Answer]] = {}
    complete: set[int] = set()
    position = 0
    for answer in answers:
        index = answer.response.index
        waiting.setdefault(index, []).append(answer)
        if answer.is_last:
            complete.add(index)
        while position in complete:
            complete.remove(position)
            yield from sorted(waiting.pop(position), key=lambda a: a.response.choice)
            position += 1


class AnswerBuilder:
    """Follows one sequence token by token."""

    def __init__(
        self,
        ticket: int,
        choice: int,
        generation: GenerationConfig,
        tokenizer: PromptTokenizer,
        *,
        is_streamed: bool,
    ) -> None:
        self.ticket = ticket
        self.is_streamed = is_streamed
        self.choice = choice
        self._generation = generation
        self._tokenizer = tokenizer
        # Nobody else needs the text before the end.
        self._text: AnswerText | None = None
        if is_streamed or generation.stop_words:
            self._text = AnswerText(
                tokenizer,
                skip_special_tokens=generation.skip_special_tokens,
                stop_words=generation.stop_words or (),
                include_stop_word=generation.include_stop_str_in_output,
                min_new_tokens=generation.min_new_tokens or 0,
            )
        # Shown in chunks so far.
        self._num_characters = 0
        self._num_tokens = 0

    def push(self, sequence: Sequence) -> bool:
        """Take a sequence's last token; return whether a stop word is complete with it."""
        if self._text is None or sequence.has_stop_token:
            return False
        self._text.push(sequence.token_ids[-1])
        return self._text.is_stopped

    def delta(self, sequence: Sequence) -> Delta | None:
        """Return what can be shown of a streamed answer; None if there is nothing new."""
        assert self._text is not None
        text, token_ids = self._text.take()
        return self._delta(sequence, text, token_ids) if text else None

    def finish(
        self, sequence: Sequence, take_outputs: Callable[[Sequence, int], RequestOutputs]
    ) -> tuple[Delta | None, Response, RequestError | None]:
        """Return the answer. Of a streamed one: what is left of it, and its last chunk."""
        text, token_ids = self._whole(sequence)
        num_tokens = len(token_ids)
        outputs = take_outputs(sequence, num_tokens)
        delta = None
        if self.is_streamed:
            text, token_ids = text[self._num_characters :], token_ids[self._num_tokens :]
            if text:
                delta = self._delta(sequence, text, token_ids)
                text, token_ids = "", []
        response = self._response(sequence, text, token_ids, num_tokens)
        response.finish_reason = sequence.finish_reason
        response.logits = outputs.logits
        response.last_hidden_state = outputs.last_hidden_state
        response.ppl = outputs.ppl
        error = _format_error(sequence)
        if error is not None:
            response.finish_reason = "error"
            response.error_code, response.error_message = error.code, str(error)
        return delta, response, error

    def _whole(self, sequence: Sequence) -> tuple[str, list[int]]:
        """Text and tokens of the answer."""
        stop_token_ids = []
        token_ids = sequence.output_token_ids
        if sequence.has_stop_token:
            stop_token_ids = [token_ids.pop()]
        if self._text is not None:
            self._text.finish()
            text, token_ids = self._text.text, self._text.token_ids
        else:
            text = self._tokenizer.decode(
                token_ids, skip_special_tokens=self._generation.skip_special_tokens
            )
        if self._generation.include_stop_str_in_output:
            token_ids += stop_token_ids
            text += self._tokenizer.decode(stop_token_ids, skip_special_tokens=False)
        return text, token_ids

    def _delta(self, sequence: Sequence, text: str, token_ids: list[int]) -> Delta:
        response = self._response(sequence, text, token_ids, self._num_tokens + len(token_ids))
        self._num_characters += len(text)
        self._num_tokens += len(token_ids)
        return Delta(self.ticket, response)

    def _response(
        self, sequence: Sequence, text: str, token_ids: list[int], num_tokens: int
    ) -> Response:
        logprobs = sequence.logprobs[num_tokens - len(token_ids) : num_tokens]
        return Response(
            text=text,
            generate_token_len=num_tokens,
            input_token_len=sequence.num_prompt_tokens,
            token_ids=token_ids,
            logprobs=logprobs or None,
            choice=self.choice,
            cached_tokens=sequence.num_cached_tokens,
        )


def error_response(error: RequestError, input_token_len: int = 0, choice: int = 0) -> Response:
    """The response of a request that failed or was taken back."""
    return Response(
        text="",
        generate_token_len=0,
        input_token_len=input_token_len,
        finish_reason="abort" if isinstance(error, CancelledError) else "error",
        choice=choice,
        error_code=error.code,
        error_message=str(error),
    )


def _format_error(sequence: Sequence) -> InvalidOutputError | None:
    """An answer that was cut off before it was what response_format asks for is no success."""
    matcher = sequence.matcher
    if matcher is None or matcher.can_end or (matcher.is_finished and matcher.error is None):
        return None
    if matcher.error is not None:
        return InvalidOutputError(f"response_format cannot be kept to any further: {matcher.error}")
    return InvalidOutputError(
        f"the answer was cut off after {sequence.num_output_tokens} tokens, before it was what "
        "response_format asks for; raise max_new_tokens"
    )
