process VIRNUC_ASYNC_MERGE {
    tag "${meta.id}"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${task.ext.container ?: 'virnuc-async:latest'}"

    input:
    tuple val(meta), path(sequences, stageAs: 'sequences/*'), path(plan), path(done)
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
    def run = "${task.ext.runs}/${prefix}"
    """
    virnuc-async merge \\
        '${run}' \\
        ${prefix} \\
        ${args}

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
