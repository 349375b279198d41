"""Autoencoders: pictures to latents or codes and back."""
