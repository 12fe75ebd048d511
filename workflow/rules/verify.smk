# Compares all files of the experiment with what was written. The rule has no output, so it runs whenever it is asked for.

from sae import verify


rule verify:
    log:
        f"{R}/logs/verify.log",
    conda:
        ENV
    threads: THREADS
    params:
        results=RESULTS,
        options=lambda wildcards: verify.options(
            Path(workflow.main_snakefile),
            Path.cwd(),
            workflow.overwrite_configfiles,
            "conda" in map(str, workflow.deployment_settings.deployment_method),
        ),
        now=lambda wildcards: verify.code_and_weights(workflow.rules),
    script:
        "../scripts/verify.py"


# Small runs of the experiment, each of all rules, tell what the whole one takes.
rule estimate:
    log:
        f"{R}/logs/estimate.log",
    localrule: True
    conda:
        ENV
    threads: 1024  # as many as the run has
    params:
        results=RESULTS,
    script:
        "../scripts/estimate.py"
