# One SAE per grid point.


rule train:
    input:
        manifest=f"{R}/manifest.parquet",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
    output:
        weights=f"{R}/sae/{P}/sae.safetensors",
        facts=f"{R}/sae/{P}/sae.json",
        log=f"{R}/sae/{P}/training.csv",
    log:
        f"{R}/logs/train/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        # No output: Snakemake deletes those of a job that failed, and from this one an interrupted training goes on.
        checkpoint=f"{R}/checkpoints/{P}.safetensors",
        settings=settings(
            "training",
            sae=config["sae"],
            training=config["training"],
            tokens=config["tokens"],
            device=config["device"],
        ),
    script:
        "../scripts/train.py"


rule train_all:
    input:
        points(f"{R}/sae/{P}/sae.safetensors"),
