# This experiment beside another one: snakemake compare --config with=results/other
if config["with"]:

    THERE = Path(config["with"]).expanduser()
    # Of the dictionaries, only SAEs are matched; random ones are the control.
    MATCHED = [*METHODS, *{"random"} & {*BASELINES}]

    def there(pattern, points=("",)):
        """Returns the other experiment's files of a pattern, one for each point."""
        path = pattern.removeprefix(f"{R}/")
        return [str(THERE / path.replace(P, point)) for point in points]

    def of_other(wildcards):
        """Returns the other experiment's files by the names that the rule gives them; it must be finished."""
        told = f"error: with {THERE}:"
        if not THERE.is_dir():
            sys.exit(
                f"{told} no such folder; give another experiment's folder of results, such as results/pets"
            )
        if {"{", "}"} & {*str(THERE)}:
            sys.exit(
                f"{told} Snakemake reads no path with braces; rename the folder, or link to it"
            )
        if THERE.resolve() == Path(R).resolve():
            sys.exit(f"{told} this is the experiment itself; give another one's folder")
        schema = yaml.safe_load(
            (HERE / "workflow/schemas/config.schema.yaml").read_text()
        )
        methods = schema["properties"]["grid"]["properties"]["methods"]["items"]["enum"]
        measured = {
            str(path.relative_to(THERE / "metrics").with_suffix("")): path.parent.name
            for path in THERE.glob("metrics/layer=*/k=*/method=*/seed=*.parquet")
        }
        saes = sorted(
            p for p, m in measured.items() if m.removeprefix("method=") in methods
        )
        random = sorted(p for p, m in measured.items() if m == "method=random")
        files = {
            "manifest": there(f"{R}/manifest.parquet"),
            "reference": there(REFERENCE["reference"]),
            "codes": there(MEASURED["codes"], [*saes, *random]),
            "summaries": there(EVIDENCE["summary"], [*saes, *random]),
            "latents": there(RANKING["latents"], saes),
            "images": there(RANKING["images"], saes),
        }
        for path in (path for paths in files.values() for path in paths):
            if not Path(path).is_file():
                sys.exit(
                    f"{told} no finished experiment of this version: {path} is missing; finish its run first"
                )
        if not saes:
            sys.exit(
                f"{told} no finished experiment: it has no SAE; finish its run first"
            )
        return {f"other_{name}": paths for name, paths in files.items()}

    def other_explorer(wildcards):
        """Returns the address of the other experiment's explorer, from a page two folders below results/; or None."""
        page = THERE / "explorer/index.html"
        return quote(os.path.relpath(page, f"{R}/report")) if page.is_file() else None

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
