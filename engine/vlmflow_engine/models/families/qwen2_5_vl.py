"""Qwen2.5-VL in Hugging Face form: Qwen2-VL, but most layers of the tower see windows."""

from vlmflow_engine.models.families.qwen2_vl import Qwen2VLFamily


class Qwen25VLFamily(Qwen2VLFamily):
    name = "Qwen2.5-VL"
    architectures = ("Qwen2_5_VLForConditionalGeneration",)
    checkpoints = "Qwen/Qwen2.5-VL-*-Instruct"
