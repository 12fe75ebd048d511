# Figures and tables for people; each regenerates alone, as .svg or .png.


rule overview:
    input:
        manifest=f"{R}/manifest.parquet",
        reference=REFERENCE["reference"],
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
        settings=rule_params("overview.py", model=MODEL),
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
        settings=rule_params("statistics_figure.py"),
    script:
        "../scripts/statistics_figure.py"


rule layers_table:
    input:
        points(MEASURED["metrics"], [*METHODS, *BASELINES]),
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
        settings=rule_params("layers_table.py"),
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
        settings=rule_params("layers_figure.py"),
    script:
        "../scripts/layers_figure.py"


rule other_ks_figure:
    input:
        points(MEASURED["other_ks"]),
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
        settings=rule_params("other_ks_figure.py"),
    script:
        "../scripts/other_ks_figure.py"


rule layers:
    input:
        COMPARISONS,


rule latents_figure:
    input:
        manifest=f"{R}/manifest.parquet",
        pixels=PIXELS,
        reference=REFERENCE["reference"],
        codes=MEASURED["codes"],
        latents=RANKING["latents"],
        images=RANKING["images"],
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
        settings=rule_params("latents_figure.py", **config["report"]),
    script:
        "../scripts/latents_figure.py"


rule classes_figure:
    input:
        latents=RANKING["latents"],
        classes=RANKING["classes"],
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
        settings=rule_params("classes_figure.py", **config["report"]),
    script:
        "../scripts/classes_figure.py"


rule density_figure:
    input:
        RANKING["latents"],
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
        settings=rule_params("density_figure.py"),
    script:
        "../scripts/density_figure.py"


rule evidence_figures:
    input:
        latents=RANKING["latents"],
        monosemanticity=EVIDENCE["monosemanticity"],
        interventions=EVIDENCE["interventions"],
        effects=EVIDENCE["effects"],
        layer=LAYER["layer"],
        probes=lambda wildcards: expand(
            EVIDENCE["probes"],
            **{
                **wildcards,
                "method": list(dict.fromkeys([wildcards.method, *BASELINES])),
            },
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
        interventions=report(
            f"{R}/report/{P}/interventions.{{ending}}",
            caption="../report/interventions.rst",
            category="5 Evidence",
            subcategory=lambda wildcards: f"layer {pad(wildcards.layer)}",
            labels=lambda wildcards: figure_labels("3 interventions", wildcards),
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
        settings=rule_params("evidence_figures.py", baselines=BASELINES),
    script:
        "../scripts/evidence_figures.py"


rule across_ks_figure:
    input:
        ACROSS_KS,
    output:
        report(
            f"{R}/report/layer={{layer}}/across-ks-{{method}}-{{seed}}.{{ending}}",
            caption="../report/across_ks.rst",
            category="3 Layers compared",
            labels=lambda wildcards: {
                "figure": "latents from k to k",
                "layer": pad(wildcards.layer),
                "method": wildcards.method,
                "seed": pad(wildcards.seed),
            },
        ),
    log:
        f"{R}/logs/across_ks_figure/layer={{layer}}/{{method}}-{{seed}}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=rule_params("across_ks_figure.py"),
    script:
        "../scripts/across_ks_figure.py"


rule across_layers_figure:
    input:
        ACROSS_LAYERS,
    output:
        report(
            f"{R}/report/across-layers/k={{k}}-{{method}}-{{seed}}.{{ending}}",
            caption="../report/across_layers.rst",
            category="3 Layers compared",
            labels=lambda wildcards: {
                "figure": "latents from layer to layer",
                "k": pad(wildcards.k),
                "method": wildcards.method,
                "seed": pad(wildcards.seed),
            },
        ),
    log:
        f"{R}/logs/across_layers_figure/k={{k}}-{{method}}-{{seed}}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=rule_params("across_layers_figure.py", layers=sorted(GRID["layers"])),
    script:
        "../scripts/across_layers_figure.py"


rule conclusion:
    input:
        points(EVIDENCE["summary"], [*METHODS, *BASELINES]),
    output:
        page=report(
            f"{R}/report/conclusion.html",
            caption="../report/conclusion.rst",
            category="0 SAEs against baselines",
            labels={"figure": "the answer, with every number"},
        ),
        table=f"{R}/report/conclusion.csv",
        figure=report(
            f"{R}/report/conclusion.svg",
            caption="../report/conclusion.rst",
            category="0 SAEs against baselines",
            labels={"figure": "the numbers as a picture"},
        ),
    log:
        f"{R}/logs/conclusion.log",
    conda:
        ENV
    params:
        settings=rule_params(
            "conclusion.py",
            name=config["name"],
            methods=METHODS,
            baselines=BASELINES,
        ),
    script:
        "../scripts/conclusion.py"


rule training_figure:
    input:
        f"{R}/sae/{P}/training.csv",
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
        settings=rule_params("training_figure.py"),
    script:
        "../scripts/training_figure.py"
