"""
virnuc-async in Snakemake, each sample on many GPUs: its plan, its shards as jobs of their own, its tables.

Snakemake deletes the declared outputs of a job that failed or was killed. What a shard has computed is
therefore kept in runs/SAMPLE, which is no output, and what is declared is a marker in runs/SAMPLE/done: a
retry, or the next call of snakemake, goes on where the shard was.
"""


configfile: "config.yaml"


SAMPLES = sorted(config["samples"])
SHARDS = config["shards"]
TABLES = ("contigs.tsv", "fragments.tsv", "contig_calls.tsv")


wildcard_constraints:
    shard=r"\d+",
    shards=r"\d+",


rule all:
    input:
        expand("results/{sample}/{table}", sample=SAMPLES, table=TABLES),


rule plan:
    input:
        lambda wildcards: config["samples"][wildcards.sample],
    output:
        touch("runs/{sample}/done/plan"),
    log:
        "logs/virnuc_async/{sample}/plan.log",
    params:
        run=subpath(output[0], ancestor=2),
        device=config["device"] if config["gpus"] else "cpu",
        options=config["options"],
    threads: 8
    resources:
        mem_mb=8000,
        runtime=config["runtime"],
    conda:
        "environment.yaml"
    shell:
        "virnuc-async plan {input:q} {params.run:q} --for-device {params.device} --calls"
        "  {params.options} 2>> {log:q}"


rule shard:
    input:
        "runs/{sample}/done/plan",
    output:
        touch("runs/{sample}/done/{shard}-of-{shards}"),
    log:
        "logs/virnuc_async/{sample}/{shard}-of-{shards}.log",
    params:
        run=subpath(output[0], ancestor=2),
        # The shard ends by itself, resumably, before the scheduler ends the job.
        seconds=lambda wildcards, resources: resources.runtime * 60 - config["margin"],
    threads: 8
    retries: 3
    resources:
        mem_mb=30000,
        runtime=config["runtime"],
        gpu=config["gpus"],
    conda:
        "environment.yaml"
    shell:
        "virnuc-async predict --plan {params.run:q} --shard {wildcards.shard}/{wildcards.shards}"
        "  --max-seconds {params.seconds} --threads {threads} 2>> {log:q}"


rule merge:
    input:
        expand("runs/{{sample}}/done/{shard}-of-{shards}", shard=range(SHARDS), shards=SHARDS),
    output:
        expand("results/{{sample}}/{table}", table=TABLES),
    log:
        "logs/virnuc_async/{sample}/merge.log",
    params:
        run=subpath(input[0], ancestor=2),
        results=subpath(output[0], parent=True),
    resources:
        mem_mb=8000,
        runtime=config["runtime"],
    conda:
        "environment.yaml"
    shell:
        "(virnuc-async merge {params.run:q} &&"
        " cp {params.run:q}/{{contigs,fragments,contig_calls}}.tsv {params.results:q}/) 2>> {log:q}"
