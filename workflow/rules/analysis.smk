# The codes of each dictionary, measured once, and the evidence from them.
# Baselines take the same scripts as SAEs, those of a grid point together.


rule measure:
    input:
        **SAE,
        **STORE,
        **REFERENCE,
        **LAYER,
        **GRADIENTS,
        **PAIRS,
        manifest=f"{R}/manifest.parquet",
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
    output:
        **MEASURED,
    log:
        f"{R}/logs/measure/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
        seed="|".join(map(str, SEEDS)),
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=rule_params("measure.py", keep_all=True, **MEASURING),
    script:
        "../scripts/measure.py"


# A seed outside the grid serves stability alone: its codes on the held-out sample are enough.
rule measure_second_seed:
    input:
        **SAE,
        **STORE,
        reference=REFERENCE["reference"],
        statistics=f"{R}/activations/layer={{layer}}/statistics.json",
    output:
        codes=MEASURED["codes"],
    log:
        f"{R}/logs/measure_second_seed/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
        seed="|".join(map(str, SECOND_SEEDS)) or "none",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=rule_params("measure_second_seed.py"),
    script:
        "../scripts/measure_second_seed.py"


rule evidence:
    input:
        **SAE,
        **JUDGING,
        codes=MEASURED["codes"],
        responses=MEASURED["responses"],
        attributions=MEASURED["attributions"],
        other_saes=lambda wildcards: of_other_seeds(SAE["sae"], wildcards),
        other_codes=lambda wildcards: of_other_seeds(MEASURED["codes"], wildcards),
    output:
        **RANKING,
        **EVIDENCE,
    log:
        f"{R}/logs/evidence/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params(
            "evidence.py", embedding=EMBEDDING["name"], ranking=config["ranking"]
        ),
    script:
        "../scripts/evidence.py"


if BASELINES:

    use rule measure as measure_baselines with:
        input:
            **of_methods(SAE, BASELINES),
            **STORE,
            **REFERENCE,
            **LAYER,
            **GRADIENTS,
            **PAIRS,
            manifest=f"{R}/manifest.parquet",
            statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        output:
            **of_methods(MEASURED, BASELINES),
        log:
            f"{R}/logs/measure_baselines/layer={{layer}}/k={{k}}/seed={{seed}}.log",
        wildcard_constraints:
            seed="|".join(map(str, SEEDS)),
        params:
            settings=rule_params("measure.py", keep_all=False, **MEASURING),

    use rule evidence as evidence_baselines with:
        input:
            **of_methods(SAE, BASELINES),
            **JUDGING,
            codes=of_methods(MEASURED, BASELINES)["codes"],
            responses=of_methods(MEASURED, BASELINES)["responses"],
            attributions=of_methods(MEASURED, BASELINES)["attributions"],
            other_saes=lambda wildcards: of_other_seeds(
                SAE["sae"], wildcards, BASELINES
            ),
            other_codes=lambda wildcards: of_other_seeds(
                MEASURED["codes"], wildcards, BASELINES
            ),
        output:
            **of_methods(RANKING, BASELINES),
            **of_methods(EVIDENCE, BASELINES),
        log:
            f"{R}/logs/evidence_baselines/layer={{layer}}/k={{k}}/seed={{seed}}.log",


if SEEDED:

    use rule measure_second_seed as measure_second_seed_baselines with:
        input:
            **of_methods(SAE, SEEDED),
            **STORE,
            reference=REFERENCE["reference"],
            statistics=f"{R}/activations/layer={{layer}}/statistics.json",
        output:
            codes=of_methods(MEASURED, SEEDED)["codes"],
        log:
            f"{R}/logs/measure_second_seed_baselines/layer={{layer}}/k={{k}}/seed={{seed}}.log",
        wildcard_constraints:
            seed="|".join(map(str, SECOND_SEEDS)) or "none",


rule across_ks:
    input:
        reference=REFERENCE["reference"],
        codes=expand(MEASURED["codes"], k=sorted(GRID["ks"]), allow_missing=True),
    output:
        ACROSS_KS,
    log:
        f"{R}/logs/across_ks/layer={{layer}}/method={{method}}/seed={{seed}}.log",
    conda:
        ENV
    params:
        settings=rule_params("across_ks.py", ks=sorted(GRID["ks"])),
    script:
        "../scripts/across_ks.py"


rule across_layers:
    input:
        reference=REFERENCE["reference"],
        codes=expand(
            MEASURED["codes"], layer=sorted(GRID["layers"]), allow_missing=True
        ),
    output:
        ACROSS_LAYERS,
    log:
        f"{R}/logs/across_layers/k={{k}}/method={{method}}/seed={{seed}}.log",
    conda:
        ENV
    params:
        settings=rule_params("across_layers.py", layers=sorted(GRID["layers"])),
    script:
        "../scripts/across_layers.py"


rule edges:
    input:
        **{
            name: expand(path, layer=sorted(GRID["layers"]), allow_missing=True)
            for name, path in {**STORE, **SAE, "codes": MEASURED["codes"]}.items()
        },
        reference=REFERENCE["reference"],
    output:
        EDGES,
    log:
        f"{R}/logs/edges/k={{k}}/method={{method}}/seed={{seed}}.log",
    conda:
        ENV
    threads: THREADS
    resources:
        gpu=GPU,
    params:
        settings=rule_params(
            "edges.py",
            model=MODEL,
            tokens=config["tokens"],
            layers=sorted(GRID["layers"]),
            batch=config["extraction"]["batch"],
            latents=config["evidence"]["latents"],
            images=config["evidence"]["images"],
        ),
    script:
        "../scripts/edges.py"
