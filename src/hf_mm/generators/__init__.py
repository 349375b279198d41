"""Generators of pictures: one folder for each family, models and pipelines side by side."""
