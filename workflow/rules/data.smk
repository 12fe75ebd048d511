# Images: drawn or found, listed, decoded once, and seen by the untouched ViT once.


rule concepts:
    output:
        directory(f"{R}/concepts"),
    log:
        f"{R}/logs/concepts.log",
    localrule: ELSEWHERE
    conda:
        ENV
    params:
        settings=rule_params("concepts.py", **config["concepts"]),
    script:
        "../scripts/concepts.py"


# Images and their splits, which is all that dictionaries depend on.
rule images:
    input:
        **CONCEPTS,
    output:
        f"{R}/images.parquet",
    log:
        f"{R}/logs/images.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params(
            "images.py",
            held_out=config["held_out"],
            limits=IMAGE_LIMITS,
        ),
        images=images_now("images"),
    script:
        "../scripts/images.py"


rule manifest:
    input:
        **CONCEPTS,
        images=f"{R}/images.parquet",
    output:
        f"{R}/manifest.parquet",
    log:
        f"{R}/logs/manifest.log",
    conda:
        ENV
    params:
        settings=rule_params("manifest.py"),
        labels=images_now("labels"),
    script:
        "../scripts/manifest.py"


rule pixels:
    input:
        **CONCEPTS,
        images=f"{R}/images.parquet",
    output:
        f"{R}/pixels/shard={{shard}}.npy",
    log:
        f"{R}/logs/pixels/shard={{shard}}.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params(
            "pixels.py",
            model=MODEL,
            shards=config["shards"],
        ),
    script:
        "../scripts/pixels.py"


rule reference:
    input:
        **CONCEPTS,
        manifest=f"{R}/manifest.parquet",
        pixels=PIXELS,
    output:
        **REFERENCE,
        **COVERAGE,
    log:
        f"{R}/logs/reference.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=rule_params(
            "reference.py",
            model=MODEL,
            embedding=EMBEDDING,
            batch=config["extraction"]["batch"],
            images=config["evaluation"]["images"],
        ),
        weights=weights_now(config["model"]),
        embedding_weights=weights_now(config["evidence"]["embedding"]),
    script:
        "../scripts/reference.py"


# Maintainers train the shipped ViT again with this rule; the script holds its settings.
rule backbone:
    output:
        directory(f"{R}/backbone"),
    log:
        f"{R}/logs/backbone.log",
    conda:
        ENV
    threads: 2
    resources:
        gpu=GPU,
    params:
        settings=rule_params("backbone.py"),
    script:
        "../scripts/backbone.py"
