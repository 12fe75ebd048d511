"""The evidence for and against latents. Each module measures one kind, beside its value by chance."""
