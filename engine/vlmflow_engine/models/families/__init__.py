"""One file a family of models; `models.registry` lists them."""
