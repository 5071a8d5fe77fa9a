"""`GenerationConfig`: how one answer is generated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmflow_engine.checks import (
    check_at_least,
    check_choice,
    check_flag,
    check_within,
    is_text,
    is_whole,
)
from vlmflow_engine.errors import ConfigError

# (generated token ids [num_generated], logits [vocab_size]) -> logits [vocab_size]; tensors.
LogitsProcessor = Callable[[Any, Any], Any]

_FORMATS = ("json_schema", "json_object", "regex_schema")
_FLAGS = (
    "do_sample",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "return_ppl",
)
_LISTS = ("stop_words", "bad_words", "stop_token_ids", "bad_token_ids", "logits_processors")
# LMDeploy's fields for splitting a request over machines, and for mixtures of experts.
_REFUSED = ("with_cache", "preserve_cache", "migration_request", "return_routed_experts")


@dataclass(slots=True, kw_only=True)
class GenerationConfig:
    """How one answer is generated: greedily, unless `do_sample`. Names and defaults are LMDeploy's.

        GenerationConfig(max_new_tokens=64, do_sample=True, temperature=0.7, random_seed=1)

    Raises ConfigError for a value that is not allowed: when it is made, and, as fields may be
    changed, when it is used. What is drawn with a random_seed does not depend on the batch.
    """

    n: int = 1  # answers of one prompt, each sampled with a seed of its own
    max_new_tokens: int | None = 512  # longest answer in tokens; None: as many as the context holds
    # False: always the likeliest token; top_p, top_k, min_p and temperature then have no effect.
    do_sample: bool = False
    top_p: float = 1.0  # in [0, 1]: sample from the likeliest tokens that make up this probability
    top_k: int = 50  # sample from so many likeliest tokens; 0: the whole vocabulary
    min_p: float = 0.0  # in [0, 1]: leave out tokens below this share of the likeliest one
    temperature: float = 0.8  # in [0, 2]: higher is more varied; 0: the likeliest token
    repetition_penalty: float = 1.0  # of generated tokens; above 1 discourages, up to 100
    ignore_eos: bool = False  # go on to max_new_tokens, whatever the model says
    random_seed: int | None = None  # None: a fresh one for each request
    stop_words: list[str] | None = None  # the answer ends before the first that its text spells
    # Banned are their own encodings and every token whose text contains one; a word can still be
    # put together from unusual pieces.
    bad_words: list[str] | None = None
    stop_token_ids: list[int] | None = None  # beside those the checkpoint names
    bad_token_ids: list[int] | None = None  # never generated
    min_new_tokens: int | None = None  # no stop before so many tokens
    skip_special_tokens: bool = True  # leave special tokens out of the text
    spaces_between_special_tokens: bool = True  # LMDeploy's; no effect
    # So many likeliest tokens are reported beside each generated one; None: nothing is.
    logprobs: int | None = None
    # What the answer must be: {"type": "json_schema", "json_schema": {"schema": {...}}},
    # {"type": "regex_schema", "regex_schema": "..."} or {"type": "json_object"}.
    response_format: dict[str, Any] | None = None
    # Functions of (generated token ids [num_generated], logits [vocab_size]) that return logits;
    # called for each token in order. One that raises ends its request with `invalid_request`.
    logits_processors: list[LogitsProcessor] | None = None
    # "generation": Response.logits has a row for each token of the answer; "all": of prompt and
    # answer but the last, row p being what token p + 1 was drawn from.
    output_logits: str | None = None
    # "generation" or "all": the decoder's last states, in the rows of output_logits.
    output_last_hidden_state: str | None = None
    include_stop_str_in_output: bool = False  # keep the stop word or token in the text
    return_ppl: bool = False  # Response.ppl: the prompt's mean cross-entropy
    repetition_ngram_size: int = 0  # tokens of an n-gram whose repetition ends an answer; 0: none
    repetition_ngram_threshold: int = 0  # stop when the last n-gram has come so often

    # LMDeploy's, for splitting a request over machines and for mixtures of experts: refused unless
    # left as they are.

    with_cache: bool = False
    preserve_cache: bool = False
    migration_request: Any = None
    return_routed_experts: bool = False

    def __post_init__(self) -> None:
        for name in _LISTS:
            if isinstance(value := getattr(self, name), tuple):
                setattr(self, name, list(value))
        ngram = (self.repetition_ngram_size, self.repetition_ngram_threshold)
        if all(map(is_whole, ngram)) and min(ngram) <= 0:  # LMDeploy's rule: off
            self.repetition_ngram_size = self.repetition_ngram_threshold = 0
        self.check()

    def check(self) -> None:
        """Raise ConfigError if a value is not allowed now."""
        check_at_least("n", self.n, 1)
        if self.max_new_tokens is not None and not is_whole(self.max_new_tokens):
            raise ConfigError(
                f"max_new_tokens must be a whole number or None, got {self.max_new_tokens!r}"
            )
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        check_within("temperature", self.temperature, 0, 2)
        check_at_least("top_k", self.top_k, 0)
        check_within("top_p", self.top_p, 0, 1)
        check_within("min_p", self.min_p, 0, 1)
        if self.repetition_penalty == 0:
            raise ConfigError("repetition_penalty must be above 0, got 0")
        check_within("repetition_penalty", self.repetition_penalty, 0, 100)
        if self.random_seed is not None and not is_whole(self.random_seed):
            raise ConfigError(f"random_seed must be a whole number, got {self.random_seed!r}")
        self._check_lists()
        for name in ("min_new_tokens", "logprobs"):
            if (value := getattr(self, name)) is not None:
                check_at_least(name, value, 0)
        for name in ("repetition_ngram_size", "repetition_ngram_threshold"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("output_logits", "output_last_hidden_state"):
            check_choice(name, getattr(self, name), (None, "all", "generation"))
        self._check_format()
        for name in _REFUSED:
            if getattr(self, name):
                raise ConfigError(f"{name} is not supported: leave it at its default")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken: no sampling, or a temperature of zero."""
        return not self.do_sample or self.temperature == 0 or self.top_k == 1

    @property
    def wants_outputs(self) -> bool:
        """Whether rows of the decoder are asked for beside the tokens."""
        return self.return_ppl or bool(self.output_logits or self.output_last_hidden_state)

    @property
    def wants_prompt_rows(self) -> bool:
        """Whether every token of the prompt has to be computed: no cached prefix will do."""
        return self.return_ppl or "all" in (self.output_logits, self.output_last_hidden_state)

    def _check_lists(self) -> None:
        for name in ("stop_token_ids", "bad_token_ids"):
            ids = getattr(self, name)
            if ids is not None and not (
                isinstance(ids, list) and all(is_whole(i) and i >= 0 for i in ids)
            ):
                raise ConfigError(f"{name} must be a list of token ids, got {ids!r}")
        for name in ("stop_words", "bad_words"):
            words = getattr(self, name)
            if words is not None and not (
                isinstance(words, list) and all(is_text(word) and word for word in words)
            ):
                raise ConfigError(f"{name} must be a list of non-empty texts, got {words!r}")
        processors = self.logits_processors
        if processors is not None and not (
            isinstance(processors, list) and all(callable(p) for p in processors)
        ):
            raise ConfigError(f"logits_processors must be a list of functions, got {processors!r}")

    def _check_format(self) -> None:
        form = self.response_format
        if form is None:
            return
        if not isinstance(form, dict) or form.get("type") not in _FORMATS:
            raise ConfigError(
                "response_format must be {'type': 'json_schema', 'json_schema': {'schema': ...}}, "
                "{'type': 'regex_schema', 'regex_schema': ...} or {'type': 'json_object'}, "
                f"got {form!r}"
            )
