process VIRNUC_ASYNC_PLAN {
    tag "${meta.id}"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${task.ext.container ?: 'virnuc-async:latest'}"

    input:
    tuple val(meta), path(sequences, stageAs: 'sequences/*')
    path model

    output:
    tuple val(meta), path("${prefix}.plan.json"), emit: plan
    path "versions.yml"                         , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    if (!task.ext.runs) {
        error("VIRNUC_ASYNC_PLAN needs ext.runs: a directory that every task sees")
    }
    // All shards keep their work here: a work directory is of one attempt alone.
    def run = "${task.ext.runs}/${prefix}"
    def use_model = model ? "--model \"\$(realpath ${model})\"" : ''
    // Where the files lie for every task, and not the links to them of this one.
    """
    readarray -t inputs < <(realpath ${sequences})
    virnuc-async plan \\
        "\${inputs[@]}" \\
        '${run}' \\
        ${use_model} \\
        ${args}
    cp '${run}/plan.json' ${prefix}.plan.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnuc-async: \$(virnuc-async --version | sed 's/.* //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.plan.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnuc-async: \$(virnuc-async --version | sed 's/.* //')
    END_VERSIONS
    """
}
