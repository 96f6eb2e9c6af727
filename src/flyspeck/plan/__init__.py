"""From annotated images to a detector: what the data are like, what follows from it, and the trainings that decide the rest."""
