process VIRNUC_ASYNC_PREDICT {
    tag "${meta.id}"
    label 'process_medium'
    label 'process_gpu'

    conda "${moduleDir}/environment.yml"
    container "${task.ext.container ?: 'virnuc-async:latest'}"

    input:
    tuple val(meta), path(sequences, stageAs: 'sequences/*')
    path model

    output:
    tuple val(meta), path("${prefix}/contigs.tsv")     , emit: contigs
    tuple val(meta), path("${prefix}/fragments.tsv")   , emit: fragments
    tuple val(meta), path("${prefix}/contig_calls.tsv"), emit: calls, optional: true
    tuple val(meta), path("${prefix}/pairs.tsv")       , emit: pairs, optional: true
    tuple val(meta), path("${prefix}/summary.json")    , emit: summary
    path "versions.yml"                                , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    // An attempt has a new work directory. A run that is kept elsewhere is resumed by the next attempt.
    def run = task.ext.runs ? "${task.ext.runs}/${prefix}" : prefix
    def results = task.ext.runs ? "mkdir ${prefix} && cp '${run}'/*.tsv '${run}'/summary.json ${prefix}/" : ''
    def use_model = model ? "--model ${model}" : ''
    // The run ends by itself, resumably, before the scheduler ends the job.
    def limit = task.time ? "--max-seconds ${Math.max(1, task.time.toSeconds() - 300)}" : ''
    """
    virnuc-async predict \\
        ${sequences} \\
        '${run}' \\
        ${use_model} \\
        --threads ${task.cpus} \\
        ${limit} \\
        ${args}
    ${results}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnuc-async: \$(virnuc-async --version | sed 's/.* //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir ${prefix}
    touch ${prefix}/contigs.tsv ${prefix}/fragments.tsv ${prefix}/summary.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnuc-async: \$(virnuc-async --version | sed 's/.* //')
    END_VERSIONS
    """
}
