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
        **EVALUATION,
    log:
        f"{R}/logs/evaluate/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "points",
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
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        sae=f"{R}/sae/{P}/sae.safetensors",
        others=lambda wildcards: expand(
            f"{R}/sae/layer={{layer}}/k={{k}}/method={{method}}/seed={{other}}/sae.safetensors",
            other=other_seeds(wildcards.seed),
            **wildcards,
        ),
    output:
        **RANKING,
    log:
        f"{R}/logs/rank/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings("points", device=config["device"], **config["ranking"]),
    script:
        "../scripts/rank.py"


rule embed:
    input:
        manifest=f"{R}/manifest.parquet",
        pixels=expand(f"{R}/pixels/shard={{shard}}.npy", shard=SHARDS),
    output:
        features=f"{R}/embedding/features.npy",
        pixels=f"{R}/embedding/pixels.npy",
    log:
        f"{R}/logs/embed.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "evidence.monosemanticity",
            model=EMBEDDING,
            device=config["device"],
            batch=config["extraction"]["batch"],
        ),
    script:
        "../scripts/embed.py"


rule cover:
    input:
        f"{R}/concepts",
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
    output:
        f"{R}/concepts-cover.npy",
    log:
        f"{R}/logs/cover.log",
    conda:
        ENV
    params:
        settings=settings(
            "concepts", name=MODEL["name"], image_size=MODEL["image_size"]
        ),
    script:
        "../scripts/cover.py"


rule evidence:
    input:
        **RANKING,
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        sae=f"{R}/sae/{P}/sae.safetensors",
        other=lambda wildcards: expand(
            f"{R}/sae/layer={{layer}}/k={{k}}/method={{method}}/seed={{other}}/sae.safetensors",
            other=other_seeds(wildcards.seed)[0],
            **wildcards,
        ),
        embedding=rules.embed.output,
        cover=COVER,
    output:
        **EVIDENCE,
    log:
        f"{R}/logs/evidence/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "points", model=MODEL, device=config["device"], **config["evidence"]
        ),
    script:
        "../scripts/evidence.py"


if BASELINES:

    # All baselines of a point in one job: importing torch and timm takes longer than making one of them.
    rule baselines:
        input:
            manifest=f"{R}/manifest.parquet",
            model=f"{R}/model/model.json",
            logits=f"{R}/model/logits.npy",
            statistics=f"{R}/activations/layer={{layer}}/statistics.json",
            shards=expand(
                f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy",
                shard=SHARDS,
            ),
            embedding=rules.embed.output,
            cover=COVER,
        output:
            **{
                name: expand(path, method=BASELINES, allow_missing=True)
                for name, path in (SAE | RANKING | EVIDENCE | EVALUATION).items()
            },
        log:
            f"{R}/logs/baselines/layer={{layer}}/k={{k}}/seed={{seed}}.log",
        conda:
            ENV
        threads: THREADS
        resources:
            gpu=GPU,
        params:
            settings=settings(
                "points",
                methods=BASELINES,
                model=MODEL,
                tokens=config["tokens"],
                expansion=config["sae"]["expansion"],
                training=config["training"],
                ranking=config["ranking"],
                evidence=config["evidence"],
                device=config["device"],
                batch=config["extraction"]["batch"],
                ks=config["evaluation"]["ks"],
                seeds=GRID["seeds"],
            ),
        script:
            "../scripts/baselines.py"


rule fates:
    input:
        model=f"{R}/model/model.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        saes=expand(
            f"{R}/sae/{P}/sae.safetensors", k=sorted(GRID["ks"]), allow_missing=True
        ),
    output:
        f"{R}/fates/layer={{layer}}/method={{method}}/seed={{seed}}.parquet",
    log:
        f"{R}/logs/fates/layer={{layer}}/method={{method}}/seed={{seed}}.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "evidence.matching", ks=sorted(GRID["ks"]), device=config["device"]
        ),
    script:
        "../scripts/fates.py"


rule chains:
    input:
        model=f"{R}/model/model.json",
        shards=expand(
            f"{R}/activations/layer={{layer}}/shard={{shard}}.npy",
            layer=sorted(GRID["layers"]),
            shard=SHARDS,
        ),
        saes=expand(
            f"{R}/sae/{P}/sae.safetensors",
            layer=sorted(GRID["layers"]),
            allow_missing=True,
        ),
    output:
        f"{R}/chains/k={{k}}/method={{method}}/seed={{seed}}.parquet",
    log:
        f"{R}/logs/chains/k={{k}}/method={{method}}/seed={{seed}}.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "evidence.matching", layers=sorted(GRID["layers"]), device=config["device"]
        ),
    script:
        "../scripts/chains.py"
