"""Kubeflow pipelines on this machine, in containers: kfp.local, mended where it must be.

kfp.local 2.17 cannot run our pipelines as it is; on a cluster none of this is needed.
"""
