from snakemake import exceptions
from snakemake.utils import min_version

min_version("9.8")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/explorer.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/verify.smk"


# Snakemake keeps notes about every run here, and answers with pages where it cannot write.
try:
    with tempfile.TemporaryFile(dir=".") as probe:
        probe.write(bytes(2**16))
except OSError as error:
    error.filename = os.getcwd()
    sys.exit(f"error: {shortage(error, error.filename) or error}")

# As a module, this file leaves the report's first page and the lock to the workflow that uses it.
if workflow.snakefile == workflow.main_snakefile:

    report: "workflow/report/workflow.rst"

    # One line for a second run of the same results, and for the lock of a killed one; Snakemake's own text has five.
    exceptions.LockException = lambda: SystemExit(
        f"error: {os.path.abspath(R)}: another run makes these results; wait until it ends, or, if it was killed, "
        "unlock them: add --unlock to this command, then run it again without"
    )


onstart:
    check_device(workflow)
    if many_jobs_here(workflow):
        warm.start()


rule all:
    input:
        COMPARISONS,
        f"{R}/explorer/index.html",
        f"{R}/report/overview.svg",
        expand(f"{R}/report/layer={{layer}}/statistics.svg", layer=GRID["layers"]),
        points(f"{R}/report/{P}/latents.svg"),
        points(f"{R}/report/{P}/classes.svg"),
        points(f"{R}/report/{P}/training.svg", TRAINED),
        points(f"{R}/report/{P}/density.svg"),
        points(f"{R}/report/{P}/stability.svg"),
