"""`Session`: a conversation, and what can be done with it while it is answered."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self
from weakref import WeakMethod

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import Response

_ids = itertools.count(1)


class Session:
    """A conversation: prompts and answers so far. Make one with `pipe.session()` or `pipe.chat`.

        session = pipe.chat(("What is it?", image))
        session = pipe.chat("What colour?", session=session)
        print(session.response.text, session.history)

    session_id  a number of its own in this process
    prompt      of the last turn, in the form it was given
    response    the Response to it; None while the first chunk is awaited
    history     the turns that were answered: (prompt, text of the answer)
    gen_config  of the last turn that named one; the next turns keep it

    Every turn sends all of it; the prefix cache saves the work. In a `with` block the session is
    closed at its end. One thread at a time may use it, but any may `abort`.
    """

    def __init__(self, chat: "WeakMethod[Callable[..., Any]] | None" = None) -> None:
        """`chat` is a pipeline's, for a session that can be called; it does not keep the model."""
        self.session_id = next(_ids)
        self.prompt: Any = None
        self.response: Response | None = None
        self.history: list[tuple[Any, str]] = []
        self.gen_config: GenerationConfig | None = None
        self.epoch = 0  # grows with each abort and reset
        self.cancel: Callable[[], None] | None = None  # set while a turn is being answered
        # Chunks of a streamed turn, until somebody takes the first: who leaves them, ends them.
        self.generator: Iterator[Response] | None = None
        self._chat = chat

    def __call__(
        self,
        prompt: Any,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = True,
        do_preprocess: bool = True,
    ) -> Response | Iterator[Response] | None:
        """Answer the next turn: an iterator of chunks, or the response if it is not streamed.

        Raises RuntimeError if the session was not made by a pipeline, or the pipeline is gone; the
        rest as `Pipeline.chat`.
        """
        chat = None if self._chat is None else self._chat()
        if chat is None:
            raise RuntimeError(
                "this Session has no pipeline, or one that is gone; use pipe.chat(prompt, session)"
            )
        chunks: Iterator[Response] = chat(prompt, self, gen_config, stream_response, do_preprocess)
        return chunks if stream_response else self.response

    def update(
        self,
        prompt: Any = None,
        response: Response | None = None,
        gen_config: GenerationConfig | None = None,
    ) -> Self:
        """Set what is given, leave the rest, and return the session."""
        self.prompt = self.prompt if prompt is None else prompt
        self.response = self.response if response is None else response
        self.gen_config = self.gen_config if gen_config is None else gen_config
        return self

    def abort(self) -> None:
        """End the turn that is being answered; its response says so. Harmless without one."""
        self.epoch += 1
        if self.cancel is not None:
            self.cancel()

    async def async_abort(self) -> None:
        """Same as `abort`."""
        self.abort()

    def reset(self) -> None:
        """Forget the conversation."""
        self.abort()
        self.prompt = self.response = self.gen_config = None
        self.history.clear()

    def close(self) -> None:
        """End what is being answered. The history stays readable."""
        self.abort()

    async def async_close(self) -> None:
        """Same as `close`."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Session(session_id={self.session_id}, turns={len(self.history)}, "
            f"is_active={self.cancel is not None})"
        )

    def __str__(self) -> str:
        lines = [f"Session(id={self.session_id})", "History:"]
        for prompt, answer in self.history:
            lines += [f"USER: {prompt!r}", f"ASSISTANT: {answer}"]
        return "\n".join(lines)
