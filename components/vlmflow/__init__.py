"""vlmflow: vision-language models over a manifest, as a step of a workflow."""

__version__ = "0.1.0"
