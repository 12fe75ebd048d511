# Images: drawn or found, listed, decoded once, and seen by the untouched ViT once.


rule concepts:
    output:
        directory(f"{R}/concepts"),
    log:
        f"{R}/logs/concepts.log",
    conda:
        ENV
    params:
        settings=rule_params("concepts.py", **config["concepts"]),
    script:
        "../scripts/concepts.py"


rule manifest:
    input:
        [f"{R}/concepts"] if BUILT_IN else [],
    output:
        f"{R}/manifest.parquet",
    log:
        f"{R}/logs/manifest.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params(
            "manifest.py", folder=IMAGES, labels=LABELS, held_out=config["held_out"]
        ),
        listing=folder_listing,
    script:
        "../scripts/manifest.py"


rule pixels:
    input:
        [f"{R}/concepts"] if BUILT_IN else [],
        manifest=f"{R}/manifest.parquet",
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
            folder=IMAGES,
            model=MODEL["name"],
            image_size=MODEL["image_size"],
            shards=config["shards"],
        ),
    script:
        "../scripts/pixels.py"


rule reference:
    input:
        [f"{R}/concepts"] if BUILT_IN else [],
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
            embedding=config["evidence"]["embedding"],
            device=config["device"],
            batch=config["extraction"]["batch"],
            images=config["evaluation"]["images"],
        ),
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
        settings=rule_params("backbone.py", device=config["device"]),
    script:
        "../scripts/backbone.py"
