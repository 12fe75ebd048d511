# SAEs in the formats of other libraries, each in a folder that is ready for a model hub.


rule export_point:
    input:
        **SAE,
        **STORE,
        reference=REFERENCE["reference"],
        metrics=MEASURED["metrics"],
        summaries=lambda wildcards: expand(
            EVIDENCE["summary"],
            **{
                **wildcards,
                "method": list(dict.fromkeys([wildcards.method, *BASELINES])),
            },
        ),
        latents=f"{R}/report/{P}/latents.png",
        classes=f"{R}/report/{P}/classes.png",
    output:
        directory(f"{R}/export/{P}"),
    log:
        f"{R}/logs/export_point/{P}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    localrule: ELSEWHERE
    conda:
        ENV
    threads: THREADS
    params:
        settings=rule_params("export_point.py", tokens=config["tokens"]),
    script:
        "../scripts/export_point.py"


rule export:
    input:
        points(f"{R}/export/{P}"),
