"""Videos and live streams: frames with their times, tracks, an annotated video, counts and stills."""
