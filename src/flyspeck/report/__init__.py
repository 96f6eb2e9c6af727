"""Tables, figures, one HTML file."""
