# The residual stream of each layer, and the values that depend on the layer alone.


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
        settings=rule_params(
            "extract.py",
            model=MODEL,
            shards=config["shards"],
            device=config["device"],
            **config["extraction"],
        ),
    script:
        "../scripts/extract.py"


rule statistics:
    input:
        **STORE,
        manifest=f"{R}/manifest.parquet",
    output:
        f"{R}/activations/layer={{layer}}/statistics.json",
    log:
        f"{R}/logs/statistics/layer={{layer}}.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params("statistics.py", tokens=config["tokens"]),
    script:
        "../scripts/statistics.py"


rule layer:
    input:
        **STORE,
        manifest=f"{R}/manifest.parquet",
        reference=REFERENCE["reference"],
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
    output:
        **LAYER,
    log:
        f"{R}/logs/layer/layer={{layer}}.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=rule_params(
            "layer.py",
            model=MODEL,
            device=config["device"],
            batch=config["extraction"]["batch"],
            expansion=config["sae"]["expansion"],
        ),
    script:
        "../scripts/layer.py"
