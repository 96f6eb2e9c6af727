"""Other people's models under flyspeck's tiles: exported graphs in the layouts that are in use, and Python functions."""
