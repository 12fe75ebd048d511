# This experiment beside another one: snakemake compare --config with=results/other
if config["with"]:

    rule compare:
        input:
            unpack(of_other),
            manifest=f"{R}/manifest.parquet",
            reference=REFERENCE["reference"],
            codes=points(MEASURED["codes"], MATCHED),
            summaries=points(EVIDENCE["summary"], MATCHED),
            latents=points(RANKING["latents"]),
            images=points(RANKING["images"]),
            explorer=f"{R}/explorer/index.html",
        output:
            page=shown(
                f"{R}/report/compare.html",
                "7 Another experiment",
                "the comparison, with every number",
            ),
            table=f"{R}/report/compare.csv",
            figures=expand(f"{R}/report/compare.{{ending}}", ending=["svg", "png"]),
            matches=f"{R}/matches/compare.parquet",
            explorer=directory(f"{R}/explorer/data/compare"),
        log:
            f"{R}/logs/compare.log",
        localrule: ELSEWHERE
        conda:
            ENV
        threads: THREADS
        params:
            explorer=other_explorer,
            settings=rule_params(
                "compare.py", name=config["name"], other=THERE.resolve().name
            ),
        script:
            "../scripts/compare.py"

else:

    rule compare:
        input:
            lambda wildcards: sys.exit(
                "error: compare needs another experiment's results: "
                "snakemake --cores 1 compare --config with=results/other"
            ),
