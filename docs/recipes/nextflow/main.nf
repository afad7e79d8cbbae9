// Each file of --input is a sample: nextflow run main.nf --input 'contigs/*.fa.gz'

include { VIRNUC_ASYNC_PREDICT } from './modules/local/virnuc_async/predict/main'

workflow {
    samples = channel.fromPath(params.input).map { file -> [[id: file.simpleName], file] }
    model = params.model ? file(params.model, checkIfExists: true) : []
    VIRNUC_ASYNC_PREDICT(samples, model)
}
