"""May a researcher believe a latent? Each module measures one kind of evidence, beside what chance gives."""
