# The residual stream of each layer, and what a person should know of it before training.


rule extract:
    input:
        manifest=f"{R}/manifest.parquet",
        pixels=f"{R}/pixels/shard={{shard}}.npy",
    output:
        tokens=f"{R}/activations/layer={{layer}}/shard={{shard}}.npy",
        facts=f"{R}/activations/layer={{layer}}/shard={{shard}}.json",
    log:
        f"{R}/logs/extract/layer={{layer}}/shard={{shard}}.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "extraction",
            model=MODEL,
            shards=config["shards"],
            device=config["device"],
            **config["extraction"],
        ),
    script:
        "../scripts/extract.py"


rule statistics:
    input:
        manifest=f"{R}/manifest.parquet",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
    output:
        f"{R}/activations/layer={{layer}}/statistics.json",
    log:
        f"{R}/logs/statistics/layer={{layer}}.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=settings("activations", tokens=config["tokens"]),
    script:
        "../scripts/statistics.py"
