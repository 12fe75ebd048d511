# The residual stream of each layer, and the values that depend on the layer alone.


rule extract:
    input:
        images=f"{R}/images.parquet",
        pixels=f"{R}/pixels/shard={{shard}}.npy",
    output:
        **DRAWN,
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
            limits=LIMITS,
            **config["extraction"],
        ),
        weights=weights_now(config["model"]),
    script:
        "../scripts/extract.py"


rule statistics:
    input:
        **TRAINING,
        whole=STORE["shards"],
        images=f"{R}/images.parquet",
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
        **GRADIENTS,
        **PAIRS,
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
            batch=config["extraction"]["batch"],
            expansion=config["sae"]["expansion"],
            concepts=config["concepts"] if BUILT_IN else None,
        ),
    script:
        "../scripts/layer.py"
