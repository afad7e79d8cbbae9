include { VIRNUC_ASYNC_PLAN  } from '../../../modules/local/virnuc_async/plan/main'
include { VIRNUC_ASYNC_SHARD } from '../../../modules/local/virnuc_async/shard/main'
include { VIRNUC_ASYNC_MERGE } from '../../../modules/local/virnuc_async/merge/main'

workflow VIRNUC_ASYNC_SHARDS {
    take:
    samples // of [meta, sequences]
    model   // its directory, or []
    shards  // how many jobs each sample is computed by

    main:
    VIRNUC_ASYNC_PLAN(samples, model)

    numbered = samples.join(VIRNUC_ASYNC_PLAN.out.plan).combine(channel.of(0..<shards))
    VIRNUC_ASYNC_SHARD(numbered, model, shards)

    done = VIRNUC_ASYNC_SHARD.out.done.groupTuple(size: shards)
    VIRNUC_ASYNC_MERGE(samples.join(VIRNUC_ASYNC_PLAN.out.plan).join(done), model)

    emit:
    contigs   = VIRNUC_ASYNC_MERGE.out.contigs
    fragments = VIRNUC_ASYNC_MERGE.out.fragments
    calls     = VIRNUC_ASYNC_MERGE.out.calls
    pairs     = VIRNUC_ASYNC_MERGE.out.pairs
    summary   = VIRNUC_ASYNC_MERGE.out.summary
    versions  = VIRNUC_ASYNC_MERGE.out.versions
}
