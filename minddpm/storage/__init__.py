"""A model's folder, which diffusers opens: configurations as JSON, weights as safetensors, files written atomically."""
