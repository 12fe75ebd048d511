"""The explorer, a page for every latent: one folder that opens from disk, without a server or a network."""
