"""What a detector looks at: Grad-CAM, attention of the pyramid's levels, similarity of two models."""
