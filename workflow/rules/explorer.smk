# The explorer, a page for every latent: one folder that opens from disk.


rule explorer_point:
    input:
        **RANKING,
        **EVIDENCE,
        manifest=f"{R}/manifest.parquet",
        reference=REFERENCE["reference"],
        codes=MEASURED["codes"],
        estimates=MEASURED["attributions"],
        sae=SAE["sae"],
        across_ks=[ACROSS_KS] if len(GRID["ks"]) > 1 else [],
        across_layers=[ACROSS_LAYERS] if len(GRID["layers"]) > 1 else [],
        edges=[EDGES] if len(GRID["layers"]) > 1 else [],
    output:
        directory(f"{R}/explorer/data/{P}"),
    log:
        f"{R}/logs/explorer_point/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    localrule: ELSEWHERE
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params(
            "explorer_point.py",
            tokens=config["tokens"],
            seeds=sorted(SEEDS),
            **config["explorer"],
        ),
    script:
        "../scripts/explorer_point.py"


rule explorer:
    input:
        points(f"{R}/explorer/data/{P}"),
        manifest=f"{R}/manifest.parquet",
        reference=REFERENCE["reference"],
        pixels=PIXELS,
        images=points(RANKING["images"]),
        metrics=points(MEASURED["metrics"], [*METHODS, *BASELINES]),
        summaries=points(EVIDENCE["summary"], [*METHODS, *BASELINES]),
    output:
        page=f"{R}/explorer/index.html",
        app=directory(f"{R}/explorer/app"),
        pictures=directory(f"{R}/explorer/pictures"),
        grid=f"{R}/explorer/data/grid.js",
        images=f"{R}/explorer/data/images.js",
    log:
        f"{R}/logs/explorer.log",
    localrule: ELSEWHERE
    conda:
        ENV
    params:
        settings=rule_params(
            "explorer.py",
            name=config["name"],
            model=MODEL["name"],
            tokens=config["tokens"],
            methods=METHODS,
            baselines=BASELINES,
            **config["explorer"],
        ),
    script:
        "../scripts/explorer.py"


# A page about an image outside the experiment: snakemake look --config image=cat.jpg
if config["image"]:

    rule look:
        input:
            **REFERENCE,
            manifest=f"{R}/manifest.parquet",
            pixels=PIXELS,
            statistics=expand(
                f"{R}/activations/layer={{layer}}/statistics.json",
                layer=GRID["layers"],
            ),
            saes=points(SAE["sae"]),
            facts=points(SAE["facts"]),
            codes=points(MEASURED["codes"]),
            latents=points(RANKING["latents"]),
            explorer=f"{R}/explorer/index.html",
        output:
            f"{R}/look/{page_name(config['image'])}",
        log:
            f"{R}/logs/look/{page_name(config['image'])}.log",
        conda:
            ENV
        threads: THREADS
        params:
            image=lambda wildcards: config["image"],
            content=lambda wildcards: _now("image", config["image"]),
            settings=rule_params("look.py"),
        script:
            "../scripts/look.py"

else:

    rule look:
        input:
            lambda wildcards: sys.exit(
                "error: look needs an image: snakemake --cores 1 look --config image=cat.jpg"
            ),
