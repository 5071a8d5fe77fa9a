"""The runner hands the engine's options on to the sampler."""

from pathlib import Path

import pytest
import torch

from tests.engine.runner.sequences import make_sequence
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.models.registry import read_config
from vlmflow_engine.plan import ScheduledSequence, StepPlan
from vlmflow_engine.runner.model_runner import ModelRunner


def first_logprobs(folder: Path, mode: str | None) -> torch.Tensor:
    """The values of the whole vocabulary at the first token of an answer, by id."""
    config = PytorchEngineConfig(
        dtype="float32", device_type="cpu", num_gpu_blocks=8, logprobs_mode=mode
    )
    normalisation = Normalisation(1 / 255, (0.5,) * 3, (0.5,) * 3)
    runner = ModelRunner(folder, read_config(folder), config, normalisation)
    sequence = make_sequence(do_sample=False, position=5, logprobs=10**6)
    sequence.block_ids = [0]
    plan = StepPlan(scheduled=[ScheduledSequence(sequence, 0, 5, is_sampled=True)])
    (token,) = runner.launch(plan).tokens()
    assert token.logprobs is not None
    values = [token.logprobs[token_id] for token_id in range(len(token.logprobs))]
    assert values[token.token_id] == max(values)
    return torch.tensor(values)


@pytest.mark.parametrize("mode", [None, "raw_logprobs"])
def test_logprobs_are_reported_as_the_engine_was_told(tiny_folder, mode):
    logits = first_logprobs(tiny_folder, "raw_logits")
    logprobs = first_logprobs(tiny_folder, mode)
    torch.testing.assert_close(logprobs, logits.log_softmax(dim=-1))
    assert (logits - logprobs).abs().min() > 0.1
