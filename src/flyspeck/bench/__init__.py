"""Tables of measurements that anyone can run again: rows x seeds, trained one by one, with intervals and verdicts."""
