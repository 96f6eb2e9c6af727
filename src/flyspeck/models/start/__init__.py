"""Where a detector's weights begin: sources, what fits of them, and a report of every tensor."""
