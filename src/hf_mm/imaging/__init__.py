"""From any picture to what a model eats, and back: loading, overlapping crops, points, drawing."""
