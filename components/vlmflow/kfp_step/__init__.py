"""A step of a Kubeflow pipeline, as the process in its container sees it.

What it is asked, and what it leaves behind. There is no kfp here, for there is none in the image.
"""
