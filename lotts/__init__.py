"""LoTTS: localised test-time scaling for diffusion models."""
