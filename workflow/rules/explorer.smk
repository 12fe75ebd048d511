# The page on which every latent can be looked at: one folder that opens from disk.

# What says where a latent comes back: from k to k, from layer to layer.
FATES = f"{R}/fates/layer={{layer}}/method={{method}}/seed={{seed}}.parquet"
CHAINS = f"{R}/chains/k={{k}}/method={{method}}/seed={{seed}}.parquet"


rule explorer_point:
    input:
        **RANKING,
        **EVIDENCE,
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        sae=f"{R}/sae/{P}/sae.safetensors",
        fates=[FATES] if len(GRID["ks"]) > 1 else [],
        chains=[CHAINS] if len(GRID["layers"]) > 1 else [],
    output:
        directory(f"{R}/explorer/data/{P}"),
    log:
        f"{R}/logs/explorer_point/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=settings(
            "explorer.point",
            device=config["device"],
            seeds=sorted(GRID["seeds"]),
            **config["explorer"],
        ),
    script:
        "../scripts/explorer_point.py"


rule explorer:
    input:
        points(f"{R}/explorer/data/{P}"),
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
        pixels=expand(f"{R}/pixels/shard={{shard}}.npy", shard=SHARDS),
        images=points(RANKING["images"]),
        metrics=points(EVALUATION["metrics"], [*METHODS, *BASELINES]),
        summaries=points(EVIDENCE["summary"], [*METHODS, *BASELINES]),
    output:
        page=f"{R}/explorer/index.html",
        app=directory(f"{R}/explorer/app"),
        pictures=directory(f"{R}/explorer/pictures"),
        grid=f"{R}/explorer/data/grid.js",
        images=f"{R}/explorer/data/images.js",
    log:
        f"{R}/logs/explorer.log",
    conda:
        ENV
    params:
        settings=settings(
            "explorer.page",
            web=content("sae/explorer/web"),
            name=config["name"],
            model=MODEL["name"],
            tokens=config["tokens"],
            methods=METHODS,
            baselines=BASELINES,
            **config["explorer"],
        ),
    script:
        "../scripts/explorer.py"
