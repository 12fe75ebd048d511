"""Runs in another library's environment, for test_libraries.py: `other_library.py <library> <folder> <load> <make>`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

WIDTH, LATENTS, K = 24, 120, 6


def load_saelens(folder: Path) -> torch.nn.Module:
    from sae_lens import SAE

    return SAE.load_from_disk(folder)


def load_sparsify(folder: Path) -> torch.nn.Module:
    from sparsify import SparseCoder

    return SparseCoder.load_from_disk(folder)


def codes(library: str, model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns latents and reconstructions as the library itself computes them."""
    if library == "saelens":
        z = model.encode(x)
        return z, model.decode(z)
    found = model.encode(x)
    z = torch.zeros(len(x), model.num_latents).scatter_(1, found.top_indices, found.top_acts)
    return z, model.decode(found.top_acts, found.top_indices)


def make_saelens(folder: Path, kind: str) -> torch.nn.Module:
    """Writes an SAE of random weights as SAELens saves it: an architecture, then an option after a hyphen."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

    name, _, option = kind.partition("-")
    shape = {"d_in": WIDTH, "d_sae": LATENTS, "apply_b_dec_to_input": option != "outside"}
    if option in ("layer_norm", "expected_average_only_in"):
        shape["normalize_activations"] = option
    if name == "topk":
        model = TopKSAE(TopKSAEConfig(k=K, rescale_acts_by_decoder_norm=option == "norms", **shape))
    elif name == "standard":
        model = StandardSAE(StandardSAEConfig(**shape))
    elif name == "jumprelu":
        model = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    else:
        model = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=K, rescale_acts_by_decoder_norm=True, **shape))
    filled(model)
    if name == "batchtopk":
        model.topk_threshold.fill_(1.5)
        model.save_inference_model(folder)
        return load_saelens(folder)
    model.cfg.metadata.hook_name = "blocks.3.hook_mlp_out" if option == "mlp" else "blocks.3.hook_resid_post"
    model.save_model(folder)
    return model


def make_sparsify(folder: Path, kind: str) -> torch.nn.Module:
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    options = {kind: True} if kind in ("transcode", "skip_connection") else {}
    activation = "groupmax" if kind == "groupmax" else "topk"
    model = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K, activation=activation, **options))
    filled(model)
    model.save_to_disk(folder)
    return model


def filled(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        if name == "threshold":
            parameter.data.abs_()


@torch.no_grad()
def main() -> None:
    library, folder, loaded, made = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
    load, make = {"saelens": (load_saelens, make_saelens), "sparsify": (load_sparsify, make_sparsify)}[library]
    x = torch.from_numpy(np.load(folder.parent / "x.npy"))
    places = {folder / "ours" / kind: None for kind in loaded} | {folder / "theirs" / kind: kind for kind in made}
    for place, kind in places.items():
        model = load(place) if kind is None else make(place, kind)
        if kind not in ("transcode", "skip_connection", "groupmax"):
            z, x_hat = codes(library, model, x)
            np.savez(place / "codes.npz", z=z.numpy(), x_hat=x_hat.numpy())


if __name__ == "__main__":
    main()
