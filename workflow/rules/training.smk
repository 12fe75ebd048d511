# Dictionaries: an SAE per grid point and seed, and the baselines beside it.


rule train:
    input:
        **TRAINING,
        images=f"{R}/images.parquet",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
    output:
        **SAE,
        log=f"{R}/sae/{P}/training.csv",
    log:
        f"{R}/logs/train/{P}.log",
    wildcard_constraints:
        method="|".join([*TRAINED, *LEARNT]),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        # Not an output: Snakemake deletes the outputs of a failed job, and an interrupted training continues from this.
        checkpoint=f"{RESULTS}/checkpoints/{P}.safetensors",
        settings=rule_params(
            "train.py",
            sae=config["sae"],
            training=config["training"],
            tokens=config["tokens"],
        ),
    script:
        "../scripts/train.py"


rule train_all:
    input:
        points(SAE["sae"]),


if "imported" in METHODS:

    rule imported:
        input:
            **TRAINING,
            images=f"{R}/images.parquet",
        output:
            **SAE,
        log:
            f"{R}/logs/imported/{P}.log",
        wildcard_constraints:
            method="imported",
        conda:
            ENV
        threads: THREADS
        params:
            content=imported_now,
            settings=rule_params(
                "imported.py",
                tokens=config["tokens"],
                baselines=bool(BASELINES),
                expansion=config["sae"]["expansion"],
            ),
        script:
            "../scripts/imported.py"


# The part of the baselines that does not depend on k.
rule directions:
    input:
        **TRAINING,
        images=f"{R}/images.parquet",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
    output:
        f"{R}/directions/layer={{layer}}/seed={{seed}}.safetensors",
    log:
        f"{R}/logs/directions/layer={{layer}}/seed={{seed}}.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params(
            "directions.py",
            methods=BUILT,
            tokens=config["tokens"],
            expansion=config["sae"]["expansion"],
        ),
    script:
        "../scripts/directions.py"


if BUILT:

    rule baselines:
        input:
            **TRAINING,
            images=f"{R}/images.parquet",
            directions=f"{R}/directions/layer={{layer}}/seed={{seed}}.safetensors",
            statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        output:
            **of_methods(SAE, BUILT),
        log:
            f"{R}/logs/baselines/layer={{layer}}/k={{k}}/seed={{seed}}.log",
        conda:
            ENV
        threads: THREADS
        params:
            settings=rule_params("baselines.py", methods=BUILT, tokens=config["tokens"]),
        script:
            "../scripts/baselines.py"
