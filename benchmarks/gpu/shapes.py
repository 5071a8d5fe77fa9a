"""The models that are measured end to end: shapes of real ones, and toys for rehearsals."""

from dataclasses import dataclass
from typing import Any

QWEN, LLAVA = "qwen2_5_vl_7b", "llava_1_6_7b"
TOY_QWEN, TOY_LLAVA = "toy_qwen2_5_vl", "toy_llava_1_6"

Gemms = tuple[tuple[int, int], ...]  # (in, out) of a layer's products, those of one input merged


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a checkpoint is made of, as the fields of a transformers config say it."""

    name: str
    kind: str  # model_type of config.json
    text: dict[str, Any]
    vision: dict[str, Any]
    pinpoints: tuple[tuple[int, int], ...] = ()  # LLaVA-1.6's (height, width) for its tiles

    @property
    def head_dim(self) -> int:
        size: int = self.text["hidden_size"] // self.text["num_attention_heads"]
        return size

    @property
    def decoder_gemms(self) -> Gemms:
        hidden, inner = self.text["hidden_size"], self.text["intermediate_size"]
        heads, kv_heads = self.text["num_attention_heads"], self.text["num_key_value_heads"]
        return (
            (hidden, (heads + 2 * kv_heads) * self.head_dim),
            (heads * self.head_dim, hidden),
            (hidden, 2 * inner),
            (inner, hidden),
        )

    @property
    def vision_gemms(self) -> Gemms:
        width, inner = self.vision["hidden_size"], self.vision["intermediate_size"]
        first = 2 * inner if self.kind == "qwen2_5_vl" else inner  # gated, or not
        return ((width, 3 * width), (width, width), (width, first), (inner, width))

    @property
    def vision_layers(self) -> int:
        """Those that are computed: LLaVA takes the last but one's output."""
        if self.kind == "qwen2_5_vl":
            depth: int = self.vision["depth"]
            return depth
        return int(self.vision["num_hidden_layers"]) - 1

    @property
    def layer_bytes(self) -> int:
        """Of all decoder layers' matrices and the head's, in bfloat16: read in every step."""
        layer = sum(inputs * outputs for inputs, outputs in self.decoder_gemms)
        head = self.text["vocab_size"] * self.text["hidden_size"]
        return 2 * (int(self.text["num_hidden_layers"]) * layer + int(head))

    @property
    def kv_bytes_per_token(self) -> int:
        """Of a token's keys and values in all layers, in bfloat16."""
        layers, kv_heads = self.text["num_hidden_layers"], self.text["num_key_value_heads"]
        return 2 * 2 * int(layers) * int(kv_heads) * self.head_dim

    def vision_flops(self, side: int) -> float:
        """Flops of the tower for a square image, its projector's not counted."""
        rows, pairs = self._vision_tokens(side)
        products = sum(2 * inputs * outputs for inputs, outputs in self.vision_gemms)
        return float(rows * self.vision_layers * products + 4 * pairs * self.vision["hidden_size"])

    def _vision_tokens(self, side: int) -> tuple[int, int]:
        """Tokens of a layer, and pairs of tokens that see each other, over all layers."""
        if self.kind == "qwen2_5_vl":
            patches = (28 * round(side / 28) // 14) ** 2
            full = len(self.vision["fullatt_block_indexes"])
            window = (self.vision["window_size"] // 14) ** 2
            windowed = (self.vision_layers - full) * patches * min(window, patches)
            return patches, full * patches**2 + windowed
        tile = self.vision["image_size"]
        # A large square image takes the grid of 2 x 2 tiles; one of a tile's size takes one of two,
        # for there is none of one. The whole image is a tile more.
        tiles = 1 + (4 if side > tile else 2)
        tokens = (tile // self.vision["patch_size"]) ** 2 + 1
        return tiles * tokens, self.vision_layers * tiles * tokens**2


_PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # tiles


def _pinpoints(side: int) -> tuple[tuple[int, int], ...]:
    return tuple((side * rows, side * columns) for rows, columns in _PINPOINTS)


def _rope(*sections: int) -> dict[str, Any]:
    theta = {"rope_type": "default", "rope_theta": 1e6}
    return theta | {"mrope_section": list(sections)}


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape(
            name=QWEN,
            kind="qwen2_5_vl",
            text={
                "vocab_size": 152_064,
                "hidden_size": 3584,
                "intermediate_size": 18_944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32_768,
                "rms_norm_eps": 1e-6,
                "rope_parameters": _rope(16, 24, 24),
            },
            vision={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        ),
        ModelShape(
            name=LLAVA,
            kind="llava_next",
            text={
                "vocab_size": 32_064,
                "hidden_size": 4096,
                "intermediate_size": 11_008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
            vision={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
            pinpoints=_pinpoints(336),
        ),
        ModelShape(
            name=TOY_QWEN,
            kind="qwen2_5_vl",
            text={
                "vocab_size": 640,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-6,
                "rope_parameters": _rope(2, 3, 3),
            },
            vision={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 64,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
        ),
        ModelShape(
            name=TOY_LLAVA,
            kind="llava_next",
            text={
                "vocab_size": 640,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
            },
            vision={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 42,
                "patch_size": 14,
                "projection_dim": 32,
            },
            pinpoints=_pinpoints(42),
        ),
    )
}
