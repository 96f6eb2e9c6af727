"""What detection transformers share: the modules of the library `transformers`, queries, matching, losses."""
