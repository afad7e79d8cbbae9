process VIRNUC_ASYNC_SHARD {
    tag "${meta.id} ${number}/${shards}"
    label 'process_medium'
    label 'process_gpu'

    conda "${moduleDir}/environment.yml"
    container "${task.ext.container ?: 'virnuc-async:latest'}"

    input:
    tuple val(meta), path(sequences, stageAs: 'sequences/*'), path(plan), val(number)
    path model
    val shards

    output:
    tuple val(meta), path("${prefix}.${number}-of-${shards}"), emit: done
    path "versions.yml"                                      , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    // Inputs and model are read by the paths that the plan has; they are staged so that a container sees them.
    def run = "${task.ext.runs}/${prefix}"
    // The shard ends by itself, resumably, before the scheduler ends the job.
    def limit = task.time ? "--max-seconds ${Math.max(1, task.time.toSeconds() - 300)}" : ''
    """
    virnuc-async predict \\
        --plan '${run}' \\
        --shard ${number}/${shards} \\
        --threads ${task.cpus} \\
        ${limit} \\
        ${args}
    touch ${prefix}.${number}-of-${shards}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnuc-async: \$(virnuc-async --version | sed 's/.* //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.${number}-of-${shards}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnuc-async: \$(virnuc-async --version | sed 's/.* //')
    END_VERSIONS
    """
}
