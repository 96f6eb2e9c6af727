"""Images of any size in, detections out; NumPy beyond the model."""
