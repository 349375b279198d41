"""What a model is worth: answers, points, tables of results. Models and processors are passed in."""
