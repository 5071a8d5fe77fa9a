"""The parts that models are built from. Plain objects over tensors, inference only."""
