"""The page on which every latent can be looked at: one folder that opens from disk, without a server or a network."""
