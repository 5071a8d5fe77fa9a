"""Kubeflow's face of vlmflow: container components. Nothing here imports torch.

A component only declares: image, inputs, outputs. What runs in it is the `vlmflow` command, which
writes the outputs itself (`vlmflow.kfp_step`).
"""
