# Figures and tables for people; each regenerates alone, as .svg or .png.


rule overview:
    input:
        manifest=f"{R}/manifest.parquet",
        reference=REFERENCE["reference"],
        pixels=f"{R}/pixels/shard={SHARDS[0]}.npy",
    output:
        shown(f"{R}/report/overview.{{ending}}", "1 Data and model", "images and model"),
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
        shown(
            f"{R}/report/layer={{layer}}/statistics.{{ending}}",
            "2 Activations",
            "statistics",
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
        shown(
            f"{R}/report/layers.csv",
            "3 Layers compared",
            "all numbers",
            caption="layers_table",
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
        shown(f"{R}/report/layers.{{ending}}", "3 Layers compared", "layers"),
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
        shown(f"{R}/report/other_ks.{{ending}}", "3 Layers compared", "at other k"),
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
        shown(f"{R}/report/{P}/latents.{{ending}}", "4 Latents", "1 top images"),
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
        shown(f"{R}/report/{P}/classes.{{ending}}", "4 Latents", "2 classes"),
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
        shown(f"{R}/report/{P}/density.{{ending}}", "4 Latents", "3 density"),
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
        stability=shown(
            f"{R}/report/{P}/stability.{{ending}}", "5 Evidence", "1 other seeds"
        ),
        probes=shown(
            f"{R}/report/{P}/probes.{{ending}}", "5 Evidence", "2 sparse probes"
        ),
        interventions=shown(
            f"{R}/report/{P}/interventions.{{ending}}", "5 Evidence", "3 interventions"
        ),
        monosemanticity=shown(
            f"{R}/report/{P}/monosemanticity.{{ending}}",
            "5 Evidence",
            "4 monosemanticity",
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
        shown(
            f"{R}/report/layer={{layer}}/across-ks-{{method}}-{{seed}}.{{ending}}",
            "3 Layers compared",
            "latents from k to k",
            caption="across_ks",
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
        shown(
            f"{R}/report/across-layers/k={{k}}-{{method}}-{{seed}}.{{ending}}",
            "3 Layers compared",
            "latents from layer to layer",
            caption="across_layers",
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
        manifest=f"{R}/manifest.parquet",
        latents=points(RANKING["latents"]),
        summaries=points(EVIDENCE["summary"], [*METHODS, *BASELINES]),
    output:
        page=shown(
            f"{R}/report/conclusion.html",
            "0 SAEs against baselines",
            "the answer, with every number",
        ),
        table=f"{R}/report/conclusion.csv",
        points=f"{R}/report/grid_points.csv",
        figure=shown(
            f"{R}/report/conclusion.svg",
            "0 SAEs against baselines",
            "the numbers as a picture",
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
        shown(f"{R}/report/{P}/training.{{ending}}", "6 Training", "training curves"),
    log:
        f"{R}/logs/training_figure/{P}.{{ending}}.log",
    conda:
        ENV
    params:
        settings=rule_params("training_figure.py"),
    script:
        "../scripts/training_figure.py"
