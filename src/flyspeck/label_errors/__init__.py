"""Which annotations of a data set are likely wrong, by the held-out opinion of a detector."""
