"""The size and kind of a Qwen vision tower, read from either version's config and checked."""

from dataclasses import dataclass
from typing import Any

from vlmflow_engine.checks import is_whole
from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.mlp import activation

# model_type of vision_config
_QWEN2, _QWEN2_5 = "qwen2_vl_vision", "qwen2_5_vl_vision"


@dataclass(frozen=True, slots=True, kw_only=True)
class VitShape:
    """What the tower is built of."""

    depth: int
    width: int
    inner: int  # of the MLP
    num_heads: int
    out: int  # of the merger, the decoder's hidden_size
    patch_size: int  # pixels
    frames: int  # that a patch reaches over in time; an image fills them all
    merge_size: int  # a unit is merge_size x merge_size patches, and becomes one embedding row
    rope_theta: float
    act: str
    is_gated: bool  # Qwen2.5: gated MLP and RMSNorm; Qwen2: neither
    window: int | None  # side in units that most layers see; None: all layers see the whole image
    full_layers: frozenset[int]  # those that see the whole image all the same

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


def read_shape(config: Any) -> VitShape:
    """Read `vision_config` of transformers' config. Raises ModelError."""
    vision = config.vision_config
    kind = vision.model_type
    if kind not in (_QWEN2, _QWEN2_5):
        raise ModelError(
            f"a Qwen-VL checkpoint with a vision model of type {kind!r} is not supported: only "
            f"{_QWEN2!r} and {_QWEN2_5!r} are"
        )
    is_gated = kind == _QWEN2_5
    patch_size, merge_size = _count(vision, "patch_size"), _count(vision, "spatial_merge_size")
    width = _count(vision, "hidden_size" if is_gated else "embed_dim")
    shape = VitShape(
        depth=_count(vision, "depth"),
        width=width,
        inner=(
            _count(vision, "intermediate_size") if is_gated else width * _count(vision, "mlp_ratio")
        ),
        num_heads=_count(vision, "num_heads"),
        out=_count(vision, "out_hidden_size" if is_gated else "hidden_size"),
        patch_size=patch_size,
        frames=_count(vision, "temporal_patch_size"),
        merge_size=merge_size,
        rope_theta=_rope_theta(vision),
        act=vision.hidden_act,
        is_gated=is_gated,
        window=_count(vision, "window_size") // merge_size // patch_size if is_gated else None,
        full_layers=frozenset(vision.fullatt_block_indexes) if is_gated else frozenset(),
    )
    _check(shape, vision, config.text_config.hidden_size)
    return shape


def _check(shape: VitShape, vision: Any, hidden_size: int) -> None:
    activation(shape.act)
    if shape.width % (4 * shape.num_heads):
        raise ModelError(
            f"vision_config: a width of {shape.width} in {shape.num_heads} heads is not a multiple "
            "of 4 for each, as rotation by row and column asks"
        )
    if vision.in_channels != 3:
        raise ModelError(f"vision_config: in_channels is 3, got {vision.in_channels!r}")
    if shape.out != hidden_size:
        raise ModelError(
            f"vision_config: the tower's output is {shape.out} wide, the decoder takes "
            f"{hidden_size}"
        )
    if shape.window == 0:
        raise ModelError(
            f"vision_config: window_size {vision.window_size} is less than one unit of "
            f"{shape.patch_size * shape.merge_size} pixels"
        )


def _count(vision: Any, name: str) -> int:
    value = getattr(vision, name)
    if not is_whole(value) or value < 1:
        raise ModelError(
            f"vision_config: {name} must be a whole number of at least 1, got {value!r}"
        )
    return int(value)


def _rope_theta(vision: Any) -> float:
    parameters = vision.rope_parameters or {}
    kind, theta = parameters.get("rope_type", "axial"), parameters.get("rope_theta", 10000.0)
    if kind != "axial":
        raise ModelError(f"vision_config: rope_type {kind!r} is not supported, only 'axial' is")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta < 1e30:
        raise ModelError(f"vision_config: rope_theta must be a number above 1, got {theta!r}")
    return float(theta)
