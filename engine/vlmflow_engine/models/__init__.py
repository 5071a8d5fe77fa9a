"""Model families, one file each: built from `layers`, loaded from a checkpoint's own tensors."""
