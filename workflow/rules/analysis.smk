# What each SAE reconstructs, what the ViT still sees through it, and what its latents respond to.


rule evaluate:
    input:
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
        logits=f"{R}/model/logits.npy",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        sae=f"{R}/sae/{P}/sae.safetensors",
    output:
        metrics=f"{R}/metrics/{P}.parquet",
        other_ks=f"{R}/other_ks/{P}.parquet",
    log:
        f"{R}/logs/evaluate/{P}.log",
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
            ks=config["evaluation"]["ks"],
        ),
    script:
        "../scripts/evaluate.py"


rule rank:
    input:
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        sae=f"{R}/sae/{P}/sae.safetensors",
    output:
        latents=f"{R}/ranking/{P}/latents.parquet",
        images=f"{R}/ranking/{P}/images.parquet",
        classes=f"{R}/ranking/{P}/classes.parquet",
    log:
        f"{R}/logs/rank/{P}.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings("ranking", device=config["device"], **config["ranking"]),
    script:
        "../scripts/rank.py"
