# Images: drawn or found, listed, decoded once, and seen by the untouched model.


rule concepts:
    output:
        directory(f"{R}/concepts"),
    log:
        f"{R}/logs/concepts.log",
    conda:
        ENV
    params:
        settings=settings("concepts", **config["concepts"]),
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
        settings=settings(
            "images",
            folder=IMAGES,
            labels=LABELS,
            held_out=config["held_out"],
            listing=folder_listing(),
        ),
    script:
        "../scripts/manifest.py"


rule pixels:
    input:
        manifest=f"{R}/manifest.parquet",
    output:
        f"{R}/pixels/shard={{shard}}.npy",
    log:
        f"{R}/logs/pixels/shard={{shard}}.log",
    conda:
        ENV
    threads: THREADS
    params:
        settings=settings(
            "images",
            folder=IMAGES,
            model=MODEL["name"],
            image_size=MODEL["image_size"],
            shards=config["shards"],
            vit=code("vit"),
        ),
    script:
        "../scripts/pixels.py"


rule model:
    input:
        manifest=f"{R}/manifest.parquet",
        pixels=expand(f"{R}/pixels/shard={{shard}}.npy", shard=SHARDS),
    output:
        logits=f"{R}/model/logits.npy",
        facts=f"{R}/model/model.json",
    log:
        f"{R}/logs/model.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "faithfulness",
            model=MODEL,
            device=config["device"],
            batch=config["extraction"]["batch"],
            images=config["evaluation"]["images"],
        ),
    script:
        "../scripts/model.py"


rule backbone:
    output:
        directory(f"{R}/backbone"),
    log:
        f"{R}/logs/backbone.log",
    conda:
        ENV
    threads: workflow.cores or 1
    resources:
        gpu=GPU,
    params:
        settings=settings("backbone", device=config["device"], **config["backbone"]),
    script:
        "../scripts/backbone.py"
