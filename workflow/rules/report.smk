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
        points(f"{R}/metrics/{P}.parquet", [*METHODS, *BASELINES]),
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
        table=f"{R}/report/layers.csv",
        summaries=points(EVIDENCE["summary"]),
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
        settings=settings("grid_figures"),
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
        settings=settings("grid_figures"),
    script:
        "../scripts/other_ks_figure.py"


rule layers:
    input:
        COMPARISONS,


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


rule evidence_figures:
    input:
        latents=f"{R}/ranking/{P}/latents.parquet",
        scores=f"{R}/evidence/{P}/scores.parquet",
        causes=f"{R}/evidence/{P}/causes.parquet",
        effects=f"{R}/evidence/{P}/effects.parquet",
        manifest=f"{R}/manifest.parquet",
        shards=expand(
            f"{R}/activations/layer={{{{layer}}}}/shard={{shard}}.npy", shard=SHARDS
        ),
        probes=lambda wildcards: expand(
            f"{R}/evidence/layer={{layer}}/k={{k}}/method={{either}}/seed={{seed}}/probes.parquet",
            either=list(dict.fromkeys([wildcards.method, *BASELINES])),
            layer=wildcards.layer,
            k=wildcards.k,
            seed=wildcards.seed,
        ),
    output:
        stability=report(
            f"{R}/report/{P}/stability.{{ending}}",
            caption="../report/stability.rst",
            category="5 Evidence",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("1 other seeds", wildcards),
        ),
        probes=report(
            f"{R}/report/{P}/probes.{{ending}}",
            caption="../report/probes.rst",
            category="5 Evidence",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("2 sparse probes", wildcards),
        ),
        causes=report(
            f"{R}/report/{P}/causes.{{ending}}",
            caption="../report/causes.rst",
            category="5 Evidence",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("3 causes", wildcards),
        ),
        monosemanticity=report(
            f"{R}/report/{P}/monosemanticity.{{ending}}",
            caption="../report/monosemanticity.rst",
            category="5 Evidence",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("4 monosemanticity", wildcards),
        ),
    log:
        f"{R}/logs/evidence_figures/{P}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings(
            "evidence.matching",
            tokens=config["tokens"],
            baselines=BASELINES,
            matching=code("evidence.matching_figures"),
            probing=code("evidence.probing_figures"),
            causality=code("evidence.causality_figures"),
        ),
    script:
        "../scripts/evidence_figures.py"


rule fates_figure:
    input:
        f"{R}/fates/layer={{layer}}/method={{method}}/seed={{seed}}.parquet",
    output:
        report(
            f"{R}/report/layer={{layer}}/fates-{{method}}-{{seed}}.{{ending}}",
            caption="../report/fates.rst",
            category="3 Layers compared",
            labels=lambda wildcards: {
                "figure": "latents from k to k",
                "layer": pad(wildcards.layer),
                "method": wildcards.method,
                "seed": pad(wildcards.seed),
            },
        ),
    log:
        f"{R}/logs/fates_figure/layer={{layer}}/{{method}}-{{seed}}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("evidence.matching_figures"),
    script:
        "../scripts/fates_figure.py"


rule chains_figure:
    input:
        f"{R}/chains/k={{k}}/method={{method}}/seed={{seed}}.parquet",
    output:
        report(
            f"{R}/report/chains/k={{k}}-{{method}}-{{seed}}.{{ending}}",
            caption="../report/chains.rst",
            category="3 Layers compared",
            labels=lambda wildcards: {
                "figure": "latents from layer to layer",
                "k": pad(wildcards.k),
                "method": wildcards.method,
                "seed": pad(wildcards.seed),
            },
        ),
    log:
        f"{R}/logs/chains_figure/k={{k}}-{{method}}-{{seed}}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=settings("evidence.matching_figures", layers=sorted(GRID["layers"])),
    script:
        "../scripts/chains_figure.py"


rule conclusion:
    input:
        points(f"{R}/evidence/{P}/summary.parquet", [*METHODS, *BASELINES]),
    output:
        page=report(
            f"{R}/report/conclusion.html",
            caption="../report/conclusion.rst",
            category="0 What an SAE buys here",
            labels={"figure": "the answer, with every number"},
        ),
        table=f"{R}/report/conclusion.csv",
        figure=report(
            f"{R}/report/conclusion.svg",
            caption="../report/conclusion.rst",
            category="0 What an SAE buys here",
            labels={"figure": "the numbers as a picture"},
        ),
    log:
        f"{R}/logs/conclusion.log",
    conda:
        ENV
    params:
        settings=settings(
            "evidence.conclusion",
            name=config["name"],
            methods=METHODS,
            baselines=BASELINES,
        ),
    script:
        "../scripts/conclusion.py"


rule training_figure:
    input:
        log=f"{R}/sae/{P}/training.csv",
        facts=f"{R}/sae/{P}/sae.json",
    output:
        report(
            f"{R}/report/{P}/training.{{ending}}",
            caption="../report/training.rst",
            category="6 Training",
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
