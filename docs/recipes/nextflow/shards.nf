// Each file of --input is a sample, computed by many jobs: nextflow run shards.nf --input 'reads/*.fq.gz' --shards 100

include { VIRNUC_ASYNC_SHARDS } from './subworkflows/local/virnuc_async_shards/main'

workflow {
    samples = channel.fromPath(params.input).map { file -> [[id: file.simpleName], file] }
    model = params.model ? file(params.model, checkIfExists: true) : []
    VIRNUC_ASYNC_SHARDS(samples, model, params.shards)
}
