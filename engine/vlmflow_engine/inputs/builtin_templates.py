"""Chat templates by name, with LMDeploy's strings: for checkpoints that bring none of their own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vlmflow_engine.errors import UnsupportedFeatureError
from vlmflow_engine.inputs.placement import ImagePlacement
from vlmflow_engine.inputs.prompts import Message, PromptOptions
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens

_DEFAULTS = PromptOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatePieces:
    """What stands around the messages. Field names are LMDeploy's."""

    system: str = ""
    meta_instruction: str = ""  # the system message where the caller gives none
    eosys: str = ""
    user: str = ""
    eoh: str = ""
    assistant: str = ""
    eoa: str = ""
    separator: str = ""  # behind eoa, between turns
    tool: str = ""
    eotool: str = ""
    stop_words: tuple[str, ...] = ()
    strips_blank: bool = False  # the last blank of a prompt: an answer's first token brings it


def _vicuna(human: str) -> TemplatePieces:
    return TemplatePieces(
        meta_instruction=(
            f"A chat between a curious {human} and an artificial intelligence assistant. "
            f"The assistant gives helpful, detailed, and polite answers to the {human}'s questions."
        ),
        eosys=" ",
        user="USER: ",
        eoh=" ",
        assistant="ASSISTANT: ",
        eoa="</s>",
        stop_words=("</s>",),
        strips_blank=True,
    )


def _chatml(meta_instruction: str, stop_words: tuple[str, ...], *, line: str) -> TemplatePieces:
    """`line` is what stands behind each <|im_end|>."""
    return TemplatePieces(
        system="<|im_start|>system\n",
        meta_instruction=meta_instruction,
        eosys=f"<|im_end|>{line}",
        user="<|im_start|>user\n",
        eoh=f"<|im_end|>{line}",
        assistant="<|im_start|>assistant\n",
        eoa="<|im_end|>",
        separator=line,
        tool="<|im_start|>environment\n",
        eotool=f"<|im_end|>{line}",
        stop_words=stop_words,
    )


_VICUNA = _vicuna("user")
_MISTRAL = TemplatePieces(user="[INST] ", eoh=" [/INST]", eoa="</s>", stop_words=("</s>",))
_DIRECT = _chatml("Answer the questions.", ("<|im_end|>",), line="")
_INTERNLM_STOPS = ("<|im_end|>", "<|action_end|>")
_INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
# No line after <|end|>, as in the authors' code; Phi-3's tokenizer would drop one anyway.
_PHI3 = TemplatePieces(
    system="<|system|>\n",
    meta_instruction="You are an AI assistant whose name is Phi-3.",
    eosys="<|end|>",
    user="<|user|>\n",
    eoh="<|end|>",
    assistant="<|assistant|>\n",
    eoa="<|end|>",
    stop_words=("<|end|>", "<|endoftext|>", "<|assistant|>"),
)

TEMPLATES: dict[str, TemplatePieces] = {
    "base": TemplatePieces(),
    "vicuna": _VICUNA,
    "wizardlm": _VICUNA,
    "llava-v1": _vicuna("human"),
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    "llama2": TemplatePieces(
        system="[INST] <<SYS>>\n",
        meta_instruction=(
            "You are a helpful, respectful and honest assistant. Always answer as helpfully as "
            "possible, while being safe. Your answers should not include any harmful, unethical, "
            "racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
            "responses are socially unbiased and positive in nature.\n\n"
            "If a question does not make any sense, or is not factually coherent, explain why "
            "instead of answering something not correct. If you don't know the answer to a "
            "question, please don't share false information."
        ),
        eosys="\n<</SYS>>\n\n",
        assistant=" [/INST] ",
        eoa="</s>",
        separator="<s>[INST] ",
        stop_words=("</s>",),
    ),
    "llava-chatml": _DIRECT,
    "internvl-zh-hermes2": _DIRECT,
    "internvl2-internlm2": _chatml(_INTERNVL2, ("<|im_start|>", "<|im_end|>"), line=""),
    "internvl2_5": _chatml(
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
        _INTERNLM_STOPS,
        line="\n",
    ),
    "internvl-internlm2": _chatml(
        "You are an AI assistant whose name is InternLM (书生·浦语).", _INTERNLM_STOPS, line="\n"
    ),
    "internvl-phi3": _PHI3,
    "internvl2-phi3": replace(_PHI3, meta_instruction=_INTERNVL2),
}


class BuiltinTemplate:
    """Renders messages between fixed pieces of text."""

    def __init__(
        self,
        name: str,
        pieces: TemplatePieces,
        placement: ImagePlacement,
        *,
        is_completion: bool = False,
    ) -> None:
        """With `is_completion` a single message of a user is rendered with nothing around it."""
        self.stop_words = pieces.stop_words
        self._name = name
        self._pieces = pieces
        self._placement = placement
        self._is_completion = is_completion

    def render(
        self,
        messages: Iterable[Message],
        spelled: SpelledTokens,
        options: PromptOptions = _DEFAULTS,
    ) -> str:
        """Return the prompt's text, one image token an image. Variables of templates do nothing.

        Raises UnsupportedFeatureError if there are tools, for which no piece has a place.
        """
        if options.tools:
            raise UnsupportedFeatureError(f"chat template {self._name!r} has no place for tools")
        write = partial(self._write, add_prompt=options.add_generation_prompt)
        return spelled.render(write, messages, {})

    def _write(
        self, messages: Sequence[Message], variables: dict[str, Any], *, add_prompt: bool | None
    ) -> str:
        pieces = self._pieces
        if self._is_completion and [message.role for message in messages] == ["user"]:
            return self._placement.write(messages[0])
        around = {
            "system": (pieces.system, pieces.eosys),
            "user": (pieces.user, pieces.eoh),
            "assistant": (pieces.assistant, pieces.eoa + pieces.separator),
            "tool": (pieces.tool, pieces.eotool),
        }
        text = ""
        if messages[0].role != "system":
            text = pieces.system + pieces.meta_instruction + pieces.eosys
        for message in messages:
            before, behind = around[message.role]
            text += before + self._placement.write(message) + behind
        if add_prompt is None and messages[-1].role == "assistant":
            return text.removesuffix(pieces.eoa + pieces.separator)  # to be continued
        if add_prompt is False:
            return text
        text += pieces.assistant
        return text.removesuffix(" ") if pieces.strips_blank else text
