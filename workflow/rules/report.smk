# Figures and tables for people; each regenerates alone, as .svg or .png.


rule overview:
    input:
        manifest=f"{R}/manifest.parquet",
        model=f"{R}/model/model.json",
        pixels=f"{R}/pixels/shard={SHARDS[0]}.npy",
    output:
        report(
            f"{R}/report/overview.{{ending}}",
            caption="../report/overview.rst",
            category="1 Data and model",
            labels={"figure": "images and model"},
        ),
    log:
        f"{R}/logs/overview.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures", model=MODEL, shards=config["shards"]),
    script:
        "../scripts/overview.py"


rule statistics_figure:
    input:
        f"{R}/activations/layer={{layer}}/statistics.json",
    output:
        report(
            f"{R}/report/layer={{layer}}/statistics.{{ending}}",
            caption="../report/statistics.rst",
            category="2 Activations",
            labels=lambda wildcards: {
                "figure": "statistics",
                "layer": pad(wildcards.layer),
            },
        ),
    log:
        f"{R}/logs/statistics_figure/layer={{layer}}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures"),
    script:
        "../scripts/statistics_figure.py"


rule layers_table:
    input:
        points(f"{R}/metrics/{P}.parquet"),
    output:
        report(
            f"{R}/report/layers.csv",
            caption="../report/layers_table.rst",
            category="3 Layers compared",
            labels={"figure": "all numbers"},
        ),
    log:
        f"{R}/logs/layers_table.log",
    conda:
        ENV
    params:
        settings=settings("files"),
    script:
        "../scripts/layers_table.py"


rule layers_figure:
    input:
        f"{R}/report/layers.csv",
    output:
        report(
            f"{R}/report/layers.{{ending}}",
            caption="../report/layers.rst",
            category="3 Layers compared",
            labels={"figure": "layers"},
        ),
    log:
        f"{R}/logs/layers_figure.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures"),
    script:
        "../scripts/layers_figure.py"


rule other_ks_figure:
    input:
        points(f"{R}/other_ks/{P}.parquet"),
    output:
        report(
            f"{R}/report/other_ks.{{ending}}",
            caption="../report/other_ks.rst",
            category="3 Layers compared",
            labels={"figure": "at other k"},
        ),
    log:
        f"{R}/logs/other_ks_figure.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures"),
    script:
        "../scripts/other_ks_figure.py"


rule layers:
    input:
        f"{R}/report/layers.svg",
        f"{R}/report/layers.csv",
        f"{R}/report/other_ks.svg",


rule latents_figure:
    input:
        manifest=f"{R}/manifest.parquet",
        pixels=expand(f"{R}/pixels/shard={{shard}}.npy", shard=SHARDS),
        model=f"{R}/model/model.json",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        sae=f"{R}/sae/{P}/sae.safetensors",
        latents=f"{R}/ranking/{P}/latents.parquet",
        images=f"{R}/ranking/{P}/images.parquet",
    output:
        report(
            f"{R}/report/{P}/latents.{{ending}}",
            caption="../report/latents.rst",
            category="4 Latents",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("1 top images", wildcards),
        ),
    log:
        f"{R}/logs/latents_figure/{P}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings(
            "figures",
            ranking=code("ranking"),
            shards=config["shards"],
            **config["report"],
        ),
    script:
        "../scripts/latents_figure.py"


rule classes_figure:
    input:
        latents=f"{R}/ranking/{P}/latents.parquet",
        classes=f"{R}/ranking/{P}/classes.parquet",
    output:
        report(
            f"{R}/report/{P}/classes.{{ending}}",
            caption="../report/classes.rst",
            category="4 Latents",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("2 classes", wildcards),
        ),
    log:
        f"{R}/logs/classes_figure/{P}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures", **config["report"]),
    script:
        "../scripts/classes_figure.py"


rule density_figure:
    input:
        f"{R}/ranking/{P}/latents.parquet",
    output:
        report(
            f"{R}/report/{P}/density.{{ending}}",
            caption="../report/density.rst",
            category="4 Latents",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("3 density", wildcards),
        ),
    log:
        f"{R}/logs/density_figure/{P}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures"),
    script:
        "../scripts/density_figure.py"


rule training_figure:
    input:
        log=f"{R}/sae/{P}/training.csv",
        facts=f"{R}/sae/{P}/sae.json",
    output:
        report(
            f"{R}/report/{P}/training.{{ending}}",
            caption="../report/training.rst",
            category="5 Training",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("training curves", wildcards),
        ),
    log:
        f"{R}/logs/training_figure/{P}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("figures"),
    script:
        "../scripts/training_figure.py"
